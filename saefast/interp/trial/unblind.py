"""What came out of a trial: joined with what the units are when all of them are scored, and not before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.interp.trial.registration import Registration, Unit
from saefast.interp.trial.scores import Scores
from saefast.interp.trial.scoring import OTHER, read_scores

EDGES = np.linspace(-1, 1, 41)
STRATA = ("all", "not single token", "single token")
LOGITS = ("accuracy", "auc", "matched_accuracy")
MEASURES = (
    *Scores._fields,
    *(f"other_{name}" for name in OTHER),
    *(f"logit_{name}" for name in LOGITS),
    *(f"other_logit_{name}" for name in LOGITS),
)


@dataclass(frozen=True)
class Mean:
    """Of the units of an arm; None without any."""

    n: int
    mean: float | None
    low: float | None  # of the 95 % confidence interval of the mean, by bootstrap over units
    high: float | None
    median: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of the arm that is said to be better minus mean of the other; None where one has fewer than two units."""

    difference: float | None
    low: float | None  # of the 95 % confidence interval, by bootstrap over units
    high: float | None
    p: float | None  # one-sided, by permutation of the arms


@dataclass(frozen=True)
class Measured:
    """One measure of one explainer on one stratum of units."""

    arms: dict[str, Mean]
    histogram: dict[str, list[int]]  # by arm, counts between `TrialResult.edges`
    difference: Difference


@dataclass(frozen=True)
class ArmSummary:
    alive: int  # latents that units were drawn from
    units: int
    single_token: int  # of the units
    dropped: dict[str, int]  # by reason


@dataclass(frozen=True)
class TrialResult:
    """Plain numbers, lists and dictionaries: `dataclasses.asdict` of it can be written as JSON.

    Attributes:
        measured: by explainer, stratum (`STRATA`) and measure (`MEASURES`; "other_...": of the explanation of another unit,
            a control; measures of the logit test are missing where it was not made).
        registered: what the hypothesis is about: the Spearman correlation of the primary explainer on units that are no
            single token; it was said to hold if the difference is above 0 and p < threshold.
    """

    sha256: str  # of the registration
    primary: str
    threshold: float
    registered: Difference
    also: dict[str, Difference]
    arms: dict[str, ArmSummary]
    edges: list[float]
    measured: dict[str, dict[str, dict[str, Measured]]]


def unblind(registration: Registration, path: str | Path) -> list[tuple[Unit, dict[str, Any]]]:
    """The rows of a file of scores with what their units are.

    Raises:
        InputError: units are not scored yet, rows of another registration or that were edited.
    """
    rows = read_scores(registration, path)
    wanted = len(registration.ids) * len(registration.config.explainers)
    want = f"{path}: expected the scores of all units by all explainers, {wanted} rows"
    check(len(rows) == wanted, f"{want}, got {len(rows)}: units stay blind until all of them are scored")
    key = registration.key()
    return [(key[row["unit"]], row) for row in rows]


def trial_result(registration: Registration, path: str | Path) -> TrialResult:
    """Means, confidence intervals and p-values of a finished trial.

    Raises:
        InputError: see `unblind`.
    """
    joined, config = unblind(registration, path), registration.config
    also: dict[str, Difference] = {}
    measured: dict[str, dict[str, dict[str, Measured]]] = {}
    for name in config.explainers:
        rows = [(unit, _measures(row)) for unit, row in joined if row["explainer"] == name]
        measured[name] = {stratum: {} for stratum in STRATA}
        for stratum, of_stratum in measured[name].items():
            some = [(unit, row) for unit, row in rows if stratum in ("all", STRATA[1 + unit.single_token])]
            for measure in rows[0][1]:
                of_stratum[measure] = _measured(registration, some, measure)
        if name == config.primary:
            some = [(unit, row) for unit, row in rows if not unit.single_token]
            also = {arm: _difference(registration, some, "spearman", arm) for arm in config.also}
    arms = {
        name: ArmSummary(arm["alive"], len(arm["units"]), sum(arm["single_token"]), dict(arm["dropped"]))
        for name, arm in registration.content["arms"].items()
    }
    return TrialResult(
        registration.sha256,
        config.primary,
        config.threshold,
        measured[config.primary]["not single token"]["spearman"].difference,
        also,
        arms,
        EDGES.tolist(),
        measured,
    )


def _measures(row: Mapping[str, Any]) -> dict[str, float]:
    found = dict(row["scores"]) | {f"other_{name}": row["other"][name] for name in OTHER}
    for prefix, key in (("logit_", "logits"), ("other_logit_", "other_logits")):
        if row[key] is not None:
            found |= {f"{prefix}{name}": row[key][name] for name in LOGITS}
    return found


def _measured(
    registration: Registration, rows: Sequence[tuple[Unit, Mapping[str, float]]], measure: str
) -> Measured:
    config = registration.config
    values = {arm: _values(rows, measure, arm) for arm in registration.content["arms"]}
    return Measured(
        {arm: mean_of(of_arm, config.n_bootstrap, config.seed) for arm, of_arm in values.items()},
        {arm: np.histogram(np.clip(of_arm, -1, 1), EDGES)[0].tolist() for arm, of_arm in values.items()},
        _difference(registration, rows, measure, config.better),
    )


def _difference(
    registration: Registration, rows: Sequence[tuple[Unit, Mapping[str, float]]], measure: str, better: str
) -> Difference:
    config = registration.config
    a, b = (_values(rows, measure, arm) for arm in (better, config.worse))
    return difference_of(a, b, config.n_permutations, config.n_bootstrap, config.seed)


def _values(rows: Sequence[tuple[Unit, Mapping[str, float]]], measure: str, arm: str) -> np.ndarray:
    return np.asarray([row[measure] for unit, row in rows if unit.arm == arm], np.float64)


def mean_of(x: np.ndarray, n_bootstrap: int = 2_000, seed: int = 0) -> Mean:
    """Of the values [n] of the units of an arm; the interval is that of the percentiles."""
    if not len(x):
        return Mean(0, None, None, None, None)
    low, high = np.percentile(_resampled(x, n_bootstrap, np.random.default_rng(seed)), [2.5, 97.5])
    return Mean(len(x), float(x.mean()), float(low), float(high), float(np.median(x)))


def difference_of(
    better: np.ndarray,
    worse: np.ndarray,
    n_permutations: int = 10_000,
    n_bootstrap: int = 2_000,
    seed: int = 0,
) -> Difference:
    """Mean of `better` [n] minus mean of `worse` [m], and how often units that are dealt to the two arms at random differ by as
    much: p = (1 + number of such permutations) / (1 + permutations)."""
    n, m = len(better), len(worse)
    if min(n, m) < 2:
        return Difference(None, None, None, None)
    rng = np.random.default_rng(seed)
    found = float(better.mean() - worse.mean())
    resampled = _resampled(better, n_bootstrap, rng) - _resampled(worse, n_bootstrap, rng)
    low, high = np.percentile(resampled, [2.5, 97.5])
    pooled = np.concatenate([better, worse])
    dealt = rng.permuted(np.broadcast_to(pooled, (n_permutations, n + m)), axis=1)
    of_better = dealt[:, :n].mean(axis=1)
    differences = of_better - (pooled.sum() - n * of_better) / m
    as_much = int((differences >= found - 1e-12).sum())
    return Difference(found, float(low), float(high), (1 + as_much) / (1 + n_permutations))


def _resampled(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The means of n samples with replacement."""
    return x[rng.integers(0, len(x), (n, len(x)))].mean(axis=1)
