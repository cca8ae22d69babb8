"""The intruder: k windows with marks, in all but one of which the unit is active on the marked tokens. Which one is it?

As delphi has it. No explanation is needed: the score says whether the windows of a unit have something in common, for whoever looks at
them. All windows of a trial but the intruder are of one quantile, so that a strong one does not betray itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain.examples import Tiles, by_quantile, inactive
from saefast.interp.explain.scores.classification import N, fuzzing_marks, random_marks
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.statistics import Interval, wilson
from saefast.interp.records.text import mix

K = 5  # windows of a trial
N_PARTS = 10


class IntruderTrial(NamedTuple):
    tokens: np.ndarray  # [k, L] int32
    marked: np.ndarray  # [k, L] bool
    intruder: int  # which of the k it is
    part: int  # the quantile of the others, 0 the weakest


class IntruderScore(NamedTuple):
    share: Interval  # of the trials that were answered right, by Wilson's score
    chance: float  # 1 / k
    n: int


def intruder_trials(
    tiles: Tiles, latent: int, n: int = N, k: int = K, near: Sequence[int] = (), seed: int = 0
) -> list[IntruderTrial]:
    """n trials, each with an intruder of its own; the quantiles take turns.

    A unit that is active in few windows has fewer quantiles, so that each has at least k - 1, and none at all if there are fewer than
    k - 1. In the intruder as many tokens are marked as the unit is active on in the others on average, rounded down, but at least one.

    Args:
        tiles: of 32 tokens, of the split "score".
        near: see `saefast.interp.explain.examples.inactive`.

    Raises:
        InputError: k below 2, or windows of the split that explainers see.
    """
    check(k >= 2, f"k: expected at least 2 windows, got {k}")
    n_parts = min(N_PARTS, len(tiles.peaks(latent)[0]) // (k - 1))
    intruders = inactive(tiles, latent, n, seed, near)
    check_held_out(intruders)
    if n_parts == 0:
        return []
    others = by_quantile(tiles, latent, max(N, (k - 1) * n_parts), n_parts, seed)
    marks, counts = fuzzing_marks(others), (others.acts > 0).sum(axis=1)
    rows_of = [(others.part == part).nonzero()[0] for part in range(n_parts)]
    found = []
    for i in range(len(intruders)):
        part, key = i % n_parts, mix(np.uint32(i) ^ mix(np.uint32(latent) ^ mix(np.uint32(16 * seed + 15))))
        order = np.argsort(mix(others.slots[rows_of[part]].astype(np.uint32) ^ key), kind="stable")
        chosen = rows_of[part][order[: k - 1]]
        wrong = random_marks(intruders.take([i]), max(1, int(counts[chosen].mean())), seed)
        at = int(key) % k
        found.append(
            IntruderTrial(
                np.insert(others.tokens[chosen], at, intruders.tokens[i], axis=0),
                np.insert(marks[chosen], at, wrong[0], axis=0),
                at,
                part,
            )
        )
    return found


def intruder_score(trials: Sequence[IntruderTrial], answers: Sequence[int] | np.ndarray) -> IntruderScore:
    """How often the answers [n], from 0 to k - 1, are right; any other answer is wrong.

    Raises:
        InputError: not one answer for each trial.
    """
    check(len(answers) == len(trials), f"answers: expected {len(trials)}, got {len(answers)}")
    right = sum(int(answer) == trial.intruder for answer, trial in zip(answers, trials, strict=True))
    k = len(trials[0].tokens) if trials else K
    return IntruderScore(wilson(right, len(trials)), 1 / k, len(trials))
