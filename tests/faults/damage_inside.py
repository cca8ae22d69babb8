"""Damage inside of files that are whole to the library that reads them: entries of headers, tensors, archives."""

import io
import json
import random
import struct
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors

from tests.faults.damage import BYTES, Damage, json_file, json_tree


def header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header, which is JSON, has another entry, and the right length."""
    (size,) = struct.unpack("<Q", data[:8])
    tree = json.loads(data[8 : 8 + size])
    text = json.dumps(json_tree(tree, rng)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def other_values(tensor: torch.Tensor, rng: random.Random) -> Any:
    """The tensor with other contents, another dtype, or another shape."""
    choice = rng.randrange(12)
    if choice < 3 and tensor.numel() and tensor.is_floating_point():
        made = tensor.clone().reshape(-1)
        made[rng.randrange(made.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
        return made.reshape(tensor.shape)
    if choice < 6:
        kinds = [
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int8,
            torch.int64,
            torch.bool,
            torch.complex64,
        ]
        kinds += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8]
        return tensor.to(rng.choice(kinds))
    shapes = [tensor[None], tensor.reshape(-1), tensor[:0] if tensor.ndim else tensor[None][:0]]
    shapes += [tensor.T.contiguous() if tensor.ndim == 2 else tensor[None, None], torch.zeros(())]
    shapes += [
        torch.cat([tensor, tensor]) if tensor.ndim else torch.zeros(2),
        -tensor.float(),
        tensor.float() * 1e38,
    ]
    return rng.choice(shapes)


def values(data: bytes, rng: random.Random) -> bytes:
    """A whole, readable safetensors file with another tensor, one less or one more."""
    tensors = safetensors.load(data)
    (size,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
    return safetensors.save(_others(tensors, rng), metadata)


def _others(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    names = [name for name, value in tensors.items() if isinstance(value, torch.Tensor)]
    if not names:
        return tensors | {"x": torch.zeros(2)}
    name, kind = rng.choice(names), rng.random()
    if kind < 0.8:
        return tensors | {name: other_values(tensors[name], rng)}
    if kind < 0.9:
        return {key: value for key, value in tensors.items() if key != name}
    return tensors | {name + rng.choice(["_", ".x"]): torch.zeros(2)}


def pickled(data: bytes, rng: random.Random) -> bytes:
    """A whole file of `torch.save` with other values: tensors, and things that are none."""
    found = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.3:
        odd = [
            None,
            3,
            "x",
            [],
            {},
            1e400,
            torch.zeros(3).to_sparse(),
            torch.zeros(2, 3).expand(2, 3),
            {"ae": 3},
            b"x",
        ]
        odd += [torch.empty(3, device="meta"), torch.nn.Parameter(torch.zeros(3)), {1: 2}, {"ae": {"k": 1}}]
        value = rng.choice(odd)
        found = value if rng.random() < 0.3 else found | {rng.choice(list(found)): value}
    else:
        found = _others(found, rng)
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


def arrays(data: bytes, rng: random.Random) -> bytes:
    """A whole .npz with another array: other dtypes of numpy, shapes, values."""
    with np.load(io.BytesIO(data)) as file:
        found = {name: file[name] for name in file.files}
    name = rng.choice(list(found))
    array = found[name]
    odd = [array.astype(kind) for kind in ("f2", "f8", ">f4", "i4", "?", "c8", "g", "U5", "S3")]
    odd += [
        array.T,
        array[None],
        array[:0],
        np.full_like(array, np.nan),
        np.array(3.0),
        np.asfortranarray(array),
    ]
    out = io.BytesIO()
    np.savez(out, **(found | {rng.choice([name, name, name + "_"]): rng.choice(odd)}))
    return out.getvalue()


def archived(data: bytes, rng: random.Random) -> bytes:
    """A zip archive (.pt, .npz) that is whole, with damage inside of one of its entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        entries = archive.infolist()
        chosen = rng.choice([entries[0], rng.choice(entries)])
        for entry in entries:
            content = archive.read(entry)
            if entry is chosen:
                if rng.random() < 0.1:
                    continue
                content = rng.choice(BYTES)(content, rng)
            made.writestr(entry.filename, content)
    return out.getvalue()


def kinds_for(name: str) -> list[Damage]:
    """The kinds of damage that make sense for a file of this name, those of its format as often as those of bytes."""
    special: dict[str, list[Damage]] = {
        ".json": [json_file],
        ".safetensors": [header, values],
        ".pt": [archived, pickled],
        ".pth": [archived, pickled],
        ".npz": [archived, arrays],
    }
    own = special.get(name[name.rfind(".") :], [])
    return own * (len(BYTES) // max(1, len(own))) + BYTES
