"""What is done to one argument of a right call: another dtype, shape, address or layout, other numbers, no array at all."""

from typing import Any

import numpy as np

INTS = [
    -(2**63),
    -(2**31),
    -1,
    0,
    1,
    2,
    3,
    63,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
]
FLOATS = [0.0, -0.0, 1e-45, -1e38, 3e38, float("inf"), -float("inf"), float("nan")]
OTHERS: list[Any] = [None, "auto", "", "no", b"\0", 1.5, True, (), [], {}, object(), lambda *_: int("x")]
LAYOUTS = [
    "dtype",
    "fewer",
    "more",
    "empty",
    "dimension",
    "none",
    "strided",
    "odd",
    "locked",
    "swapped",
    "list",
]


def damaged(rng: np.random.Generator, args: dict[str, Any]) -> dict[str, Any]:
    """`args` with one or two of them changed."""
    changed = dict(args)
    for _ in range(int(rng.integers(1, 3))):
        name = list(args)[int(rng.integers(len(args)))]
        changed[name] = other(rng, changed[name])
    return changed


def other(rng: np.random.Generator, value: Any) -> Any:
    chance = rng.random()
    if chance < 0.05:
        return OTHERS[int(rng.integers(len(OTHERS)))]
    if isinstance(value, np.ndarray):
        return numbers(rng, value) if chance < 0.5 else layout(rng, value)
    if isinstance(value, (tuple, list)) and value:
        at = int(rng.integers(len(value)))
        if chance < 0.15:
            return type(value)(value[:at])
        return type(value)([*value[:at], other(rng, value[at]), *value[at + 1 :]])
    if isinstance(value, float):
        return FLOATS[int(rng.integers(len(FLOATS)))]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + int(rng.integers(-2, 3)) if chance < 0.5 else INTS[int(rng.integers(len(INTS)))]
    return OTHERS[int(rng.integers(len(OTHERS)))]


def numbers(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """The same array with some numbers that are out of range, not finite, twice there, or in another order."""
    array = array.copy()
    if array.size == 0:
        return array
    flat = array.reshape(-1)
    at = rng.integers(array.size, size=int(rng.integers(1, 4)))
    if array.dtype.kind == "f":
        flat[at] = FLOATS[int(rng.integers(len(FLOATS)))]
    elif array.dtype.kind not in "iu" or rng.random() < 0.3:
        flat[:] = rng.permutation(flat)
    elif rng.random() < 0.3:
        flat[at] = flat[int(rng.integers(array.size))]
    else:
        info = np.iinfo(array.dtype)
        flat[at] = [info.min, max(-1, info.min), 0, min(array.size, info.max), flat.max(), info.max][
            int(rng.integers(6))
        ]
    return array


def layout(rng: np.random.Generator, array: np.ndarray) -> Any:
    kind = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    axis = int(rng.integers(max(1, array.ndim)))
    if kind == "dtype":
        return array.astype(str(rng.choice(["f8", "f2", "i8", "i4", "f4", "u4", "u1", "?", "c8", "O"])))
    if kind in ("fewer", "more") and array.ndim:
        sizes = list(array.shape)
        sizes[axis] = max(0, sizes[axis] + (1 if kind == "more" else -1))
        return np.resize(array, sizes) if array.size else np.zeros(sizes, array.dtype)
    if kind == "empty":
        sizes = [(0, 1, 2**20, 2**40)[int(rng.integers(4))] for _ in array.shape]
        sizes[axis : axis + 1] = [0]  # no memory is behind it, however large the others are
        return np.zeros(sizes if sum(s > 0 for s in sizes) < 2 else [min(s, 1) for s in sizes], array.dtype)
    if kind == "dimension":
        return array[None] if rng.random() < 0.5 else array.reshape(-1)
    if kind == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    if kind == "odd" and not array.dtype.hasobject:  # an address that is no multiple of the size of a number
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape)
    if kind == "locked":
        array = array.copy()
        array.flags.writeable = False
        return array
    if kind == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if kind == "list":
        return list(array)
    return None
