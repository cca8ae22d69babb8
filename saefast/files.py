"""Files that are whole or absent: atomic writes, and tensors with a checksum of their contents."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saefast.errors import InputError, line, shown

_UMASK = os.umask(0o077)  # the only way to read it is to set it
os.umask(_UMASK)
_MARK = "blake2b-"  # every checksum of this module that is kept in a JSON file begins so


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While `path` is written: an error of the disk names it, which that of a write does not by itself."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error})") from None


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, flush that file to disk and rename it to `path`: a reader sees the old or the new file.

    A failure (a full disk, a kill) leaves `path` as it was. The temporary file is in a folder with a fixed name, which the
    next write of `path` clears: safetensors has temporary files of its own, with random names, beside the one it writes.

    Raises:
        OSError: the file could not be written; the message has the reason and `path`.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    temporary = scratch / path.name
    _remove(scratch)
    try:
        with naming(path):
            scratch.mkdir()
            write(temporary)
            os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes its files private
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        _remove(scratch)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


@contextmanager
def staged(folder: Path, name: str = "files") -> Iterator[Path]:
    """A folder to write many small files in: they are moved into `folder`, in place of those with their names, when all are written.

    One flush to disk for all of them, where `write_atomic` has one for each. A failure on the way leaves `folder` as it was; one
    while they are moved, old files and new ones, each of them whole. What a kill left is cleared by the next call with `name`.

    Raises:
        OSError: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{name}.tmp"
    _remove(scratch)
    scratch.mkdir()
    try:
        yield scratch
        os.sync()
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    except OSError as error:
        if error.errno and error.filename is None:  # a write does not name its file
            raise OSError(error.errno, error.strerror, str(folder)) from None
        raise
    finally:
        _remove(scratch)


def refuse_pointer(path: Path) -> None:
    """Raise InputError if the file at `path` is what git leaves in place of one that Git LFS keeps."""
    if path.is_file() and path.stat().st_size < 1024:
        with open(path, "rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs.github.com/spec/")
        if pointer:
            raise InputError(
                f"{path}: a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
            )


def _remove(scratch: Path) -> None:
    """What a killed write left; early versions left a file."""
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, see `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """The parsed JSON of `path`.

    Raises:
        InputError: the file is missing or not JSON; the message names it.
    """
    refuse_pointer(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: expected a JSON file, found none") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a JSON file, got a folder") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: no UTF-8, no JSON, or a number of 4,300 digits
        raise InputError(f"{path}: expected JSON, got {line(error)}") from None


def write_json_checked(path: Path, value: dict[str, Any]) -> None:
    """`write_json` of `value` and of a last key "checksum", which `read_json_checked` verifies and takes off again."""
    write_json(path, value | {"checksum": json_checksum(value)})


def read_json_checked(path: Path) -> dict[str, Any]:
    """The object that `write_json_checked` wrote. One of `write_json`, without a checksum, is read as it is.

    Raises:
        InputError: the file is missing, not a JSON object, or something in it has changed; the message names it.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}")
    # a checksum under another name is one whose name was damaged
    marked = any(isinstance(value, str) and value.startswith(_MARK) for value in found.values())
    if "checksum" not in found and not marked:
        return found
    expected = found.pop("checksum", None)
    got = json_checksum(found)
    if got != expected:
        raise InputError(f"{path}: corrupt: expected checksum {shown(expected)}, got {got!r}")
    return found


def json_checksum(value: dict[str, Any]) -> str:
    """Checksum of the contents of a JSON object: neither spaces nor the order of the keys count."""
    parsed = json.loads(json.dumps(value))  # a tuple is a list there, and a key a string
    text = json.dumps(parsed, sort_keys=True, separators=(",", ":"))
    return _MARK + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """Checksum of all bytes of a file, read in pieces of 1 MiB: about 1 GB/s."""
    blake = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            blake.update(piece)
    return _MARK + blake.hexdigest()


def digest(tensors: dict[str, Tensor], meta: str = "") -> str:
    """SHA-256 of `meta` and then of the name, dtype, shape and bytes of each tensor, in the order of the names."""
    sha = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # an empty array of numpy may have a stride of 0
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> str:
    """Write a safetensors file atomically, with `meta` as JSON and the digest in its header. Returns the digest."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    checksum = digest(tensors, text)
    header = {"saefast": f"{checksum} {text}"}  # one entry: safetensors writes several in random order
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    return checksum


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, meta and digest of a file of `save_tensors`.

    Raises:
        InputError: the file is missing or any bit of it is wrong; the message names it.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        checksum, text = header["saefast"].split(" ", 1)
        meta = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({line(error)})") from None
    found = digest(tensors, text)
    if found != checksum:
        raise InputError(
            f"{path}: corrupt: expected SHA-256 {shown(checksum[:16])[1:-1]}..., got {found[:16]}..."
        )
    return tensors, meta, checksum
