"""What is done to one argument of a right call: another dtype, shape, address or layout, other numbers, no array at all."""

import math
from random import Random
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
    5,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
] * 8 + [63]  # so many threads take long to begin and to end
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


def damaged(rng: Random, args: dict[str, Any]) -> dict[str, Any]:
    """`args` with one or two of them changed, in 3 of 10 cases so that they stay right."""
    if rng.random() < 0.03:
        return overlapping(rng, args)
    changed, change = dict(args), renewed if rng.random() < 0.3 else other
    for _ in range(1 + (rng.random() < 0.5)):
        name = rng.choice(list(args))
        changed[name] = change(rng, changed[name])
    return changed


def overlapping(rng: Random, args: dict[str, Any]) -> dict[str, Any]:
    """`args` with an array in the memory of another one of its dtype that is large enough, from any place of it on."""
    arrays = [name for name, value in args.items() if isinstance(value, np.ndarray) and value.size]
    held = [one for value in args.values() for one in within(value)]
    for name in rng.sample(arrays, len(arrays)):
        old = args[name]
        fits = [one for one in held if one is not old and one.dtype == old.dtype and one.size >= old.size]
        if fits:
            flat = rng.choice(fits).reshape(-1)
            at = rng.randrange(flat.size - old.size + 1)
            return args | {name: flat[at : at + old.size].reshape(old.shape)}
    return dict(args)


def within(value: Any) -> list[np.ndarray]:
    """The arrays that an argument is or has."""
    if isinstance(value, (tuple, list)):
        return [array for one in value for array in within(one)]
    return [value] if isinstance(value, np.ndarray) and not value.dtype.hasobject else []


def renewed(rng: Random, value: Any) -> Any:
    """`value` with other numbers in every array of floats or bytes, of the same signs."""
    if isinstance(value, tuple):
        return tuple(renewed(rng, one) for one in value)
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "fu":
        at = rng.randrange(value.size)
        value = np.concatenate([value.ravel()[at:], value.ravel()[:at]]).reshape(value.shape)
        return value if value.dtype.kind == "u" else value * value.dtype.type(0.5 + rng.random())
    return value


def other(rng: Random, value: Any) -> Any:
    chance = rng.random()
    if chance < 0.05:
        return rng.choice(OTHERS)
    if (
        isinstance(value, np.ndarray) and not value.dtype.hasobject
    ):  # of Python's objects not all can be converted
        return numbers(rng, value) if chance < 0.5 else layout(rng, value)
    if isinstance(value, dict) and value:
        return damaged(rng, value)
    if isinstance(value, (tuple, list)) and value:
        at = rng.randrange(len(value))
        if chance < 0.15:
            return type(value)(value[:at])
        return type(value)([*value[:at], other(rng, value[at]), *value[at + 1 :]])
    if isinstance(value, bytes):
        at = rng.randrange(len(value) + 1)
        return rng.choice([value[:at], value[at:], value[at:] + value, bytearray(value[at:])])
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.randrange(-2, 3) if chance < 0.5 else rng.choice(INTS)
    return rng.choice(OTHERS)


def numbers(rng: Random, array: np.ndarray) -> np.ndarray:
    """The same array with some numbers that are out of range, not finite, twice there, or in another order."""
    array = array.copy()
    if array.size == 0:
        return array
    flat, chance = array.reshape(-1), rng.random()
    at = [rng.randrange(array.size) for _ in range(rng.randrange(1, 4))]
    if chance < 0.3 or array.dtype.kind not in "iuf":
        flat[:] = np.concatenate([flat[at[0] :], flat[: at[0]]])
    elif chance < 0.5:
        flat[at] = flat[rng.randrange(array.size)]
    elif array.dtype.kind == "f":
        flat[at] = rng.choice(FLOATS)
    else:
        info = np.iinfo(array.dtype)
        least, most = max(-1, info.min), min(array.size, info.max)
        flat[at] = rng.choice([info.min, least, 0, most, flat.max(), info.max])
    return array


def layout(rng: Random, array: np.ndarray) -> Any:
    kind = rng.choice(LAYOUTS)
    axis = rng.randrange(max(1, array.ndim))
    if kind == "dtype":
        return array.astype(rng.choice(["f8", "f2", "i8", "i4", "f4", "u4", "u1", "?", "c8", "O"]))
    if kind in ("fewer", "more") and array.ndim:
        sizes = list(array.shape)
        sizes[axis] = max(0, sizes[axis] + (1 if kind == "more" else -1))
        return np.resize(array, sizes) if array.size else zeros(sizes, array.dtype)
    if kind == "empty":
        sizes = [rng.choice((0, 1, 2**20, 2**40)) for _ in array.shape]
        sizes[axis : axis + 1] = [0]  # no memory is behind it, however large the others are
        return zeros(sizes, array.dtype)
    if kind == "dimension":
        return array[None] if rng.random() < 0.5 else array.reshape(-1)
    if kind == "strided" and array.size:  # NumPy repeats each of 2**40 rows that have no numbers
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == "odd":  # an address that is no multiple of the size of a number
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
        return list(array[:1000])  # one without numbers may have 2**40 rows
    return None


def zeros(sizes: list[int], dtype: np.dtype) -> np.ndarray:
    """Zeros of these sizes, or with 1 for each above 1 where they would take too much memory or wrap around."""
    is_small = sum(size > 1 for size in sizes) < 2 and math.prod(sizes) <= 2**20
    return np.zeros(sizes if is_small else [min(size, 1) for size in sizes], dtype)
