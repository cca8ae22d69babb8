"""Which calls are made: the first of a group is right, the others are the same with damaged arguments."""

import random
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from tests.faults import boundary_calls, boundary_encoder, boundary_records, boundary_stream
from tests.faults.boundary_calls import Call
from tests.faults.boundary_damage import damaged

KINDS = boundary_calls.KINDS | boundary_encoder.KINDS | boundary_stream.KINDS | boundary_records.KINDS
SHARES = np.array(list(KINDS.values())) / sum(KINDS.values())


def variants(seed: int, group: int, lane: int) -> Iterator[tuple[Call, dict[str, Any]]]:
    """The right call, then it with damaged arguments, without an end. No two of them have the same."""
    rng = np.random.default_rng((seed, group, lane))
    call = list(KINDS)[rng.choice(len(KINDS), p=SHARES)](rng)
    yield call, call.args
    draws = random.Random(int(rng.integers(2**62)))
    made: set[Hashable] = {None}
    while args := call.args:
        while (found := difference(args, call.args)) in made:
            args = damaged(draws, call.args)
        made.add(found)
        yield call, args


def difference(new: Any, old: Any) -> Hashable:
    """None if they are equal as arguments, or the parts in which `new` is not `old`."""
    if isinstance(new, (dict, tuple, list)) and type(new) is type(old) and len(new) == len(old):
        keys = new if isinstance(new, dict) else range(len(new))
        changed = [key for key in keys if new[key] is not old[key]]
        return tuple((key, d) for key in changed if (d := difference(new[key], old[key])) is not None) or None
    return None if new is old or (found := written(new)) == written(old) else found


def written(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        flags = value.flags
        return value.dtype, value.shape, value.strides, flags.aligned, flags.writeable, value.tobytes()
    if isinstance(value, dict):
        return dict, *((key, written(one)) for key, one in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), *map(written, value)
    return type(value), repr(value)
