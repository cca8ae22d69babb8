"""circuit-tracer's feature files, against the whole code; its own pages read them in tests/peers/test_circuit_tracer.py."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.exchange import circuit_tracer
from saefast.interp.exchange.circuit_tracer import (
    escaped,
    export_circuit_tracer,
    pair_id,
    read_circuit_tracer,
    unpair,
)
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import RAW, WORDS, F, everything

GROUPS = ("top", "quantile", "interval")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return cases.records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def write(records):
    def write(out, layer=3, **changes):
        given = {"scan": "me/set"} | changes
        return export_circuit_tracer(records, cases.effects(), WORDS, out, layer=layer, **given)

    return write


@pytest.fixture(scope="module")
def written(write, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert write(out, groups=GROUPS) == out / "features"
    return out


def test_pages_are_what_the_code_says(records, written):
    code, logits = cases.dense(records), cases.effects().logits
    for latent in range(F):
        page, acts = read_circuit_tracer(written, 3, latent), code[latent][code[latent] > 0]
        assert (page["transcoder_id"], page["index"], page["act_min"]) == ("me/set", latent, 0)
        assert page["act_max"] == (acts.max() if len(acts) else 0)
        assert page["activation_frequency"] == len(acts) / records.text.n_rows
        if len(acts):
            wanted = np.quantile(acts, np.arange(1, 101) / 100, method="inverted_cdf")
            assert np.array_equal(np.float32(page["quantile_values"]), wanted)
            bins = np.histogram(acts.astype(np.float64), len(page["histogram"]), (0, acts.max()))[0]
            assert page["histogram"] == bins.tolist()
        else:
            assert page["quantile_values"] == page["histogram"] == page["examples_quantiles"] == []
        assert page["top_logits"] == [escaped(RAW[i]) for i in logits.positive_tokens[latent].tolist()]
        names = [one["quantile_name"] for one in page["examples_quantiles"]]
        examples = records.latent(latent).examples
        wanted = [one for one in examples["top"]]
        for group in GROUPS[1:]:
            bins = sorted({one.bin for one in examples[group]}, reverse=True)
            wanted += [one for part in bins for one in examples[group] if one.bin == part]
        assert len(set(names)) == len(names) and names[:1] == (["Top"] if len(acts) else [])
        found = [one for group in page["examples_quantiles"] for one in group["examples"]]
        seen = set()
        for one, example in zip(found, wanted, strict=True):
            assert one["tokens"] == [escaped(RAW[token]) for token in example.tokens]
            dense = code[latent][example.context, example.start :][: len(example.tokens)]
            assert np.array_equal(np.float32(one["tokens_acts_list"]), dense)
            assert np.float32(one["tokens_acts_list"][one["train_token_ind"]]) == example.act
            place = example.context, example.position
            assert one["is_repeated_datapoint"] == (place in seen)
            seen.add(place)


def test_a_name_has_the_bounds_of_its_examples(written):
    for group in read_circuit_tracer(written, 3, 0)["examples_quantiles"][1:]:
        low, high = map(float, group["quantile_name"].split(": ")[1].split(" to "))
        for one in group["examples"]:
            peak = one["tokens_acts_list"][one["train_token_ind"]]
            assert low * 0.995 <= peak <= high * 1.005  # three digits


def test_tokens_and_back():
    for raw in RAW:
        text = escaped(raw)
        back = b""
        while text:
            is_byte = len(text) > 3 and text[:2] == "\\x" and set(text[2:4]) <= set("0123456789abcdef")
            back += bytes([int(text[2:4], 16)]) if is_byte else text[0].encode()
            text = text[4 if is_byte else 1 :]
        assert back == raw
    assert escaped("\u20ac x".encode()) == "\u20ac x" and escaped(rb"\xg0") == r"\xg0"


def test_numbers_of_graphs():
    assert [pair_id(0, 0), pair_id(0, 1), pair_id(1, 0), pair_id(12, 3)] == [0, 2, 1, 123]
    for layer, latent in ((0, 0), (3, 7), (0, 10**9), (120, 2**31), (7, 2**40)):
        assert unpair(pair_id(layer, latent)) == (layer, latent)


def test_layers_are_added_and_replaced(write, tmp_path):
    write(tmp_path, 11)
    first = everything(tmp_path)
    write(tmp_path, 2)
    both = everything(tmp_path)
    assert both["features/layer_11.bin"] == first["features/layer_11.bin"]
    write(tmp_path, 2, scan="other")
    assert read_circuit_tracer(tmp_path, 2, 5)["transcoder_id"] == "other"
    write(tmp_path, 2)
    assert everything(tmp_path) == both
    index = json.loads(gzip.decompress(both["features/index.json.gz"]))
    assert list(index) == ["2", "11"] and len(index["11"]["offsets"]) == F + 1
    with pytest.raises(InputError, match="layer 3 .* found neither"):
        read_circuit_tracer(tmp_path, 3, 0)
    with pytest.raises(InputError, match=f"expected 0 to {F - 1} in layer 2"):
        read_circuit_tracer(tmp_path, 2, F)


def test_a_file_for_each_latent(write, written, tmp_path):
    folder = write(tmp_path, groups=GROUPS, a_file_each=True)
    assert {path.name for path in folder.iterdir()} == {f"{pair_id(3, i)}.json" for i in range(F)}
    for latent in range(F):
        assert read_circuit_tracer(tmp_path, 3, latent) == read_circuit_tracer(written, 3, latent)
    before = everything(tmp_path)
    other, stale, foreign = (folder / f"{name}.json" for name in (pair_id(4, F + 3), pair_id(3, F), "notes"))
    for path in (other, stale, foreign):
        path.write_text("{}")
    write(tmp_path, groups=GROUPS, a_file_each=True)
    assert other.exists() and foreign.exists() and not stale.exists()
    assert before.items() <= everything(tmp_path).items()


def test_one_form_takes_the_place_of_the_other(write, tmp_path):
    write(tmp_path, 4)
    for scan, single in (("a", False), ("b", True), ("c", False)):
        folder = write(tmp_path, scan=scan, a_file_each=single)
        assert read_circuit_tracer(tmp_path, 3, 1)["transcoder_id"] == scan
        assert len(list(folder.glob("*.json"))) == F * single
        assert (folder / "layer_3.bin").exists() is not single
        assert read_circuit_tracer(tmp_path, 4, 1)["transcoder_id"] == "me/set"


def test_layers_written_at_the_same_time_are_all_in_the_index(write, tmp_path, monkeypatch):
    """Layer 4 is written while layer 3 is."""
    pages = circuit_tracer._pages

    def slow(*args):
        yield from pages(*args)
        monkeypatch.setattr(circuit_tracer, "_pages", pages)
        write(tmp_path, 4)

    monkeypatch.setattr(circuit_tracer, "_pages", slow)
    write(tmp_path, 3)
    assert [read_circuit_tracer(tmp_path, layer, 1)["index"] for layer in (3, 4)] == [1, 1]


def test_a_kill_between_a_file_and_its_index_shows_nothing_wrong(write, tmp_path, monkeypatch):
    write(tmp_path, 3)
    write(tmp_path, 4)
    enter = circuit_tracer._enter

    def killed(folder, layer, entry):
        if entry is not None:
            raise KeyboardInterrupt
        enter(folder, layer, entry)

    monkeypatch.setattr(circuit_tracer, "_enter", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 3, groups=("top",))
    with pytest.raises(InputError, match="found neither"):
        read_circuit_tracer(tmp_path, 3, 1)
    assert read_circuit_tracer(tmp_path, 4, 1)["index"] == 1


def test_what_others_write_is_read(tmp_path):
    """An index that is a list, zlib in place of gzip, fewer fields, and no bytes of a latent that never fired."""
    folder = tmp_path / "features"
    folder.mkdir()
    data = zlib.compress(json.dumps({"index": 0, "examples_quantiles": []}).encode())
    (folder / "x.bin").write_bytes(struct.pack("<I", len(data)) + data)
    entry = {"filename": "x.bin", "offsets": [0, len(data) + 4, len(data) + 4]}
    (folder / "index.json.gz").write_bytes(gzip.compress(json.dumps([None, entry]).encode()))
    assert read_circuit_tracer(tmp_path, 1, 0) == {"index": 0, "examples_quantiles": []}
    with pytest.raises(InputError, match="x.bin: has nothing of latent 1"):
        read_circuit_tracer(tmp_path, 1, 1)


def packed(value):
    return gzip.compress(json.dumps(value).encode())


ENTRY = {"filename": "layer_3.bin", "offsets": [0, 10, 20]}


@pytest.mark.parametrize(
    "name, damage",
    [
        ("layer_3.bin", lambda data: data[:100]),
        ("layer_3.bin", lambda data: None),
        ("layer_3.bin", lambda data: b"\xff\xff\xff\xff" + data[4:]),
        ("layer_3.bin", lambda data: b"\0\0\0\0" + data[4:]),
        ("layer_3.bin", lambda data: data[:30] + bytes([data[30] ^ 255]) + data[31:]),
        ("index.json.gz", lambda data: data[:30]),
        ("index.json.gz", lambda data: packed(7)),
        ("index.json.gz", lambda data: packed({"x": ENTRY})),
        ("index.json.gz", lambda data: packed({"3": 1})),
        ("index.json.gz", lambda data: packed({"3": ENTRY | {"filename": "../layer_3.bin"}})),
        ("index.json.gz", lambda data: packed({"3": ENTRY | {"offsets": [0, "x"]}})),
        ("index.json.gz", lambda data: packed({"3": ENTRY | {"offsets": [-4, 9]}})),
        ("index.json.gz", lambda data: packed({"3": ENTRY | {"offsets": [2**70, 2**71]}})),
    ],
)
def test_damage_is_named(write, tmp_path, name, damage):
    folder = write(tmp_path, groups=("top",))
    data = damage((folder / name).read_bytes())
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=r"features(/layer_3.bin|/index.json.gz|: .*index.json.gz)"):
        read_circuit_tracer(tmp_path, 3, 0)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"index": 1},
        {"examples_quantiles": [1]},
        {
            "examples_quantiles": [
                {"quantile_name": "Top", "examples": [{"tokens": ["a"], "tokens_acts_list": []}]}
            ]
        },
        {"examples_quantiles": [{"quantile_name": "Top", "examples": [None]}]},
    ],
)
def test_a_wrong_page_is_named(tmp_path, value):
    (tmp_path / "features").mkdir()
    path = tmp_path / "features" / f"{pair_id(3, 1)}.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"{path.name}: expected"):
        read_circuit_tracer(tmp_path, 3, 1)


def test_wrong_choices(write, tmp_path):
    with pytest.raises(InputError, match="groups: expected some of"):
        write(tmp_path, groups=("random",))
    with pytest.raises(InputError, match="from 0 on"):
        write(tmp_path, layer="3")
    assert not (tmp_path / "features" / "layer_3.bin").exists()
    for layer, latent in ((3, -1), (-1, 3), (3, 1.0)):
        with pytest.raises(InputError, match="from 0 on"):
            read_circuit_tracer(tmp_path, layer, latent)
