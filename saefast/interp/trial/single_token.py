"""Units that are a single token: on raw scores of activations they win, whatever else a dictionary has found."""

from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.select import parts_of
from saefast.interp.trial.windows import N_INTERVALS, Places, acts_at, apart, key

EXAMPLES = 20
FEWEST = 5
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

    With one or two examples every unit would be a single token: where the top interval has fewer than 5, the strongest windows
    below it are taken besides. A unit without any window is none: False, -1, 0, 0.

    Raises:
        InputError: the unit is never active.
    """
    slots, acts = records.entries(latent)
    check(len(slots) > 0, f"latent: expected one that is active, latent {latent} of {records.folder} is not")
    is_top = parts_of(acts, float(acts.max()), N_INTERVALS) == N_INTERVALS - 1
    here = places.is_place[slots]
    drawn = apart(slots[is_top & here], n, key(latent, seed, SALT), [], places.width)
    below = (here & ~is_top).nonzero()[0]
    for slot in slots[below[np.argsort(-acts[below], kind="stable")]].tolist():
        if len(drawn) >= min(FEWEST, n):
            break
        if all(abs(slot - other) >= places.width for other in drawn):
            drawn.append(slot)
    if not drawn:
        return SingleToken(False, -1, 0.0, 0)
    around = places.windows(np.asarray(drawn, np.int64))
    maximal = around[np.arange(len(around)), acts_at(slots, acts, around).argmax(axis=1)]
    counts = np.bincount(records.text.contexts.reshape(-1)[maximal])
    token = int(counts.argmax())
    return SingleToken(bool(counts[token] == len(drawn)), token, counts[token] / len(drawn), len(drawn))
