"""What a site's files hold equals the records; what they hold cannot end a script; folders are replaced or refused."""

import json

import numpy as np
import pytest
import torch

from saefast.config.records import GROUPS
from saefast.errors import InputError
from saefast.interp.effects import Alignment, Effects, LogitWeights, Neighbours
from saefast.interp.effects.ablation_file import write_ablations
from saefast.interp.look import Compared, pack, texts, write_site
from saefast.interp.look.latents import pool_of, spans
from tests.helpers import look_records
from tests.helpers.site_files import read

RAW = [b" the", b"a", b"\xe2\x80", b"\x9c", b"\n", b"</script>", b"\x00", b"", "é".encode(), b" x"]


def effects_of(d_sae):
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, len(RAW), (d_sae, 3), generator=draw, dtype=torch.int32)
    values = torch.randn(d_sae, 3, generator=draw)
    logits = LogitWeights(tokens, values, tokens.flip(0), -values, tokens, values[:, 0], values[:, 1])
    near = Neighbours(
        torch.randint(-1, d_sae, (d_sae, 4), generator=draw, dtype=torch.int32), torch.randn(d_sae, 4)
    )
    return Effects(logits, near, None, near, near, Alignment(tokens, values, values))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    vocabulary = look_records.Tokens(RAW, special=(7,))
    records = look_records.make(folder / "records", vocabulary)
    other = look_records.make(folder / "other", vocabulary, d_sae=30, seed=1)
    said = {
        "latent": 3,
        "explanation": "the <b>\u2028",
        "method": "m",
        "model": None,
        "scores": {"fuzz": 0.5},
    }
    (records.folder / "explanations.jsonl").write_text(json.dumps(said) + "\n\n", encoding="utf-8")
    table = records.examples_table()
    effects = [
        None if i % 5 == 0 else [None] + [i + j / 8 for j in range(1, n)]
        for i, n in enumerate(table["length"].to_pylist())
    ]
    places = table.select(["latent", "group", "bin", "rank"]).to_pylist()
    rows = [place | {"effects": one} for place, one in zip(places, effects, strict=True) if one is not None]
    write_ablations(records.folder, rows[::-1], {})
    near = Neighbours(torch.arange(40, dtype=torch.int32)[:, None] % 30, torch.rand(40, 1))
    places = np.random.default_rng(0).standard_normal((40, 2))
    options = {"effects": effects_of(40), "compare": Compared(other, near, None), "coordinates": places}
    options |= {"clusters": np.arange(40) % 3 - 1, "n_texts": 5, "latents_per_file": 7}
    page = write_site(records, folder / "site", vocabulary, **options)
    return records, other, vocabulary, page.parent, effects, options


def token(site):
    return read(site / "data/vocabulary.js")[2]["ids"]


def test_pages_of_latents_equal_the_records(world):
    records, _, _, site, effects, options = world
    ids, seen, row = token(site), [], 0
    for number in range(6):
        _, _, page = read(site / f"data/latents-{number}.js")
        example = active = effect = 0
        for i, latent in enumerate(page["latent"].tolist()):
            want = records.latent(latent)
            seen.append(latent)
            assert page["histogram"].reshape(len(page["latent"]), -1)[i].tolist() == want.histogram
            for name in ("mean", "variance", "skewness", "kurtosis", "energy"):
                np.testing.assert_equal(page[name][i], getattr(want, name))
            wanted = [one for group in GROUPS for one in want.examples[group]]
            assert page["n_examples"][i] == len(wanted)
            for one in wanted:
                at, n = page["place"][example], page["length"][example]
                assert ids[page["pool"][at : at + n]].tolist() == one.tokens
                acts = np.zeros(n, np.float32)
                inside = slice(active, active := active + page["n_active"][example])
                acts[page["at"][inside]] = page["acts"][inside]
                assert acts.tolist() == one.acts and page["act"][example] == np.float32(one.act)
                found = [page[name][example] for name in ("context", "start", "document", "bin", "peak")]
                assert found == [one.context, one.start, one.document, one.bin, one.at]
                assert GROUPS[page["group"][example]] == one.group
                assert ("explain", "score")[page["split"][example]] == one.split
                inside = slice(effect, effect := effect + page["n_effects"][example])
                got = (page["effects"][inside].astype(np.uint32) << 16).view(np.float32)
                np.testing.assert_allclose(got, np.asarray(effects[row] or [], np.float32), rtol=2**-8)
                example, row = example + 1, row + 1
        for name in ("decoder", "alignment", "logits"):
            table = getattr(options["effects"], name)
            for field, tensor in table._asdict().items():
                got = page[f"{name}.{field}"].reshape(len(page["latent"]), *tensor.shape[1:])
                got = ids[got] if field.endswith("_tokens") else got
                np.testing.assert_array_equal(got, tensor.numpy()[page["latent"]])
    assert seen == list(range(40)) and row == len(effects)


def test_the_list_and_its_search_equal_the_records(world):
    records, _, _, site, _, _ = world
    head, ids = read(site / "data/head.js")[2], token(site)
    search = read(site / "data/search-0.js")[2]
    example = at = 0
    for latent in range(40):
        want = records.latent(latent)
        assert [head["count"][latent], head["max"][latent]] == [want.count, np.float32(want.max)]
        peaks = head["peaks"].reshape(40, -1)[latent]
        tokens = [one.tokens[one.at] for one in want.examples["top"][:6]]
        assert ids[peaks[peaks < len(ids)]].tolist() == tokens
        assert search["examples"][latent] == len(want.examples["top"][:5])
        for one in want.examples["top"][:5]:
            n = int(search["lengths"][example])
            begin = max(0, one.at - 16)
            assert ids[search["tokens"][at : at + n]].tolist() == one.tokens[begin : one.at + 9]
            assert search["peaks"][example] == one.at - begin
            example, at = example + 1, at + n
    assert (example, at) == (len(search["lengths"]), len(search["tokens"]))
    said = read(site / "data/explanations.js")[2]["explanations"]
    assert said == [{"latent": 3, "explanation": "the <b>\u2028", "method": "m", "scores": {"fuzz": 0.5}}]


def test_texts_have_all_active_latents_the_strongest_first(world):
    records, _, _, site, _, _ = world
    head, ids = read(site / "data/head.js")[2], token(site)
    assert head["contexts"].tolist() == [0, 2, 4, 7, 9]
    code = {}
    for latent in range(40):
        for slot, act in zip(*records.entries(latent), strict=True):
            code.setdefault(int(slot), []).append((-float(act), latent))
    for context in head["contexts"].tolist():
        page, at = read(site / f"data/text-{context}.js")[2], 0
        assert ids[page["tokens"]].tolist() == records.text.contexts[context].tolist()
        assert page["encoded"].astype(bool).tolist() == records.text.encoded[context].tolist()
        for position, n in enumerate(page["n_active"].tolist()):
            want = sorted(code.get(context * records.text.length + position, []))
            got = zip(
                (-page["acts"][at : at + n]).tolist(), page["latents"][at : at + n].tolist(), strict=True
            )
            assert list(got) == want
            at += n


def test_the_other_sae_and_the_map(world):
    _, other, _, site, _, options = world
    head, ids = read(site / "data/head.js")[2], token(site)
    assert head["other.decoder.indices"].tolist() == options["compare"].decoder.indices.ravel().tolist()
    page = read(site / "data/other-1.js")[2]
    want = other.latent(int(page["latent"][0]))
    assert page["n_examples"][0] == len(want.examples["top"]) and page["count"][0] == want.count
    first = want.examples["top"][0]
    assert ids[page["pool"][page["place"][0] :][: page["length"][0]]].tolist() == first.tokens
    places = read(site / "data/map.js")[2]
    assert places["places"].tolist() == options["coordinates"].astype(np.float32).ravel().tolist()


def test_files_are_of_one_build_the_same_twice_and_another_one_after_a_change(world, tmp_path):
    records, _, vocabulary, site, _, options = world
    build = read(site / "data/head.js")[1]
    assert f'data-build="{build}"' in (site / "index.html").read_text()
    files = sorted(path for path in site.rglob("*") if path.is_file())
    for path in site.glob("data/*.js"):
        assert read(path)[:2] == (path.stem, build)
    again = write_site(records, tmp_path / "again", vocabulary, **options).parent
    assert [path.read_bytes() for path in files] == [
        (again / path.relative_to(site)).read_bytes() for path in files
    ]
    write_site(records, again, vocabulary, **options | {"title": "another"})  # replaces it
    assert read(again / "data/head.js")[1] != build


def test_nothing_in_the_data_ends_a_script_or_a_title(world, tmp_path):
    records, _, vocabulary, _, _, _ = world
    hostile = "</script><script>alert(1)</script><!-- \u2028 & ]]>"
    site = write_site(records, tmp_path / "site", vocabulary, title=hostile).parent
    for path in site.glob("data/*.js"):
        text = path.read_bytes()
        assert text.isascii() and not set(b"<>&") & set(text.replace(b'"', b""))
    page = (site / "index.html").read_text(encoding="utf-8")
    assert hostile not in page and page.count("<script") == page.count("</script>") == 13
    assert read(site / "data/head.js")[2]["title"] == hostile


def test_some_latents_only(world, tmp_path):
    records, _, vocabulary, _, _, _ = world
    site = write_site(records, tmp_path / "site", vocabulary, latents=[39, 5, 6, 5]).parent
    head = read(site / "data/head.js")[2]
    assert head["latent"].tolist() == [5, 6, 39]
    for path in site.glob("data/text-*.js"):
        assert set(read(path)[2]["latents"].tolist()) <= {5, 6, 39}
    for wrong in ([], [40], [-1]):
        with pytest.raises(InputError, match="latents: expected some from 0 to 39"):
            write_site(records, tmp_path / "none", vocabulary, latents=wrong)


def test_a_folder_with_other_things_is_refused_and_an_interrupted_write_says_so(world, tmp_path, monkeypatch):
    records, _, vocabulary, _, _, _ = world
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("dear")
    with pytest.raises(InputError, match=r"expected an empty folder or a site to replace, .*thesis\.tex"):
        write_site(records, tmp_path / "mine", vocabulary)
    assert (tmp_path / "mine/thesis.tex").read_text() == "dear"
    with pytest.raises(InputError, match="got the file"):
        write_site(records, tmp_path / "mine/thesis.tex", vocabulary)
    write_site(records, tmp_path / "site", vocabulary)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(texts, "pages", full)
    with pytest.raises(OSError, match="No space left"):
        write_site(records, tmp_path / "site", vocabulary)
    assert "not complete" in (tmp_path / "site/index.html").read_text()
    monkeypatch.undo()
    page = write_site(records, tmp_path / "site", vocabulary)
    assert "not complete" not in page.read_text()


def test_arguments_that_do_not_fit_are_refused(world, tmp_path):
    records, _, vocabulary, _, _, _ = world
    wrong = {
        "effects: expected a row for each of 40 latents, got 39": {"effects": effects_of(39)},
        r"coordinates: expected shape \[40, 2\], got \[40, 3\]": {"coordinates": np.zeros((40, 3))},
        r"clusters: expected shape \[40\], got \[4\]": {"clusters": np.zeros(4, int)},
        "n_texts: expected at least 0": {"n_texts": -1},
        "latents_per_file: expected at least 1": {"latents_per_file": 0},
    }
    for message, options in wrong.items():
        with pytest.raises(InputError, match=message):
            write_site(records, tmp_path / "site", vocabulary, **options)
    path = records.folder / "explanations.jsonl"
    before = path.read_text(encoding="utf-8")
    for line in (
        "nonsense",
        "[]",
        '{"latent": "3", "explanation": "x"}',
        '{"latent": 3, "explanation": "x", "scores": {"a": "b"}}',
    ):
        path.write_text(before + line, encoding="utf-8")
        with pytest.raises(InputError, match=r"explanations\.jsonl, line 3: expected"):
            write_site(records, tmp_path / "site", vocabulary)
    path.write_text(before, encoding="utf-8")
    assert not (tmp_path / "site").exists()


def test_tokens_that_the_tokenizer_does_not_know_are_shown_by_number(tmp_path):
    records = look_records.make(tmp_path / "records", look_records.Tokens([b"x"] * 300))
    site = write_site(records, tmp_path / "site", look_records.Tokens([b"x"] * 250)).parent
    found = read(site / "data/vocabulary.js")[2]
    assert (found["lengths"][found["ids"] >= 250] == 0).all() and (found["ids"] >= 250).any()


def test_pieces():
    places, pool = pool_of(np.array([5, 0, 3, 9]), np.array([2, 2, 3, 1]), np.arange(100, 120))
    assert pool.tolist() == [100, 101, 103, 104, 105, 106, 109] and places.tolist() == [4, 0, 2, 6]
    assert spans(np.array([3, 9, 1]), np.array([2, 0, 3])).tolist() == [3, 4, 1, 2, 3]
    assert pool_of(np.zeros(0, int), np.zeros(0, int), np.arange(3))[1].tolist() == []
    values = np.array([1.0, -0.001, np.nan, 3.4e38, 1.00390625], np.float32)
    got = (pack.bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(got[[0, 1]], values[[0, 1]], rtol=2**-8)
    assert np.isnan(got[2]) and got[4] == 1.0
    assert pack.literal({"a": float("nan"), "b": "<\u2029&"}) == '{"a":null,"b":"\\u003c\\u2029\\u0026"}'
