"""Damage to the bytes of a file, by kinds, each from a seeded generator: what disks, downloads and hands do."""

import json
import random
from collections.abc import Callable
from typing import Any

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
