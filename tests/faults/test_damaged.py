"""Kind: damaged files. A short run of the campaign of `tests.faults.damaged`, and what it found, each with its line."""

import json
import shutil

import pytest
import torch

from saefast import SAE, InputError, formats, open_source
from saefast.activations.shards import ShardWriter
from tests.faults import damaged
from tests.helpers.format_cases import JUMP, make


def test_every_damage_ends_in_a_result_or_one_line():
    counts, wrong = damaged.campaign(budget=60, seed=7, rounds=5)
    assert wrong == []
    assert counts["one line"] > 120 and counts["result"] > 25  # both happen, so that neither hides the other


def test_a_flipped_bit_of_a_folder_of_ours_is_never_read_as_whole(tmp_path):
    """Of every file, every 11th bit: refused, or the same SAE (a bit of a space that JSON does not count)."""
    formats.save(make(JUMP), tmp_path / "lens", "sae_lens")
    SAE.from_pretrained(tmp_path / "lens").save_pretrained(tmp_path / "ours")
    want, refused, tried = damaged.read_sae(tmp_path / "ours"), 0, 0
    for path in sorted((tmp_path / "ours").iterdir()):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 11):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            tried += 1
            try:
                assert damaged.read_sae(tmp_path / "ours") == want, (path.name, bit)
            except InputError as error:
                assert path.name in str(error)
                refused += 1
        path.write_bytes(whole)
    assert refused > 0.95 * tried > 1000


@pytest.mark.parametrize("name", ["config.json", "sae.safetensors", "origin.safetensors"])
def test_files_of_two_saes_of_ours_are_not_mixed(name, tmp_path):
    formats.save(make(JUMP), tmp_path / "lens", "sae_lens")
    sae = SAE.from_pretrained(tmp_path / "lens")
    sae.save_pretrained(tmp_path / "a")
    sae.b_enc.data += 1
    sae.metadata["model_name"], sae.origin.config["note"] = "another model", "another"
    sae.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(
        InputError, match=r"(corrupt, or of another sae.safetensors|of another SAE) than|origin.safetensors: "
    ):
        SAE.from_pretrained(tmp_path / "a")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(InputError, match=name):
        SAE.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"architecture": ["topk"]}, r"architecture: expected one of .*, got \['topk'\]"),
        ({"metadata": 3}, "metadata: expected an object, got 3"),
        ({"metadata": ["x"]}, "metadata: expected an object"),
        ({"normalize_activations": {}}, "normalize_activations: expected one of"),
        ({"k": 10**400}, "k: expected a positive integer, got 1000"),
        ({"k": -3}, "k: expected a positive integer, got -3"),
        ({"k": True}, "k: expected a positive integer, got True"),
        ({"k": float("nan")}, "k: expected a positive integer, got nan"),
        ({"k": "x" * 9999}, r"k: expected a positive integer, got 'x{99}\.\.\.$"),
        ({"d_in": [6]}, r"d_in: expected 6, the size of the tensors, got \[6\]"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_values_of_another_kind_are_named(change, message, tmp_path):
    formats.save(make({"k": 3}), tmp_path / "a", "sae_lens")
    path = tmp_path / "a" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        SAE.from_pretrained(tmp_path / "a")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
@pytest.mark.parametrize("format,name", [("openai", "autoencoder.pt"), ("dictionary_learning", "ae.pt")])
def test_a_pickle_that_is_cut_is_one_line(format, name, size, tmp_path):
    formats.save(make({"activation": "relu"}), tmp_path / "a", format)
    data = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(data[:size])
    with pytest.raises(InputError, match=rf"{name}: (corrupt|refused)") as error:
        SAE.from_pretrained(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_tensor_where_a_word_belongs_is_one_line(tmp_path):
    formats.save(make({"activation": "relu"}), tmp_path / "a", "openai")
    state = torch.load(tmp_path / "a" / "autoencoder.pt", weights_only=True)
    torch.save(state | {"activation": torch.zeros(2, 3)}, tmp_path / "a" / "autoencoder.pt")
    with pytest.raises(
        InputError, match=r"activation: expected one of .*, got tensor\(\[\[0., 0., 0.\], \[0"
    ) as error:
        SAE.from_pretrained(tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), ", "{'a': (", "\0" * 50]
)
def test_the_header_of_an_npy_file_that_is_damaged_is_one_line(text, tmp_path):
    header = text.encode().ljust(117, b" ") + b"\n"
    (tmp_path / "x.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)
    )
    with pytest.raises(InputError, match=r"x.npy is not a readable .npy file") as error:
        open_source(tmp_path / "x.npy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"n_tokens": "64"},
        {"n_tokens": 63},
        {"d_in": [6]},
        {"shards": {}},
        {"shards": [3]},
        {"dtype": "load"},
        {"notes": 1},
        {"complete": 1},
        {"widths": [True]},
        {"hook": {}},
    ],
    ids=str,
)
def test_an_index_of_activations_without_a_checksum_is_whole_in_kind_or_refused(change, tmp_path):
    writer = ShardWriter(tmp_path, 6, torch.float16, "model", "layers.3", {}, 40)
    writer.append(torch.zeros(64, 6, dtype=torch.float16))
    writer.close()
    index = {k: v for k, v in json.loads((tmp_path / "index.json").read_text()).items() if k != "checksum"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert len(open_source(tmp_path)) == 64
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(
        InputError, match=r"index.json: corrupt: an entry is not of the kind that saefast writes"
    ):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "sae.safetensors"])
def test_a_message_is_short_whatever_the_file_holds(name, tmp_path):
    make({"k": 3}).save_pretrained(tmp_path)
    path = tmp_path / name
    if name == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"checksum": "a" * 10_000}))
    else:
        text = json.dumps({"W_enc": "a" * 10_000}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match=rf"{name}: corrupt") as error:
        SAE.from_pretrained(tmp_path)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


def test_names_in_a_file_never_break_the_one_line(tmp_path):
    """A name of a tensor or of a field may hold anything: a message shows it as a Python string would."""
    torch.save({"\nK\x1b[2J\u202e": torch.zeros(2)}, tmp_path / "x-SAE-l19.pth")
    with pytest.raises(InputError, match=r"got \\nK\\x1b\[2J\\u202e$"):
        SAE.from_pretrained(tmp_path / "x-SAE-l19.pth")
    assert str(InputError("r\u00e9sum\u00e9 \u4e2d: 'a\tb'")) == "r\u00e9sum\u00e9 \u4e2d: 'a\\tb'"
