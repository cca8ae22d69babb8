"""What the C++ buffer reads of a source: segments, each the rows of one file with what its checksum covers, or memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.shards import INDEX, ShardSource
from saefast.activations.sources import Source, TensorSource
from saefast.errors import InputError, check

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
SAFETENSORS_DTYPES = FLOATS | INTEGERS | {"BOOL": torch.bool}


def segments_of(source: Source) -> tuple[list[Any], torch.dtype] | None:
    """The segments of `source`, one after another, and the dtype of its rows; None for a source that C++ cannot read.

    Raises:
        InputError: a shard whose header does not fit the index (the message names it).
    """
    if type(source) is ShardSource:
        dtype = getattr(torch, source.index["dtype"])
        if dtype not in DTYPES:
            return None
        return [_shard(source, i) for i in range(len(source.index["shards"]))], dtype
    if type(source) is not TensorSource:
        return None
    tensor = source.tensor
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if source.path is not None:
        found = _file(source.path, tensor)
        return None if found is None else ([found], tensor.dtype)
    tensor = tensor.detach()
    return [as_bytes(tensor).reshape(len(tensor), -1)], tensor.dtype


def _file(path: Path, tensor: Tensor) -> dict[str, Any] | None:
    """The segment of a file with one matrix; None if it is not clear which tensor of a .safetensors file it is."""
    size = path.stat().st_size
    if path.suffix == ".npy":
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) == (1, 0):
                np.lib.format.read_array_header_1_0(file)
            else:
                np.lib.format.read_array_header_2_0(file)
            offset = file.tell()  # the rows are what follows
    else:
        header, start = _header(path)
        names = [name for name, value in header.items() if value.get("shape") == list(tensor.shape)]
        if "activations" in names:
            names = ["activations"]
        if len(names) != 1:
            return None
        offset = start + header[names[0]]["data_offsets"][0]
    return {"path": str(path), "file_bytes": size, "offset": offset, "rows": len(tensor)}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset at which its tensors begin."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            check(length < 100_000_000, f"{path}: corrupt: a header of {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({error})") from None
    check(isinstance(header, dict), f"{path}: corrupt or not written by saefast (no header)")
    return header, 8 + length


def _shard(source: ShardSource, i: int) -> dict[str, Any]:
    """The segment of shard i, with the parts of the file that `saefast.files.digest` covers."""
    entry = source.index["shards"][i]
    path = source.folder / entry["file"]
    header, start = _header(path)
    try:
        checksum, meta = header.pop("__metadata__")["saefast"].split(" ", 1)
        parts, found, dtype, offset = [], None, None, 0
        for name in sorted(header):
            value = header[name]
            begin, end = value["data_offsets"]
            kind, shape = SAFETENSORS_DTYPES[value["dtype"]], tuple(value["shape"])
            parts.append((f"{name} {kind} {shape}\n".encode(), start + begin, end - begin))
            if name == "activations":
                found, dtype, offset = list(shape), kind, start + begin
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({error!r})") from None
    check(checksum == entry["sha256"], f"{path}: not the shard that {INDEX} lists (its SHA-256 differs)")
    want = ([entry["n_tokens"], source.d_in], f"torch.{source.index['dtype']}")
    fits = (found, str(dtype)) == want
    wanted = f"activations {want[0]} in {want[1]}, as {INDEX} says"
    check(fits, f"{path}: expected {wanted}, got {found} in {dtype}")
    place = {"path": str(path), "file_bytes": entry["bytes"], "offset": offset, "rows": entry["n_tokens"]}
    return place | {"meta": meta, "parts": parts, "sha256": checksum}


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a contiguous tensor, uint8; not a copy."""
    return tensor.flatten().view(torch.uint8).numpy()
