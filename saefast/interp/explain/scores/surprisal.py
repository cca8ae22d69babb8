"""Does an explanation make the texts that a unit is active on less surprising to a language model than other texts? (Paulo et al. 2024,
"Automatically interpreting millions of features in large language models", arXiv 2410.13928.)

    gain of a window = mean loss per token after a sentence that says nothing - after the explanation, nats

An explanation of another unit helps too where it only says what all text is like, so compare with one (`shuffled`).
"""

from typing import NamedTuple, Protocol

import numpy as np

from saefast.interp.explain import Explanation
from saefast.interp.explain.examples import Examples
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.separation import separation, sides
from saefast.interp.explain.scores.statistics import Interval, interval

NOTHING_KNOWN = Interval(0.0, float("-inf"), float("inf"))


class Reader(Protocol):
    """A judge that reads texts after an explanation, `saefast.interp.explain.asked.judge.ModelJudge`."""

    def surprisal(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """[n, L] ids -> [n] float64, how much an explanation helps with each window: nats per token, positive where it does."""
        ...


class SurprisalScore(NamedTuple):
    auc: Interval  # of the gain, for being active: 0.5 by chance
    difference: Interval  # of the mean gains, active - inactive, in nats per token: 0 by chance
    active: float  # mean gain of windows in which the unit is active, 0 without any
    inactive: float
    n_active: int
    n_inactive: int


def surprisal_score(
    reader: Reader, explanation: Explanation, examples: Examples, *, seed: int = 0
) -> SurprisalScore:
    """Of windows in which the unit is active and others.

    Raises:
        CannotAnswer: a model that gives no probabilities inside prompts.
        InputError: windows of the split "explain", or gains that are not finite.
    """
    check_held_out(examples)
    return of_gains(examples.active, reader.surprisal(explanation, examples.tokens), seed=seed)


def of_gains(active: np.ndarray, gains: np.ndarray, *, seed: int = 0) -> SurprisalScore:
    """The score from the gains [n] of windows, of which those are active [n] bool. Where one kind is missing nothing is known.

    Raises:
        InputError: arrays of other lengths, or numbers that are not finite.
    """
    active, gains = np.asarray(active, bool), np.asarray(gains, np.float64)
    auc, difference = separation(active, gains, seed=seed), NOTHING_KNOWN
    if active.any() and not active.all():
        difference = interval(_difference, (active, gains), groups=active, seed=seed)
    return SurprisalScore(auc, difference, *sides(active, gains))


def _difference(counts: np.ndarray, active: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Of samples in which each window is so many times."""
    ones, others = ((counts @ (side * gains)) / (counts @ side) for side in (active, ~active))
    found: np.ndarray = ones - others
    return found
