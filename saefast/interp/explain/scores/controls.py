"""What stands beside a score: what always 0, always 1, chance, and the explanations of other units get on the same windows.

    found = controls(detection, judge, explanations, examples)       # of units, in the same order
    mean_of(found["shuffled"]).balanced_accuracy                     # near 0.5, or the windows give the labels away

A judge that does no better than these says nothing. Always 0 and always 1 are exactly chance, by balanced accuracy and AUC and by
correlation, and are here so that a report can show it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples
from saefast.interp.explain.scores.classification import ClassificationScore
from saefast.interp.explain.scores.simulation import SimulationScore
from saefast.interp.explain.scores.statistics import Interval, mean_interval
from saefast.interp.records.text import mix
from saefast.interp.trial.ground_truth import another

CONTROLS = ("always 0", "always 1", "chance", "shuffled")
Score = TypeVar("Score")


class Always:
    """A judge that says the same of everything. (On padding, too: no score looks there.)"""

    def __init__(self, value: float) -> None:
        self.name, self.value = f"always {value:g}", value

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        return np.full(tokens.shape, float(self.value))

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        return np.full(len(tokens), float(self.value))

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        return self.detect(explanation, tokens)


class Chance:
    """A judge that draws lots: numbers from 0 to 1 by hashes of the seed, the explanation's unit and what it is asked, not of the text."""

    name = "chance"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        return self._lots(explanation, tokens.size, 0).reshape(tokens.shape)

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        return self._lots(explanation, len(tokens), 1)

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        return self._lots(explanation, len(tokens), 2)

    def _lots(self, explanation: Explanation, n: int, what: int) -> np.ndarray:
        key = mix(np.uint32(explanation.latent) ^ mix(np.uint32((4 * self.seed + what) % 2**32)))
        found: np.ndarray = mix(mix(np.arange(n, dtype=np.uint32)) ^ key) / 2.0**32
        return found


def controls(
    score: Callable[[Judge, Explanation, Examples], Score],
    judge: Judge,
    explanations: Sequence[Explanation],
    examples: Sequence[Examples],
    seed: int = 0,
) -> dict[str, list[Score]]:
    """The scores of each control on the windows of each unit, by name of CONTROLS.

    Args:
        score: `detection`, `fuzzing`, `simulation` or `saebench`.
        judge: asked of the explanations of other units; each unit has that of one other.
        explanations, examples: of the same n units in the same order, at least 2.
        seed: who gets whose, and of the lots.

    Raises:
        InputError: other lengths, fewer than 2 units, or what `score` raises.
    """
    check(len(explanations) == len(examples), f"examples: expected {len(explanations)}, got {len(examples)}")
    found: dict[str, list[Score]] = {}
    judges: tuple[Judge, ...] = (Always(0), Always(1), Chance(seed))
    for one in judges:
        found[one.name] = [score(one, *pair) for pair in zip(explanations, examples, strict=True)]
    others = [explanations[i] for i in another(len(explanations), seed)]
    found["shuffled"] = [score(judge, *pair) for pair in zip(others, examples, strict=True)]
    return found


class MeanClassification(NamedTuple):
    balanced_accuracy: Interval  # the mean over units, with an interval from a bootstrap over units
    auc: Interval
    n_units: int  # with windows of both labels; the others are not in the means


def mean_of(scores: Sequence[ClassificationScore], seed: int = 0) -> MeanClassification:
    """Over units. Raises InputError if no unit has windows of both labels."""
    both = [one for one in scores if one.n_positive and one.n_negative]
    check(bool(both), f"scores: expected units with windows of both labels, got {len(scores)} without")
    return MeanClassification(
        mean_interval(np.asarray([one.balanced_accuracy.value for one in both]), seed),
        mean_interval(np.asarray([one.auc.value for one in both]), seed),
        len(both),
    )


def mean_correlation(scores: Sequence[SimulationScore], seed: int = 0) -> Interval:
    """Over units, those whose correlation is not defined as 0. Raises InputError if there are none."""
    return mean_interval(np.asarray([one.ev_correlation_score for one in scores]), seed)


def overlap(seen: Mapping[int, np.ndarray], examples: Sequence[Examples]) -> float:
    """The share of tokens of scored windows that are among the slots that the explainer of their unit saw; it has to be 0.

    Args:
        seen: by unit, slots [n] int64.
    """
    both = total = 0
    for one in examples:
        slots = one.slots[:, None] + np.arange(one.tokens.shape[1])
        both += int(np.isin(slots, seen[one.latent]).sum())
        total += slots.size
    return both / total if total else 0.0
