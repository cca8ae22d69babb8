"""`saefast look` on input that nobody would choose: each is shown as it is, or refused in one line, and nothing is lost."""

import json
import random
import resource
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saefast import SAE, SAEConfig
from saefast.activations.tokens import encode
from saefast.interp.records import Records, batches, codes
from tests.helpers import chromium
from tests.helpers.site_files import read
from tests.helpers.small_records import shards
from tests.helpers.tiny_world import contents, run

pytestmark = pytest.mark.usefixtures("no_curves")
FLAGS = "--hook model.layers.0 --context-length 16 --contexts-per-batch 1 --no-map --n-top 3 --n-random 2"
NAME = "a model"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of one block with a byte-level tokenizer, and an SAE."""
    folder = tmp_path_factory.mktemp("bytes")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat and the rat ran at the hat"] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>").save_pretrained(folder / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=280, max_position_embeddings=32, eos_token_id=0, bos_token_id=None, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).eval().save_pretrained(folder / "model")
    SAE(SAEConfig(d_in=16, d_sae=24, k=3)).save_pretrained(folder / "sae")
    return folder


def look(world, out, documents, more="", sae=None):
    """Records and folder of the pages."""
    (out / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    where = f"--records {out}/records --out {out}/pages"
    run(f"look {sae or world / 'sae'} {world}/model {out}/text.jsonl {FLAGS} {where} {more}")
    return Records(out / "records"), out / "pages"


def refused(capsys, call):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in err
    (said,) = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("saefast: error: ")]
    return said


def shown(pages, n_contexts):
    """The bytes of all contexts, as the page of texts puts them together, and where each document ends."""
    vocabulary = read(pages / "data/vocabulary.js")[2]
    ends = np.cumsum([0, *vocabulary["lengths"].tolist()])
    raw = vocabulary["bytes"].tobytes()
    tokens = [raw[a:b] for a, b in pairwise(ends.tolist())]
    numbers = [read(pages / f"data/text-{i}.js")[2]["tokens"] for i in range(n_contexts)]
    return [tokens[number] for some in numbers for number in some.tolist()]


TEXTS = {
    "NUL and signs": ["a\0b\x01\x1b[31m\x7f\u0085\u2028\ufeff the cat"],
    "right to left": ["\u202e\u2066the\u2069 \u200fשלום عليكم\u200e cat \u061c"],
    "injections": ["</script><script>alert(1)</script><!-- &lt; `${x}` \\u003c"],
    "no space": ["".join(random.Random(0).choices("catrhsn", k=1_000_000))],
    "emoji and halves of characters": ["👩🏽‍🚀" * 12 + "𒀀é\u0301"],
    "documents longer than the context": ["the cat sat on the mat " * 9, "and the rat"],
    "empty documents": ["the cat sat", "", "", "on the mat", ""],
    "line ends": ["\r\n\n\r\t \u00a0\u3000the\r\rcat\n"],
}


def check_documents(records, tokens):
    """Documents are numbered by the separators before them, and no example has a token of two."""
    document, start = 0, 0
    starts = []  # of each token: its document, and where that begins
    for i, raw in enumerate(tokens):
        starts.append((document, start))
        if raw == b"<eos>":
            document, start = document + 1, i + 1
    slots = np.arange(len(tokens))
    assert records.text.documents(slots).tolist() == [number for number, _ in starts]
    for latent in range(records.d_sae):
        for examples in records.latent(latent).examples.values():
            for one in examples:
                first = one.context * 16 + one.start
                assert one.document == starts[one.context * 16 + one.position][0] == starts[first][0]
                assert (
                    b"<eos>" not in tokens[first : first + len(one.tokens) - 1]
                )  # a separator only at the end


FAST = ("NUL and signs", "no space", "documents longer than the context")
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in TEXTS]


@pytest.mark.parametrize("name", EACH)
def test_every_text_is_shown_as_it_is(world, tmp_path, name):
    documents = [*TEXTS[name], *["the rat ran at the hat"] * 4]
    records, pages = look(world, tmp_path, documents, "--tokens 400")
    tokens = shown(pages, len(records.text.contexts))
    whole = b"".join(text.encode() + b"<eos>" for text in documents if text)  # no token, no document
    assert len(tokens) == records.text.contexts.size and len(tokens) >= 32
    assert whole.startswith(b"".join(tokens))
    check_documents(records, tokens)


def test_documents_without_a_token_between_their_separators(world, tmp_path):
    """As another tool may cache them; at the beginning and at the end of a context, too."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "model")
    parts = [
        [0, 0],
        "the cat sat on the mat and the rat ran",
        [0, 0],
        "at the hat",
        [0, 0, 0],
        "the rat sat",
        [0],
    ]
    ids = [i for part in parts * 4 for i in (encode(tokenizer, part) if isinstance(part, str) else part)]
    contexts = torch.tensor(ids[: len(ids) // 16 * 16], dtype=torch.int32).view(-1, 16)
    draw = torch.Generator().manual_seed(0)
    shards(tmp_path / "acts", torch.randn(contexts.numel(), 16, generator=draw), contexts)
    where = f"--records {tmp_path}/r --out {tmp_path}/p"
    run(f"look {world}/sae {tmp_path}/acts --no-map --model {world}/model --n-top 3 {where}")
    records = Records(tmp_path / "r")
    assert records.index["separators"] == [0] and (contexts[:, 0] == 0).any() and (contexts[:, -1] == 0).any()
    check_documents(records, shown(tmp_path / "p", len(contexts)))


@pytest.mark.slow
@pytest.mark.skipif(chromium.installed() is None, reason="needs Chromium (apt-get install chromium)")
def test_every_text_at_once_in_a_browser(world, tmp_path):
    documents = [text for some in TEXTS.values() for text in some if len(text) < 10_000] * 2
    records, pages = look(world, tmp_path, documents)
    with chromium.Browser() as browser:
        browser.open(f"file://{pages}/index.html")
        active = [i for i, n in enumerate(records.table(["count"])["count"].to_pylist()) if n]
        for latent in active[:6]:
            browser.go(f"#latent/{latent}")
        assert browser.problems == []


def test_text_that_is_none_is_refused(world, tmp_path, capsys):
    for number, data in enumerate((b'{"text": "half \\ud800 of a pair"}\n', b'{"text": "\xff\xfe"}\n')):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b'{"text": "the cat sat on the mat"}\n' * 3 + data)
        command = f"look {world}/sae {world}/model {path} {FLAGS} --records {tmp_path}/r --out {tmp_path}/p"
        said = refused(capsys, lambda command=command: run(command))
        assert path.name in said and ("half a surrogate pair" in said or "UTF-8" in said or "utf-8" in said)
        assert not (tmp_path / "p").exists()


def test_latents_that_never_fire_have_pages(world, tmp_path):
    sae = SAE(SAEConfig(d_in=16, d_sae=24, activation="relu"))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    sae.save_pretrained(tmp_path / "sae")
    records, pages = look(world, tmp_path, ["the cat sat on the mat"] * 9, "--ablate 2", sae=tmp_path / "sae")
    assert records.table(["count"])["count"].to_pylist() == [0] * 24
    groups = {name for i in range(24) for name, some in records.latent(i).examples.items() if some}
    assert groups == {"inactive"} and records.entries(3)[1].tolist() == []
    assert read(pages / "data/head.js")[2]["count"].tolist() == [0] * 24
    assert (pages / "data/latents-0.js").exists()


def test_a_source_of_one_token(world, tmp_path):
    shards(tmp_path / "one", torch.ones(1, 16), torch.full((1, 1), 5, dtype=torch.int32))
    run(
        f"look {world}/sae {tmp_path}/one --no-map --model {world}/model --records {tmp_path}/r --out {tmp_path}/p"
    )
    records = Records(tmp_path / "r")
    assert records.n_rows == 1 and records.table(["count"])["count"].to_numpy().sum() == 3
    assert len(shown(tmp_path / "p", 1)) == 1


def test_an_sae_of_another_place_is_refused(world, tmp_path, capsys):
    text = ["the cat sat on the mat"] * 4
    SAE(SAEConfig(d_in=8, d_sae=24, k=3)).save_pretrained(tmp_path / "narrow")
    said = refused(capsys, lambda: look(world, tmp_path, text, sae=tmp_path / "narrow"))
    assert "source: expected width d_in = 8 of the SAE, got 16" in said
    sae = SAE(SAEConfig(d_in=16, d_sae=24, k=3))
    sae.metadata |= {"model_name": f"{world}/model", "hook_name": "model.norm"}
    sae.save_pretrained(tmp_path / "elsewhere")
    said = refused(capsys, lambda: look(world, tmp_path, text, sae=tmp_path / "elsewhere"))
    assert "'model.norm', where the SAE was trained, got 'model.layers.0'" in said
    assert not (tmp_path / "records").exists() and not (tmp_path / "pages").exists()


def test_text_of_another_tokenizer_is_refused(world, tmp_path, capsys):
    """All of its ids are tokens here: ids of the text, each another one."""
    draw = torch.Generator().manual_seed(0)
    contexts = torch.randint(1, 280, (20, 16), generator=draw, dtype=torch.int32)
    shards(tmp_path / "other", torch.randn(320, 16, generator=draw), contexts)
    where = f"--records {tmp_path}/r --out {tmp_path}/p"
    command = f"look {world}/sae {tmp_path}/other --no-map --model {world}/model {where}"
    assert "tokenizer: expected the one that made the text" in refused(capsys, lambda: run(command))
    assert Records(tmp_path / "r").n_rows == 320 and not (tmp_path / "p").exists()  # the pass was right


@pytest.mark.parametrize("limit", [1500, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_stops_it_and_it_goes_on(world, tmp_path, capsys, monkeypatch, limit):
    monkeypatch.setattr(codes, "block_entries", lambda d_sae: 100)
    monkeypatch.setattr(batches, "ROWS", 20)
    text = ["the cat sat on the mat"] * 40
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        said = refused(capsys, lambda: look(world, tmp_path / "full", text))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{tmp_path}/full/records" in said
    left = sorted(path.name for path in (tmp_path / "full/records").iterdir())
    assert "index.json" in left and not [name for name in left if name.endswith(".tmp")]
    capsys.readouterr()
    said = refused(capsys, lambda: run(f"info {tmp_path}/full/records"))
    assert "these records are incomplete; `saefast look RUN SOURCE` makes records: it goes on" in said
    got, _ = look(world, tmp_path / "full", text)
    want, _ = look(world, tmp_path / "whole", text)
    assert got.examples_table().equals(want.examples_table()) and len(got.index["blocks"]) > 2
    names = {path.name for path in contents(tmp_path / "full/records")}
    assert names == {path.name for path in contents(tmp_path / "whole/records")}


def test_a_damaged_file_stops_it_before_any_page(world, tmp_path, capsys):
    _, pages = look(world, tmp_path, ["the cat sat on the mat"] * 4)
    before = contents(pages)
    path = tmp_path / "records/codes-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # an activation that is a little larger
    path.write_bytes(data)
    said = refused(capsys, lambda: look(world, tmp_path, ["the cat sat on the mat"] * 4))
    assert "codes-00000.safetensors: corrupt" in said and contents(pages) == before
