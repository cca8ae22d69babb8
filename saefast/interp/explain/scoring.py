"""All scores of a unit that are asked for, on windows that no explainer has seen.

    scoring = Scoring(records, judge, ("simulation", "detection", "fuzz"))
    scoring(17, explanation).scores["simulation"]["ev_correlation_score"]

The windows of a unit are the same for each explanation, so that those of other units, as controls, are tried on the same text.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.every import Scored, Scores
from saefast.interp.explain.examples import Examples, Tiles
from saefast.interp.explain.scores.classification import detection, detection_examples, fuzzing
from saefast.interp.explain.scores.controls import Always
from saefast.interp.explain.scores.simulation import simulate_and_score
from saefast.interp.explain.scores.statistics import DRAWS, Interval
from saefast.interp.records import Records

LONG, SHORT = 64, 32  # tokens of a window: of simulation, of yes or no
FEWEST = 5  # windows in which a unit is active, below which it is not scored
ON_SCALE = ("rsquared_score", "absolute_dev_explained_score")
UNIT = "neuron_activations"  # what OpenAI's files call the unit of the real ones
Score = Callable[[Explanation, Examples], NamedTuple]


class Scoring:
    """
    Args:
        names: "simulation", "detection", "fuzz", or one of `more`.
        near: [F, n] of each unit the units that are like it, -1: none; windows in which one of them is active make detection harder.
        more: scores by their names, of windows as detection has them: see `saefast.interp.explain.more`.
        without: names of those that look at no explanation.
        draws: of each bootstrap; 0: there are no intervals.
        random_only: whether simulation is scored on random windows alone, too, which asks the judge for as many again.
        scale: what OpenAI's files call the unit of the judge's predictions.

    Raises:
        InputError: an unknown score, or no document for scoring that is long enough.
    """

    def __init__(
        self,
        records: Records,
        judge: Judge,
        names: Sequence[str],
        *,
        near: np.ndarray | None = None,
        more: Mapping[str, Score] | None = None,
        without: Sequence[str] = (),
        draws: int = DRAWS,
        random_only: bool = True,
        scale: str = UNIT,
        seed: int = 0,
    ) -> None:
        self.judge: Judge = judge
        self.near, self.draws, self.seed = near, draws, seed
        self.random_only, self.scale, self.without = random_only, scale, without
        of_windows = {**self._judged(judge), **(more or {})}
        known = ("simulation", *of_windows)
        unknown = [name for name in names if name not in known]
        check(
            not unknown and len(names) > 0, f"score: expected some of {', '.join(known)}, got {list(names)}"
        )
        self.simulates = "simulation" in names
        self.of_windows = {name: of_windows[name] for name in names if name != "simulation"}
        self.long = Tiles(records, "score", LONG)
        self.short = Tiles(records, "score", SHORT) if self.of_windows else None

    def _judged(self, judge: Judge) -> dict[str, Score]:
        """Scores of windows by a judge."""
        return {
            name: partial(score, judge, draws=self.draws, seed=self.seed)
            for name, score in (("detection", detection), ("fuzz", fuzzing))
        }

    def controls(self, latent: int, other: Explanation) -> dict[str, Scores]:
        """What the explanation of another unit gets, and judges that always say the same. Scores that look at no explanation have no
        controls of the first kind, those of `more` none of the second."""
        shuffled = copy(self)
        shuffled.of_windows = {n: score for n, score in self.of_windows.items() if n not in self.without}
        found = {"shuffled": shuffled(latent, other).scores}
        for value in (0, 1):
            always = copy(self)
            always.judge, judged = Always(value), self._judged(Always(value))
            always.of_windows = {name: judged[name] for name in self.of_windows if name in judged}
            found[always.judge.name] = always(latent, other).scores
        return found

    def __call__(self, latent: int, explanation: Explanation) -> Scored:
        active, _ = self.long.peaks(latent)
        if len(active) < FEWEST:
            never, few = (
                "never active in the documents for scoring",
                f"active in fewer than {FEWEST} windows of them",
            )
            return Scored({}, few if len(active) else never, [])
        scores: Scores = {}
        simulations: list[dict[str, Any]] = []
        if self.simulates:
            scores["simulation"], simulations = self._simulation(latent, explanation)
        if self.short is not None:
            near = [] if self.near is None else [int(one) for one in self.near[latent] if one >= 0]
            examples = detection_examples(self.short, latent, near, self.seed)
            for name, score in self.of_windows.items():
                scores[name] = plain(score(explanation, examples))
        return Scored(scores, None, simulations)

    def _simulation(
        self, latent: int, explanation: Explanation
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        found = simulate_and_score(
            self.judge,
            explanation,
            self.long,
            latent,
            draws=self.draws,
            seed=self.seed,
            **({} if self.random_only else {"n_random_only": 0}),
        )
        both = found.top_and_random
        numbers: dict[str, Any] = {"ev_correlation_score": both.ev_correlation_score}
        if self.draws:
            numbers |= {
                "ev_correlation_score_low": both.interval.low,
                "ev_correlation_score_high": both.interval.high,
            }
        numbers |= {"spearman": both.spearman, "defined": both.defined}
        if self.scale == UNIT:  # from 0 to 10 is another scale, on which these say nothing
            numbers |= {name: getattr(both, name) for name in ON_SCALE}
        if self.random_only:
            numbers["random_only"] = found.random_only.ev_correlation_score
        numbers["top_only"] = found.top_only.ev_correlation_score
        simulations = [
            {"slot": slot, "length": LONG, "expected": short(expected), "scale": self.scale}
            for slot, expected in zip(found.examples.slots.tolist(), found.predicted, strict=True)
        ]
        return {name: rounded(value) for name, value in numbers.items()}, simulations


def plain(score: NamedTuple) -> dict[str, Any]:
    """A score as JSON: the ends of an interval beside its value; what is undefined, and tables, left out."""
    found: dict[str, Any] = {}
    for name, value in score._asdict().items():
        if isinstance(value, Interval):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, bool | int | float | str):
            found[name] = value
    defined = {
        name: value for name, value in found.items() if not isinstance(value, float) or isfinite(value)
    }
    return {name: rounded(value) for name, value in defined.items()}


def rounded(value: Any) -> Any:
    """Six digits say all that a score does; a line of JSON is shorter."""
    return round(value, 6) if isinstance(value, float) else value


def short(values: np.ndarray) -> list[float]:
    """Four digits each."""
    return [float(f"{value:.4g}") for value in values.tolist()]
