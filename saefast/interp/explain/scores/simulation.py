"""Simulation: predicted activations beside the real ones, token by token.

The scores of Bills et al., "Language models can explain neurons in language models" (2023), with the names that their files have:

    ev_correlation_score            Pearson's correlation over all tokens of all windows together, not the mean of the windows'
    rsquared_score                  1 - mean (real - predicted)^2 / mean real^2
    absolute_dev_explained_score    1 - mean |real - predicted| / mean |real|

The first one does not depend on the scale of a prediction; for the two others it must be that of the unit: see calibration.py.
"""

from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples, Tiles, top_and_random
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.statistics import DRAWS, Interval, interval
from saefast.interp.trial.scores import pearson, spearman

CONSTANT = 1e-12  # of the variance of all windows: what a draw of them has less of comes from rounding
N_RANDOM = 10  # windows of the score on random ones only


class WindowScores(NamedTuple):
    """Of each window by itself, [n] float64 each; where one is not defined it is 0."""

    ev_correlation_score: np.ndarray
    rsquared_score: np.ndarray
    absolute_dev_explained_score: np.ndarray


class SimulationScore(NamedTuple):
    ev_correlation_score: float  # 0 where it is not defined
    interval: Interval  # of it
    defined: bool  # neither what the unit does nor what is predicted is the same everywhere
    spearman: float  # likewise 0
    rsquared_score: (
        float  # 0 where the unit is never active, negative where 0 everywhere would have been better
    )
    absolute_dev_explained_score: float  # likewise
    n_windows: int
    n_tokens: int  # without padding
    windows: WindowScores


class Simulated(NamedTuple):
    """A unit in the variants that OpenAI reports."""

    examples: Examples  # the top windows, then the random ones
    predicted: np.ndarray  # [n, L] float64, of these
    top_and_random: SimulationScore
    top_only: SimulationScore
    random_only: SimulationScore  # on windows of its own, drawn from all


def simulation_score(
    true: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> SimulationScore:
    """All scores of predictions on the windows of a unit.

    Args:
        true, predicted: [n, L] activations.
        mask: [n, L] bool, False on padding, which does not count; default: there is none.
        groups: [n], parts of the sample of a chosen size, such as top and random windows: see `interval`.
        draws: of the bootstrap over windows. With 0, and where the unit does the same everywhere or there are not two windows,
            nothing is known of the correlation: its interval is -1 to 1.

    Raises:
        InputError: other shapes, no token, or numbers that are NaN or infinite.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    mask = np.ones(true.shape, bool) if mask is None else np.asarray(mask)
    want, got = f"predicted: expected {list(true.shape)}", list(predicted.shape)
    check(true.ndim == 2 and true.shape == predicted.shape, f"{want}, got {got}")
    ok = mask.dtype == bool and mask.shape == true.shape
    check(ok, f"mask: expected bool {list(true.shape)}, got {mask.dtype} {list(mask.shape)}")
    check(bool(mask.any()), "mask: expected at least one token, got only padding")
    x, y = true[mask], predicted[mask]
    check(bool(np.isfinite(y).all()), f"{want} finite numbers, got NaN or Inf")
    check(bool(np.isfinite(x).all()), "true: expected finite numbers, got NaN or Inf")
    value = pearson(x, y)
    found = Interval(value, -1.0, 1.0)
    if draws and np.ptp(x) > 0 and len(true) > 1:
        sums = _sums(true, predicted, mask)
        found = interval(_correlations, (sums,), groups=groups, seed=seed, n=draws)._replace(value=value)
    pairs = [(a[here], b[here]) for a, b, here in zip(true, predicted, mask, strict=True)]
    return SimulationScore(
        value,
        found,
        bool(np.ptp(x) > 0 and np.ptp(y) > 0),
        spearman(x, y),
        explained(x, y, 2),
        explained(x, y, 1),
        len(true),
        len(x),
        WindowScores(
            np.asarray([pearson(a, b) for a, b in pairs]),
            np.asarray([explained(a, b, 2) for a, b in pairs]),
            np.asarray([explained(a, b, 1) for a, b in pairs]),
        ),
    )


def explained(true: np.ndarray, predicted: np.ndarray, power: int) -> float:
    """1 - mean |true - predicted|^power / mean |true|^power, which is about 0 and not about the mean; 0 where all true ones are 0.
    Never infinite."""
    with np.errstate(over="ignore"):
        whole = float((np.abs(true) ** power).sum())
        found = 1 - float((np.abs(true - predicted) ** power).sum()) / whole if whole else 0.0
    return max(found, -float(np.finfo(np.float64).max))


def simulation(
    judge: Judge, explanation: Explanation, examples: Examples, *, draws: int = DRAWS, seed: int = 0
) -> SimulationScore:
    """What the judge predicts from the explanation on windows of the split "score". Padding, -1, is left out.

    Raises:
        InputError: windows of the other split; see `simulation_score`.
    """
    check_held_out(examples)
    predicted = judge.simulate(explanation, examples.tokens)
    return _scored(examples, predicted, draws, seed)


def simulate_and_score(
    judge: Judge,
    explanation: Explanation,
    tiles: Tiles,
    latent: int,
    *,
    n_top: int = 5,
    n_random: int = 5,
    n_random_only: int = N_RANDOM,
    draws: int = DRAWS,
    seed: int = 0,
) -> Simulated:
    """OpenAI's scores of a unit: on its top windows and as many random ones, on either part, and on random windows only.

    Random windows beside top ones are drawn from all others. Those of the score on random windows only are drawn from all, or the score
    would be of a text without its best places; what the judge says of them is asked at the same time.

    Args:
        tiles: of the split "score"; OpenAI's windows have 64 tokens.
        latent: the unit that is scored, which for a control is not the explanation's.
    """
    both = top_and_random(tiles, latent, n_top, n_random, seed)
    own = tiles.random(latent, n_random_only, seed + 5, np.zeros(0, np.int64))
    alone = tiles.examples(latent, [("random", -1, own)])
    check_held_out(both)
    predicted = judge.simulate(explanation, np.concatenate([both.tokens, alone.tokens]))
    of_both = predicted[: len(both)]
    is_top = np.arange(len(both)) < len(both.of("top"))
    return Simulated(
        both,
        of_both,
        _scored(both, of_both, draws, seed),
        _scored(both.take(is_top), of_both[is_top], draws, seed),
        _scored(alone, predicted[len(both) :], draws, seed),
    )


def _scored(examples: Examples, predicted: np.ndarray, draws: int, seed: int) -> SimulationScore:
    if not len(examples):  # a unit that is never active has no top windows
        nothing = np.zeros(0)
        windows = WindowScores(nothing, nothing, nothing)
        return SimulationScore(0.0, Interval(0.0, -1.0, 1.0), False, 0.0, 0.0, 0.0, 0, 0, windows)
    return simulation_score(
        examples.acts, predicted, examples.tokens >= 0, groups=examples.group, draws=draws, seed=seed
    )


def _sums(true: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of each window what correlations are made of, [n, 6]: tokens, x, y, x^2, y^2, xy, both around the mean and at most 1."""
    x, y = (np.where(mask, part - part[mask].mean(), 0.0) for part in (true, predicted))
    x, y = (part / (np.abs(part).max() or 1.0) for part in (x, y))
    return np.stack([mask, x, y, x * x, y * y, x * y], axis=-1).sum(axis=1)


def _correlations(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Pearson of all tokens of each draw; 0 where one of both is constant."""
    n, x, y, xx, yy, xy = (counts @ sums).T
    n = np.maximum(n, 1)
    of_x, of_y = xx - x * x / n, yy - y * y / n
    least_x, least_y = CONSTANT * sums[:, 3].sum(), CONSTANT * sums[:, 4].sum()
    varies = (of_x > least_x) & (of_y > least_y)
    found = (xy - x * y / n) / np.sqrt(np.where(varies, of_x * of_y, 1.0))
    return np.where(varies, np.clip(found, -1, 1), 0.0)
