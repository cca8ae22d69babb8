"""Of points by type: medians and means with confidence intervals, comparisons of two types, agreement of raters.

Values are [units, m]: one of each unit, or one of each of its m rated intervals. Intervals of one unit depend on one another, so
whole units are drawn again in the bootstrap and exchanged in the permutation test.
"""

from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError
from saefast.interp.blind.rubric import FAIRLY

DRAWS = 10_000
LEVEL = 0.95


class Summary(NamedTuple):
    units: int
    values: int
    median: float
    median_interval: tuple[float, float]  # 95 %, by the percentiles of a bootstrap
    mean: float
    mean_interval: tuple[float, float]
    fairly_interpretable: float  # share above 8 points


class Comparison(NamedTuple):
    """Of a first type with a second one; both p are two-sided."""

    mean_difference: float
    mean_interval: tuple[float, float]  # 95 %
    median_difference: float
    median_interval: tuple[float, float]
    permutation_p: float  # of the difference of means, units exchanged between the types
    mann_whitney_p: float  # of the means of units, corrected for ties
    rank_biserial: float  # P(first above second) - P(below), -1 to 1


def summary(values: np.ndarray, seed: int = 0) -> Summary:
    """Of [units, m] points."""
    medians, means = _drawn(values, np.random.default_rng(seed))
    return Summary(
        len(values),
        values.size,
        float(np.median(values)),
        _interval(medians),
        float(values.mean()),
        _interval(means),
        float((values > FAIRLY).mean()),
    )


def compared(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Of [units, m] and [units', m'] points.

    Raises:
        InputError: scipy (extra `interp`) is not installed.
    """
    try:
        from scipy.stats import mannwhitneyu
    except ImportError:
        raise InputError("a comparison needs scipy: pip install 'saefast[interp]'") from None
    rng = np.random.default_rng(seed)
    medians, means = (a - b for a, b in zip(_drawn(first, rng), _drawn(second, rng), strict=True))
    a, b = first.mean(axis=1), second.mean(axis=1)
    found = mannwhitneyu(a, b, alternative="two-sided", method="asymptotic")
    p = float(found.pvalue)
    return Comparison(
        float(first.mean() - second.mean()),
        _interval(means),
        float(np.median(first) - np.median(second)),
        _interval(medians),
        _permuted(a, b, rng),
        1.0 if np.isnan(p) else p,  # all values are the same
        float(2 * found.statistic / (len(a) * len(b)) - 1),
    )


def _drawn(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Medians and means of units drawn with replacement, [DRAWS] each."""
    medians, means = np.empty(DRAWS, np.float64), np.empty(DRAWS, np.float64)
    each = max(1, 2**22 // max(1, values.size))
    for first in range(0, DRAWS, each):
        n = min(each, DRAWS - first)
        again = values[rng.integers(len(values), size=(n, len(values)))].reshape(n, -1)
        medians[first : first + n], means[first : first + n] = np.median(again, axis=1), again.mean(axis=1)
    return medians, means


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _permuted(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    both = np.concatenate([a, b])
    observed, n = abs(a.mean() - b.mean()), len(a)
    at_least = 0
    each = max(1, 2**22 // len(both))
    for first in range(0, DRAWS, each):
        mixed = rng.permuted(np.tile(both, (min(each, DRAWS - first), 1)), axis=1)
        at_least += int((abs(mixed[:, :n].mean(1) - mixed[:, n:].mean(1)) >= observed - 1e-12).sum())
    return (1 + at_least) / (1 + DRAWS)


def alpha(values: np.ndarray) -> float | None:
    """Krippendorff's alpha for numbers: 1 - observed / expected disagreement, of [units, raters]. 1 is full agreement, 0 that of
    chance; None where all values are the same."""
    n, raters = values.shape
    within = raters * ((values - values.mean(axis=1, keepdims=True)) ** 2).sum() / (raters - 1)
    between = n * raters * ((values - values.mean()) ** 2).sum() / (n * raters - 1)
    return None if between == 0 else float(1 - within / between)


def curve(intervals: np.ndarray, points: np.ndarray, tokens: np.ndarray, n: int) -> list[dict[str, Any]]:
    """By interval from 1 (the weakest) to n: how many were rated, and the means of their points and of the answer to "tokens".

    Args:
        intervals: [N] from 0 on, of each rated interval.
    """
    found = []
    for i in range(n):
        here = intervals == i
        some = bool(here.any())
        means = {"points": float(points[here].mean()), "tokens": float(tokens[here].mean())} if some else {}
        found.append({"interval": i + 1, "n": int(here.sum()), "points": None, "tokens": None} | means)
    return found
