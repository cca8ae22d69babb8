"""Damage to the bytes of a file, by kinds, each from a seeded generator: what disks, downloads and hands do."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors

Damage = Callable[[bytes, random.Random], bytes]


def place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A range of bytes: short, or long; more often near the beginning, where the headers are."""
    start = rng.randrange(max(1, len(data)))
    start = rng.randrange(max(1, min(start, 400))) if rng.random() < 0.5 else start
    return start, start + rng.choice([1, 2, 4, 8, 64, 1 + rng.randrange(max(1, len(data) // 2))])


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if out:
            out[place(data, rng)[0] % len(out)] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([0, 1, 8, len(data) // 2, len(data) - 1, rng.randrange(len(data) + 1)])]


def cut_front(data: bytes, rng: random.Random) -> bytes:
    return data[rng.choice([1, 8, rng.randrange(len(data) + 1)]) :]


def grow(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", b"\n", b" ", b"}", bytes(1000), rng.randbytes(100), data])


def swap(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([1, 4, 16, max(1, len(data) // 8)])
    a, b = sorted(rng.randrange(max(1, len(data) - size + 1)) for _ in range(2))
    if b < a + size:
        return data
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def zero(data: bytes, rng: random.Random) -> bytes:
    start, end = place(data, rng)
    end = min(end, len(data))
    return data[:start] + bytes(max(0, end - start)) + data[max(end, start) :]


def noise(data: bytes, rng: random.Random) -> bytes:
    start, end = place(data, rng)
    end = min(end, len(data))
    return data[:start] + rng.randbytes(max(0, end - start)) + data[max(end, start) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    start, end = place(data, rng)
    return data[:start] + rng.choice([rng.randbytes(min(64, end - start)), data[start:end]]) + data[start:]


def remove(data: bytes, rng: random.Random) -> bytes:
    start, end = place(data, rng)
    return data[:start] + data[end:]


BYTES: list[Damage] = [flip, flip, cut, cut_front, grow, swap, zero, noise, insert, remove]

DEEP = "[" * 200_000
ODD: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [1],
    {"a": 1},
    [[]],
    -1,
    0,
    1,
    2,
    0.5,
    -0.5,
    1e308,
    2**31,
    2**63,
    10**30,
]
ODD += [
    -(10**30),
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "x",
    "a" * 10_000,
    "../../../etc/passwd",
    "/dev/zero",
]
ODD += [
    "\0",
    "nan",
    "1",
    "float64",
    "bfloat16",
    "torch.float32",
    "relu",
    "topk",
    "jumprelu",
    "none",
    "layer_norm",
    3.0,
]
ODD += [
    [-1],
    [10**18, 10**18],
    ["F32"],
    [0, 10**15],
    "F64",
    "F16",
    "BF16",
    "I8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "C64",
    "XX",
]


def json_tree(tree: Any, rng: random.Random) -> Any:
    """The tree with one entry changed: another value, no entry, another name, one more, or another root."""
    tree = json.loads(json.dumps(tree))
    nodes: list[Any] = []

    def walk(node: Any) -> None:
        if isinstance(node, (dict, list)) and node:
            nodes.append(node)
            for entry in list(node.values()) if isinstance(node, dict) else node[:20]:
                walk(entry)

    walk(tree)
    if not nodes or rng.random() < 0.02:
        return rng.choice(ODD)
    node = rng.choice([nodes[0], rng.choice(nodes)])
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.random()
    if kind < 0.7:
        value = node[key]
        near = (
            [value * 2, value + 1, -value, float(value), str(value), [value], value / 3]
            if is_number(value)
            else ODD
        )
        node[key] = rng.choice(rng.choice([ODD, near]))
    elif kind < 0.8:
        del node[key]
    elif isinstance(node, list):
        node.append(rng.choice(ODD))
    elif kind < 0.9:
        node[rng.choice(["", "x", str(key) + "_", str(key).upper()])] = node.pop(key)
    else:
        node[rng.choice(["x", "metadata", "k", "d_sae", "layers", "files", "checksum"])] = rng.choice(ODD)
    return tree


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def json_file(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return rng.choice([DEEP, '{"k": ' + "9" * 5000 + "}", '{"k": ' + DEEP, "\ufeff{}", "null"]).encode()
    tree = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = json_tree(tree, rng)
    return json.dumps(tree).encode()


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
