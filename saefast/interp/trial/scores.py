"""How well predicted activations agree with the true ones. All arrays are flat and float64; all numbers are floats.

A correlation with something that is the same everywhere is not defined: it is 0 here, so that "always" and "never" earn nothing.
"""

from typing import NamedTuple

import numpy as np

from saefast.errors import check

DIGITS = 10  # activations as "Towards Monosemanticity" (2023) has them predicted: 0 to 9


class Scores(NamedTuple):
    """Of an explanation of a unit. Where it says digits, true and predicted activations are compared on the paper's scale: else
    a prediction of nearly nothing here and of a little less there would be taken at its word among the many tokens that are
    exactly 0, and even the right explanation of a rare unit would score half."""

    spearman: float  # of digits: the score of the paper
    pearson: float
    r2: float  # 1 - squared error / variance; negative where the mean would have been better
    spearman_weighted: float  # of digits, by importance
    pearson_weighted: float
    spearman_exact: float  # of activations as they are
    auc: float  # of the predictions, for a true digit of at least 1
    balanced_accuracy: float  # of a predicted digit of at least 1 for a true one


def digits(acts: np.ndarray, largest: float) -> np.ndarray:
    """0 to 9: the nearest ninth of the unit's largest activation (a half goes up); negative ones are 0."""
    return np.floor(np.clip(acts / largest, 0, 1) * (DIGITS - 1) + 0.5)


def scores_of(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray, largest: float) -> Scores:
    """All scores of predictions on the windows of a unit.

    Args:
        true, predicted: [n, L] activations.
        weights: [n], importance of each window, that of all its tokens.
        largest: activation of the unit, more than 0.

    Raises:
        InputError: other shapes, a weight below 0, or a prediction that is NaN or infinite.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    want, got = f"predicted: expected {list(true.shape)}", list(predicted.shape)
    check(true.shape == predicted.shape, f"{want}, got {got}")
    check(bool(np.isfinite(predicted).all()), f"{want} finite numbers, got NaN or Inf")
    weights = np.asarray(weights, np.float64)
    ok = weights.shape == true.shape[:1] and bool((weights >= 0).all())
    check(ok, f"weights: expected {len(true)} numbers of at least 0, got {list(weights.shape)}")
    check(largest > 0, f"largest: expected a number above 0, got {largest!r}")
    each = np.repeat(weights, true.shape[1])
    true, predicted = true.ravel(), predicted.ravel()
    true_digits, said = digits(true, largest), digits(predicted, largest)
    return Scores(
        spearman(true_digits, said),
        pearson(true, predicted),
        r2(true, predicted),
        spearman(true_digits, said, each),
        pearson(true, predicted, each),
        spearman(true, predicted),
        auc(true_digits > 0, predicted),
        balanced_accuracy(true_digits > 0, said > 0),
    )


def ranks(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Ranks from 1 on, ties averaged. With weights: the weight of all that is smaller and half of that of its equals, so that
    integer weights do what as many copies would."""
    _, group = np.unique(x, return_inverse=True)
    mass = np.bincount(group, weights)
    return (np.cumsum(mass) - mass / 2 + (0.5 if weights is None else 0.0))[group]


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The correlation, weighted if weights [n] >= 0 are given; 0 where one of both is constant."""
    if weights is not None:
        counts = weights > 0
        x, y, weights = x[counts], y[counts], weights[counts]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = (_unit(part - np.average(part, weights=weights)) for part in (x, y))
    share = np.ones_like(x) if weights is None else weights / weights.sum()
    both = (share * x * y).sum() / np.sqrt((share * x * x).sum() * (share * y * y).sum())
    return float(np.clip(both, -1, 1)) if np.isfinite(both) else 0.0


def _unit(x: np.ndarray) -> np.ndarray:
    """Squares of very small or very large numbers would be none."""
    return x / (np.abs(x).max() or 1.0)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The correlation of the ranks; 0 where one of both is constant."""
    if weights is not None:
        counts = weights > 0
        x, y, weights = x[counts], y[counts], weights[counts]
    return pearson(ranks(x, weights), ranks(y, weights), weights)


def r2(true: np.ndarray, predicted: np.ndarray) -> float:
    """1 - sum (true - predicted)^2 / sum (true - mean)^2; 0 where the true ones are constant. Never infinite."""
    around = ((true - true.mean()) ** 2).sum() if np.ptp(true) else 0.0
    with np.errstate(over="ignore"):
        found = 1 - ((true - predicted) ** 2).sum() / around if around else 0.0
    return float(max(found, -np.finfo(np.float64).max))


def auc(is_one: np.ndarray, x: np.ndarray) -> float:
    """How often x of one of them is above that of one of the others, ties half; 0.5 where there are none on one side."""
    n, others = int(is_one.sum()), int((~is_one).sum())
    if not n or not others:
        return 0.5
    return float((ranks(x)[is_one].sum() - n * (n + 1) / 2) / (n * others))


def balanced_accuracy(is_one: np.ndarray, said: np.ndarray) -> float:
    """The mean of the shares of both that are said to be what they are; a side without any counts as half right."""
    right = [
        float((said == side)[is_one == side].mean()) if (is_one == side).any() else 0.5
        for side in (True, False)
    ]
    return sum(right) / 2
