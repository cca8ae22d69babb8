"""Files that are whole or absent, and notice every bit. Their checksums: test_checksums.py."""

import errno
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from saefast import InputError, files
from saefast.files import (
    load_tensors,
    read_json,
    save_tensors,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "weights": torch.randn(5, 3, generator=generator),
        "half": torch.randn(4, generator=generator).half(),
        "counts": torch.tensor([1, -(2**40), 7]),
        "mask": torch.tensor([True, False]),
    }


META = {"step": 15, "scale": 0.25, "nested": {"text": 'a "quoted" word'}}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_a_failing_writer_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "file"
    write_atomic(path, lambda temporary: temporary.write_text("old"))

    def write(temporary):
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, write)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_writer_that_fails_before_it_makes_its_file_is_reported_as_such(tmp_path):
    def write(temporary):
        raise PermissionError("not here")

    with pytest.raises(PermissionError, match="not here"):
        write_atomic(tmp_path / "file", write)
    assert names(tmp_path) == []


def test_a_disk_found_full_at_the_flush_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "file", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "file", "new")
    assert read_json(tmp_path / "file") == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error,said",
    [
        (OSError(errno.ENOSPC, "No space left"), "[Errno 28] No space left on PATH"),
        (OSError(errno.EACCES, "Permission denied", "other"), "[Errno 13] Permission denied: 'other'"),
        (OSError("no number"), "no number"),
        (SafetensorError("I/O error"), "PATH: could not be written (I/O error)"),
        (ValueError("no tensor"), "no tensor"),
    ],
    ids=repr,
)
def test_what_stopped_a_write_is_said_with_its_file(tmp_path, error, said):
    """By the system's own words, and by the name of the file where they have none."""
    path = tmp_path / "file"

    def write(temporary):
        raise error

    with pytest.raises(Exception) as caught:
        write_atomic(path, write)
    want = said.replace("No space left on PATH", f"No space left: {str(path)!r}").replace("PATH", str(path))
    assert str(caught.value) == want
    assert isinstance(caught.value, ValueError if isinstance(error, ValueError) else OSError)


def test_a_pointer_of_git_lfs_has_less_than_1024_bytes(tmp_path):
    """So says its specification: a longer file that begins like one is something else."""
    begin, path = "version https://git-lfs.github.com/spec/v1\n", tmp_path / "x.json"
    for size, pointer in ((1023, True), (1024, False)):
        path.write_text(begin.ljust(size, "x"))
        with pytest.raises(InputError, match="pointer of Git LFS" if pointer else "expected JSON"):
            read_json(path)
        with pytest.raises(InputError, match="pointer of Git LFS" if pointer else "corrupt"):
            load_tensors(path)
    path.write_text(begin.replace("spec", "spek"))
    with pytest.raises(InputError, match="expected JSON"):
        read_json(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files")
def test_nothing_is_left_open(tmp_path):
    def many():
        for _ in range(5):
            save_tensors(tmp_path / "tensors", tensors(), META)
            write_json(tmp_path / "json", META)
            load_tensors(tmp_path / "tensors")
            read_json(tmp_path / "json")
        return len(os.listdir("/proc/self/fd"))

    assert many() == many()


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path, seen = tmp_path / "file", []
    write_atomic(path, lambda temporary: temporary.write_text("old"))

    def write(temporary):
        temporary.write_text("new")
        seen.append(path.read_text())

    write_atomic(path, write)
    assert seen == ["old"] and path.read_text() == "new"


def test_a_temporary_left_by_a_kill_is_replaced(tmp_path):
    (tmp_path / ".file.tmp").write_text("left by a killed run, and longer than the new text")
    write_atomic(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "file").read_text() == "new" and names(tmp_path) == ["file"]


def test_a_temporary_that_cannot_be_removed_hides_nothing(tmp_path, monkeypatch):
    """Neither that the file is there, nor why it is not."""

    def refused(*args, **options):
        raise PermissionError(errno.EACCES, "not yours")

    def full(temporary):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "rmdir", refused)
    write_atomic(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "file").read_text() == "new"
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "other", full)


def test_a_file_size_limit_keeps_the_old_file_and_permissions_follow_the_umask(tmp_path):
    """The real thing, in a process of its own: the kernel refuses to write on."""
    code = f"""
import os, resource
os.umask(0o026)
from pathlib import Path
import torch
from saefast.files import save_tensors, write_json
folder = Path({str(tmp_path)!r})
save_tensors(folder / "tensors", {{"x": torch.ones(10)}}, {{}})
write_json(folder / "json", [1])
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
for name, write in {{
    "tensors": lambda: save_tensors(folder / "tensors", {{"x": torch.zeros(100_000)}}, {{}}),
    "json": lambda: write_json(folder / "json", [0] * 100_000),
}}.items():
    try:
        write()
    except Exception as error:
        print(name, "failed:", error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "tensors failed:" in done.stdout and "json failed:" in done.stdout
    assert names(tmp_path) == ["json", "tensors"]
    assert torch.equal(load_tensors(tmp_path / "tensors")[0]["x"], torch.ones(10)) and read_json(
        tmp_path / "json"
    ) == [1]
    assert [oct(os.stat(tmp_path / name).st_mode & 0o777) for name in ("json", "tensors")] == [
        "0o640",
        "0o640",
    ]


def test_tensors_and_meta_come_back_bit_for_bit(tmp_path):
    odd = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "bfloat16": torch.arange(6).bfloat16().view(2, 3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }
    want = tensors() | odd
    checksum = save_tensors(tmp_path / "file", want, META)
    got, meta, found = load_tensors(tmp_path / "file")
    assert meta == META and found == checksum and got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        assert (
            got[name]
            .contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(tensor.contiguous().flatten().view(torch.uint8))
        )


def test_a_flipped_bit_in_any_byte_is_noticed_and_the_file_named(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, tensors(), META)
    good = path.read_bytes()
    missed, rng = [], random.Random(0)
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            load_tensors(path)
            missed.append(place)
        except InputError as error:
            assert str(path) in str(error)
    assert not missed, f"flipped bits not noticed in bytes {missed} of {len(good)}"


def test_truncation_anywhere_and_an_appended_byte_is_noticed(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, tensors(), META)
    good = path.read_bytes()
    for data in [good[:n] for n in range(0, len(good), 3)] + [good + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(InputError, match="file: corrupt"):
            load_tensors(path)


def test_a_missing_file_and_a_file_of_others_are_named(tmp_path):
    with pytest.raises(InputError, match="none: expected a file, found none"):
        load_tensors(tmp_path / "none")
    files.save_file(tensors(), tmp_path / "theirs")
    with pytest.raises(InputError, match="theirs: corrupt or not written by saefast"):
        load_tensors(tmp_path / "theirs")


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe"], ids=repr)
def test_bad_json_is_named(tmp_path, content):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(InputError, match="index.json: expected JSON, got"):
        read_json(tmp_path / "index.json")
    with pytest.raises(InputError, match="none.json: expected a JSON file, found none"):
        read_json(tmp_path / "none.json")


def test_written_json_reads_back(tmp_path):
    write_json(tmp_path / "file", META)
    assert read_json(tmp_path / "file") == META == json.loads((tmp_path / "file").read_text())
    write_json(tmp_path / "file", {"a": [1]})
    assert (tmp_path / "file").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
