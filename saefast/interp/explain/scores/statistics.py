"""Intervals of 95 %, cheap enough to stand beside every number of thousands of units.

A bootstrap draws the windows of a unit again. What a draw has of each window is a count, and the scores are sums over windows, so a
thousand draws are a matrix product with one matrix of counts, which units with as many windows share.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.steering.intervals import wilson as share_of

DRAWS = 1000
LEVEL = 0.95
AT_ONCE = 2**22  # counts in memory


class Interval(NamedTuple):
    """A number with its 95 % confidence interval. Where nothing is known, low and high are the ends of what is possible."""

    value: float
    low: float
    high: float


Statistic = Callable[..., np.ndarray]
"""(counts [n, m], *arrays of length m) -> [n] float64: the statistic of n samples, of which each has each item so many times."""


def interval(
    statistic: Statistic,
    arrays: tuple[np.ndarray, ...],
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n: int = DRAWS,
) -> Interval:
    """A statistic with the percentiles of n bootstrap draws (Efron 1979), the same for the same seed.

    Where all items say the same, so do all draws: the interval of a perfect score has no width.

    Args:
        arrays: [m, ...] each, m > 0: of items that are independent, say windows.
        groups: [m], items are drawn within their group: for a sample whose parts have a size that was chosen.

    Raises:
        InputError: no items, arrays of other lengths, or no draws.
    """
    m = len(arrays[0])
    named = (*arrays, *(() if groups is None else (groups,)))
    ok = m > 0 and all(len(one) == m for one in named)
    check(ok, f"arrays: expected as many items, at least one, got {[len(one) for one in named]}")
    check(n > 0, f"n: expected at least 1 draw, got {n}")
    value = float(statistic(np.ones((1, m)), *arrays)[0])
    where, sizes = np.arange(m), (m,)
    if groups is not None:
        where = np.argsort(groups, kind="stable")
        sizes = tuple(np.unique(groups, return_counts=True)[1].tolist())
    ordered = tuple(one[where] for one in arrays)
    draws = np.concatenate([statistic(counts, *ordered) for counts in _counts(sizes, seed, n)])
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of independent values [m], say of units. Raises InputError if there are none."""
    return interval(
        lambda counts, x: counts @ x / counts.sum(axis=1), (np.asarray(values, np.float64),), seed=seed
    )


def wilson(k: int, n: int) -> Interval:
    """The share k / n by Wilson's score (Wilson 1927); of no trials nothing is known: 0.5 of 0 to 1.

    Raises:
        InputError: k is not one of 0 to n.
    """
    if n == 0 == k:
        return Interval(0.5, 0.0, 1.0)
    found = share_of(k, n, LEVEL)
    return Interval(found.share, found.low, found.high)


def _counts(sizes: tuple[int, ...], seed: int, n: int) -> Iterator[np.ndarray]:
    """How often each of the items, which lie group after group, is in each of n draws: parts of [n, m] float64."""
    m = sum(sizes)
    each = max(1, AT_ONCE // m)
    if n <= each and m <= 1024:
        yield _kept(sizes, seed, n)
        return
    rng = np.random.default_rng(seed)
    for first in range(0, n, each):
        yield _drawn(rng, sizes, min(each, n - first))


@lru_cache(maxsize=16)
def _kept(sizes: tuple[int, ...], seed: int, n: int) -> np.ndarray:
    counts = _drawn(np.random.default_rng(seed), sizes, n)
    counts.setflags(write=False)
    return counts


def _drawn(rng: np.random.Generator, sizes: tuple[int, ...], n: int) -> np.ndarray:
    parts = []
    for size in sizes:
        chosen = rng.integers(size, size=(n, size)) + size * np.arange(n)[:, None]
        parts.append(np.bincount(chosen.ravel(), minlength=n * size).reshape(n, size))
    return np.concatenate(parts, axis=1).astype(np.float64)
