"""How well a number of each window tells those in which a unit is active from the others: the AUC, with its interval."""

from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain.scores.statistics import DRAWS, Interval, interval

UNKNOWN = Interval(0.5, 0.0, 1.0)


class Sides(NamedTuple):
    """Of a number of each window."""

    active: float  # its mean over windows in which the unit is active, 0 without any
    inactive: float  # over the others
    n_active: int
    n_inactive: int


def sides(active: np.ndarray, x: np.ndarray) -> Sides:
    """Args: active: [n] bool; x: [n]."""
    ones, others = x[active], x[~active]
    means = [float(side.mean()) if len(side) else 0.0 for side in (ones, others)]
    return Sides(means[0], means[1], len(ones), len(others))


def separation(active: np.ndarray, x: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """How often x of a window in which the unit is active is above that of one in which it is not, ties half: 0.5 by chance.

    Args:
        active: [n] bool.
        x: [n], the larger the more it speaks for being active.

    Returns:
        `saefast.interp.trial.scores.auc`, with the interval of a bootstrap within both kinds of windows, since how many there are of
        each was chosen; 0.5 of 0 to 1 where one kind is missing.

    Raises:
        InputError: arrays of other lengths, or numbers that are not finite.
    """
    active, x = np.asarray(active, bool), np.asarray(x, np.float64)
    want = f"x: expected {list(active.shape)} finite numbers"
    check(active.ndim == 1 and x.shape == active.shape, f"{want}, got {list(x.shape)}")
    check(bool(np.isfinite(x).all()), f"{want}, got NaN or Inf")
    if active.all() or not active.any():
        return UNKNOWN
    return interval(_auc, (active, x), groups=active, seed=seed, n=draws)


def _auc(counts: np.ndarray, active: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of draws by label, in which each window is so many times."""
    ones, others = x[active][:, None], x[~active]
    above = (ones > others) + 0.5 * (ones == others)
    found: np.ndarray = (counts[:, active] @ above * counts[:, ~active]).sum(axis=1) / above.size
    return found
