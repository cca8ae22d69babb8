"""Units that are a single token: on raw scores of activations they win, whatever else a dictionary has found."""

from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.select import parts_of
from saefast.interp.trial.windows import N_INTERVALS, Places, acts_at, apart, key

EXAMPLES = 20
SALT = 63  # of the draw; those of `windows.draw` are smaller


class SingleToken(NamedTuple):
    """Whether all examples share the same maximal token."""

    is_single: bool
    token: int  # id of the most frequent maximal token
    share: float  # of the examples that have it
    n: int  # examples


def single_token(
    places: Places, records: Records, latent: int, seed: int = 0, n: int = EXAMPLES
) -> SingleToken:
    """Draw n windows of the top interval that do not overlap, or as many as there are; the maximal token of a window is the one
    with the largest activation in it, of equal ones the first.

    A unit without a whole window in its top interval is none: False, -1, 0, 0.

    Raises:
        InputError: the unit is never active.
    """
    slots, acts = records.entries(latent)
    check(len(slots) > 0, f"latent: expected one that is active, latent {latent} of {records.folder} is not")
    is_top = parts_of(acts, float(acts.max()), N_INTERVALS) == N_INTERVALS - 1
    candidates = slots[is_top & places.is_place[slots]]
    drawn = apart(candidates, n, key(latent, seed, SALT), [], places.width)
    if not drawn:
        return SingleToken(False, -1, 0.0, 0)
    around = places.windows(np.asarray(drawn, np.int64))
    maximal = around[np.arange(len(around)), acts_at(slots, acts, around).argmax(axis=1)]
    counts = np.bincount(records.text.contexts.reshape(-1)[maximal])
    token = int(counts.argmax())
    return SingleToken(bool(counts[token] == len(drawn)), token, counts[token] / len(drawn), len(drawn))
