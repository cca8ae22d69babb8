"""From the scale of a prediction to that of the unit, as OpenAI's neuron explainer does it.

    to_unit = calibration(judge, explanation, other_windows, scored=examples)
    simulation_score(examples.acts, to_unit(judge.simulate(explanation, examples.tokens)))

Needed where simulated activations stand in for the real ones, and for the scores of squares and absolute deviations. A linear one with
a positive slope does not change a correlation. The slope is negative where, on the windows it is fitted on, the unit does the
opposite of what was predicted, and 0 where the prediction is the same everywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples


class Linear(NamedTuple):
    slope: float
    intercept: float

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        return self.slope * np.asarray(predicted, np.float64) + self.intercept


class Percentiles(NamedTuple):
    """A predicted value becomes the real one of the same rank; what lies between two of those it was fitted on is interpolated, and
    what lies outside is that of the last one."""

    predicted: np.ndarray  # [m] float64, ascending, each once
    true: np.ndarray  # [m] float64, ascending

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        return np.interp(np.asarray(predicted, np.float64), self.predicted, self.true)


Calibration = Linear | Percentiles


def linear(true: np.ndarray, predicted: np.ndarray) -> Linear:
    """Least squares of real activations [n] from predicted ones [n].

    Raises:
        InputError: other shapes, or none.
    """
    x, y = _flat(predicted, true)
    around = x - x.mean()
    slope = float((around * (y - y.mean())).sum() / (around**2).sum()) if np.ptp(x) else 0.0
    return Linear(slope, float(y.mean() - slope * x.mean()))


def percentiles(true: np.ndarray, predicted: np.ndarray) -> Percentiles:
    """The values [n] of both in their order. Of predictions that are equal the one of the highest rank counts, as in OpenAI's.

    Raises:
        InputError: other shapes, or none.
    """
    x, y = (np.sort(part) for part in _flat(predicted, true))
    is_last = np.append(x[1:] != x[:-1], True)
    return Percentiles(x[is_last], y[is_last])


def calibration(
    judge: Judge, explanation: Explanation, examples: Examples, scored: Examples, how: str = "linear"
) -> Calibration:
    """Fit one on windows that are not scored.

    Args:
        examples: to fit on, of either split.
        scored: what will be scored.
        how: "linear" or "percentiles".

    Raises:
        InputError: a token is in both, or another `how`.
    """
    fits: dict[str, Callable[[np.ndarray, np.ndarray], Calibration]]
    fits = {"linear": linear, "percentiles": percentiles}
    check(how in fits, f"how: expected one of {', '.join(fits)}, got {how!r}")
    both = int(
        np.isin(*(one.slots[:, None] + np.arange(one.tokens.shape[1]) for one in (examples, scored))).sum()
    )
    check(not both, f"examples: expected windows that are not scored, got {both} tokens that are")
    mask = examples.tokens >= 0
    predicted = judge.simulate(explanation, examples.tokens)
    return fits[how](examples.acts[mask], predicted[mask])


def _flat(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    ok = x.ndim == 1 and x.shape == y.shape and len(x) > 0 and bool(np.isfinite(x).all())
    check(ok, f"predicted: expected {list(y.shape)} finite numbers, at least one, got {list(x.shape)}")
    return x, y
