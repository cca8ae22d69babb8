"""Files that are whole or absent: atomic writes, and tensors with a checksum of their contents."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saefast.errors import InputError

_UMASK = os.umask(0o077)  # the only way to read it is to set it
os.umask(_UMASK)


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, flush that file to disk and rename it to `path`: a reader sees the old or the new file.

    A failure (a full disk, a kill) leaves `path` as it was. The temporary file has a fixed name, so that there is never
    more than one.

    Raises:
        OSError: the file could not be written; the message has the reason and `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes its files private
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (
            isinstance(error, OSError) and error.errno and error.filename is None
        ):  # a write does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from None
        if isinstance(error, SafetensorError):
            raise OSError(f"{path}: could not be written ({error})") from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, see `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """The parsed JSON of `path`.

    Raises:
        InputError: the file is missing or not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: expected a JSON file, found none") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got {error}") from None


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
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        checksum, text = header["saefast"].split(" ", 1)
        meta = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({error})") from None
    found = digest(tensors, text)
    if found != checksum:
        raise InputError(f"{path}: corrupt: expected SHA-256 {checksum[:16]}..., got {found[:16]}...")
    return tensors, meta, checksum
