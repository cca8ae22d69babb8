"""`saefast look`: from a run and a cache to pages."""

import gzip
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from saefast import SAE, open_source
from saefast.interp.effects import Effects
from saefast.interp.exchange.circuit_tracer import read_circuit_tracer
from saefast.interp.exchange.delphi_reading import read_delphi
from saefast.interp.exchange.openai_read import read_openai
from saefast.interp.records import Records
from saefast.interp.strongest import strongest
from tests.helpers import tiny_lm
from tests.helpers.tiny_world import TRAIN, run

pytestmark = pytest.mark.usefixtures("no_curves")
HOOK = "--hook model.layers.1 --context-length 16 --contexts-per-batch 4"
SMALL = "--no-map --n-top 3 --n-random 2"


@pytest.fixture
def trained(world, tmp_path):
    run(f"cache {world}/model {world}/text {HOOK} --tokens 700 --out {tmp_path}/acts")
    run(f"train {tmp_path}/acts --out {tmp_path}/run {TRAIN}")
    return tmp_path


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_records_and_effects_are_made_once_and_the_pages_each_time(trained, capsys):
    capsys.readouterr()
    run(f"look {trained}/run {trained}/acts {SMALL} --ablate 2")
    said = capsys.readouterr().out
    page = trained / "run/look/index.html"
    assert f"open {page}" in said and "GB of disk" in said and page.exists()
    records = Records(trained / "run/records")
    assert records.n_rows == len(open_source(trained / "acts")) and records.index["separators"] == [0]
    effects = Effects.load(records.folder)
    assert effects.logits is not None and effects.correlated_neurons is not None
    assert effects.logits.positive_tokens.max() < len(tiny_lm.tokenizer())
    ablated = pq.read_table(records.folder / "ablations.parquet")["latent"].to_pylist()
    assert len(set(ablated)) == 2 and set(ablated) == {
        latent.latent for latent in strongest(records, 2, max_density=1.0)
    }
    before = stamps(records.folder)
    run(f"look {trained}/run {trained}/acts {SMALL} --latents 3 5 --title Again")
    assert stamps(records.folder) == before and "Again" in page.read_text()


def test_a_model_on_a_text_and_neurons(world, trained, capsys):
    run(
        f"look {trained}/run {world}/model {world}/text {HOOK} {SMALL} --records {trained}/live --out {trained}/pages --tokens 200"
    )
    assert 200 <= Records(trained / "live").n_rows < 300 and (trained / "pages/index.html").exists()
    run(f"look {trained}/run {trained}/acts {SMALL} --neurons")
    records = Records(trained / "run/records-neurons")
    x = open_source(trained / "acts").shard(0)["activations"].float()
    assert records.table(["count"])["count"].to_pylist() == (x > 0).sum(0).tolist()
    assert (trained / "run/look-neurons/index.html").exists()


def test_another_run_is_shown_beside(trained):
    run(f"train {trained}/acts --out {trained}/other {TRAIN} --seed 1")
    for name, more in (("other", ""), ("run", f"--compare {trained}/other")):
        run(f"look {trained}/{name} {trained}/acts {SMALL} {more}")
    assert (trained / "run/look/data").exists()


def test_records_are_exported(trained, capsys):
    with pytest.raises(SystemExit):
        run(f"export {trained}/run --to neuronpedia --out {trained}/np --source-id 1-mine")
    assert "`saefast look RUN SOURCE` makes records" in capsys.readouterr().err
    run(f"look {trained}/run {trained}/acts {SMALL}")
    run(f"export {trained}/run --to neuronpedia --out {trained}/np --source-id 1-mine --vectors")
    lines = gzip.decompress((trained / "np/model/1-mine/features/batch-0.jsonl.gz").read_bytes()).splitlines()
    features = list(map(json.loads, lines))
    density = Records(trained / "run/records").table(["density"])["density"].to_pylist()
    assert [float(f["frac_nonzero"]) for f in features] == pytest.approx(density)
    assert features[5]["vector"] == pytest.approx(SAE.from_pretrained(trained / "run").W_dec[5].tolist())
    run(f"export {trained}/run --to sae_dashboard --out {trained}/dash --source-id 1-mine__32k")
    batch = json.loads((trained / "dash/batch-0.json").read_text())
    assert (batch["sae_set"], batch["sae_id_suffix"], len(batch["features"])) == ("mine", "32k", 64)
    counts = Records(trained / "run/records").table(["count"])["count"].to_pylist()
    run(f"export {trained}/run --to delphi --out {trained}/delphi --splits 2")
    again = read_delphi(trained / "delphi/latents/layers.1", trained / "again")
    assert again.table(["count"])["count"].to_pylist() == counts
    run(f"export {trained}/run --to openai --out {trained}/openai")
    ours = [neuron["latent"] for neuron in read_openai(trained / "openai", layer=1)]
    assert ours == list(range(64))
    run(f"export {trained}/run --to circuit_tracer --out {trained}/tracer --layer 3 --scan mine")
    page = read_circuit_tracer(trained / "tracer", layer=3, latent=5)
    assert page["transcoder_id"] == "mine" and page["activation_frequency"] == pytest.approx(density[5])
    for wrong, message in (
        ("neuronpedia --source-id Mine", "source_id: expected LAYER-NAME"),
        ("sae_dashboard", "source_id: expected LAYER-NAME"),
        ("delphi --layer 3", "layer: expected only with --to openai or circuit_tracer, got 3 with delphi"),
    ):
        with pytest.raises(SystemExit):
            run(f"export {trained}/run --to {wrong} --out {trained}/np")
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "case", ["no text", "no model", "another tokenizer", "other records", "no folder", "tokens"]
)
def test_bad_input_is_one_line(trained, capsys, tmp_path, case):
    flags, source, sae = SMALL, f"{trained}/acts", f"{trained}/run"
    if case == "no text":
        np.save(tmp_path / "rows.npy", np.ones((40, 32), np.float32))
        source, want = f"{tmp_path}/rows.npy", "source: expected activations with their text"
    elif case == "no model":
        flags, want = f"{SMALL} --model {tmp_path}/nowhere", "model: expected one with a tokenizer"
    elif case == "another tokenizer":
        other = tiny_lm.tokenizer()
        other.add_tokens([f"x{i}" for i in range(3)])
        vocabulary = other.backend_tokenizer.get_vocab()
        assert len(vocabulary) == len(other)
        small = type(other)(
            tokenizer_object=type(other.backend_tokenizer)(_word_level(20)), eos_token="<eos>"
        )
        small.save_pretrained(tmp_path / "small")
        flags, want = f"{SMALL} --model {tmp_path}/small", "tokenizer: expected the one that made the text"
    elif case == "other records":
        run(f"look {sae} {source} {SMALL}")
        flags, want = "--no-map --n-top 4", "holds records with config"
    elif case == "no folder":
        sae, want = f"{tmp_path}/nothing", "nothing"
    else:
        flags, want = f"{SMALL} --tokens 0", "tokens: expected a positive integer, got 0"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(f"look {sae} {source} {flags}")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and said.startswith("saefast: error: ") and want in said


def _word_level(n):
    from tokenizers.models import WordLevel

    return WordLevel({"<eos>": 0, "<unk>": 1} | {f"w{i}": i + 2 for i in range(n)}, unk_token="<unk>")
