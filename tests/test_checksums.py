"""Checksums: of all the bits, and of nothing else. Their values stay, or files that exist could not be read any more."""

import hashlib

import pytest
import torch

from saefast import InputError
from saefast.files import (
    digest,
    file_checksum,
    json_checksum,
    read_json_checked,
    write_json,
    write_json_checked,
)

META = {"step": 15, "scale": 0.25, "nested": {"text": 'a "quoted" word'}}


def test_the_checksums_are_those_that_files_have_already():
    text = b'{"a":[1,"x"],"b":null}'
    want = "blake2b-" + hashlib.blake2b(text, digest_size=16).hexdigest()
    assert json_checksum({"b": None, "a": (1, "x")}) == want
    told = b"meta" + b"w torch.float16 (1, 2)\n" + torch.ones(1, 2).half().numpy().tobytes()
    told += b"x torch.int32 ()\n" + bytes([7, 0, 0, 0])
    two = {"x": torch.tensor(7, dtype=torch.int32), "w": torch.ones(1, 2).half()}
    assert digest(two, "meta") == hashlib.sha256(told).hexdigest()


def test_digest_does_not_depend_on_the_order_of_the_names():
    forward = {
        "weights": torch.ones(5, 3),
        "half": torch.ones(4).half(),
        "counts": torch.tensor([1, -(2**40)]),
    }
    assert digest(forward) == digest(dict(reversed(forward.items())))


@pytest.mark.parametrize(
    "changed",
    [
        {"y": torch.zeros(2, 3)},
        {"x": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3, dtype=torch.int32)},
        {"x": torch.tensor([[-0.0, 0, 0], [0, 0, 0]])},
        {"x": torch.zeros(2, 3), "y": torch.zeros(0)},
    ],
    ids=["name", "shape", "dtype", "sign of zero", "one more"],
)
def test_digest_depends_on_names_shapes_dtypes_and_bits(changed):
    assert digest(changed) != digest({"x": torch.zeros(2, 3)})


def test_digest_is_that_of_the_values_not_of_the_memory_layout():
    x = torch.arange(6.0).view(2, 3)
    assert digest({"x": x.T.contiguous().T}) == digest({"x": x})


def test_checked_json_is_the_same_object_or_refused_at_every_flipped_bit(tmp_path):
    path, value = tmp_path / "config.json", META | {"widths": (3, 4), "nan": None}
    write_json_checked(path, value)
    whole, refused = path.read_bytes(), 0
    assert read_json_checked(path) == value | {"widths": [3, 4]}
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:  # a bit of a space or of the last line's end may not change what the file says
            assert read_json_checked(path) == value | {"widths": [3, 4]}, bit
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 7.5 * len(whole) * 0.8


def test_checked_json_without_a_checksum_is_an_older_one(tmp_path):
    write_json(tmp_path / "old.json", META)
    assert read_json_checked(tmp_path / "old.json") == META


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "[1, 2]", "\xff", ""])
def test_checked_json_refuses_what_is_no_object(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.json"):
        read_json_checked(tmp_path / "x.json")


def test_checksum_of_a_file_is_that_of_all_its_bytes(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(3_000_000))
    first = file_checksum(path)
    assert first == "blake2b-" + hashlib.blake2b(bytes(3_000_000), digest_size=16).hexdigest()
    path.write_bytes(bytes(2_999_999) + b"\x01")
    assert file_checksum(path) != first
