"""Shares and means with confidence intervals."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from saefast.errors import check


class Share(NamedTuple):
    """Of n, with its confidence interval."""

    hits: int
    n: int
    share: float
    low: float
    high: float


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def wilson(hits: int, n: int, confidence: float = 0.95) -> Share:
    """A share and its interval by Wilson's score (Wilson 1927), which holds for few samples and for shares of 0 and 1.

    Raises:
        InputError: hits is not one of 0 to n, n < 1, or a confidence outside of (0, 1).
    """
    check(n > 0 and 0 <= hits <= n, f"hits: expected 0 to n of at least 1, got {hits} of {n}")
    check(0 < confidence < 1, f"confidence: expected a number between 0 and 1, got {confidence}")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)
    return Share(hits, n, share, low, high)


def mean_interval(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95, draws: int = 4000
) -> Interval:
    """The mean of values and its interval, by the percentiles of `draws` bootstrap means.

    Raises:
        InputError: no values.
    """
    x = np.asarray(values, dtype=np.float64)
    check(len(x) > 0, "values: expected at least one, got none")
    chosen = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    low, high = np.quantile(x[chosen].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(x.mean()), float(low), float(high))
