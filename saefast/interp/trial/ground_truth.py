"""Which scorers may speak: those that tell planted units that stand for one thing from those that do not.

    gates = gate(planted, [LookUp(planted.records, planted.vocabulary), ...])
    gates["lookup"].usable

The study runs this before the score of an explainer on real units is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explainer, Explanation
from saefast.interp.trial.logit_test import Following, choose_tokens, logit_score
from saefast.interp.trial.planted import Planted
from saefast.interp.trial.scores import auc, scores_of
from saefast.interp.trial.windows import Places, Windows, draw

LEAST_AUC = 0.9


@dataclass(frozen=True)
class Gate:
    """What an explainer does on planted units. Of a constant and of another unit's explanation nothing is expected."""

    auc: float  # of the Spearman correlations, for being monosemantic
    monosemantic: float  # mean Spearman correlation
    polysemantic: float
    by_kind: dict[str, float]  # mean Spearman correlation by `Planted.kinds`
    other: float  # mean Spearman correlation of explanations of another unit
    constant: float  # of the prediction that is the same everywhere
    logit_auc: float  # of the accuracies of the logit test, for promoting what follows and not random tokens
    logit_promotes: float  # mean accuracy
    logit_random: float  # of the units whose logits are random

    @property
    def usable(self) -> bool:
        """Whether the scores of activations may be shown."""
        return self.auc >= LEAST_AUC

    @property
    def logit_usable(self) -> bool:
        """Whether those of logits may be shown."""
        return self.logit_auc >= LEAST_AUC


def told_apart(scores: Sequence[float] | np.ndarray, monosemantic: Sequence[bool] | np.ndarray) -> float:
    """The AUC of the scores [n] of units for being monosemantic [n] bool; 0.5 is chance.

    Raises:
        InputError: other lengths, or only units of one kind.
    """
    x, is_one = np.asarray(scores, np.float64), np.asarray(monosemantic, bool)
    ok = x.ndim == 1 and x.shape == is_one.shape and bool(np.isfinite(x).all())
    check(ok, f"scores: expected a number for each of {is_one.size} units, got {list(x.shape)}")
    both = 0 < int(is_one.sum()) < len(is_one)
    check(both, f"monosemantic: expected units of both kinds, got {int(is_one.sum())} of {len(is_one)}")
    return auc(is_one, x)


def gate(
    planted: Planted, explainers: Sequence[Explainer], seed: int = 0, least_places: int = 16
) -> dict[str, Gate]:
    """Score the planted units by each explainer, as a trial scores real ones.

    Args:
        explainers: made from the records and the vocabulary of `planted`.
        least_places: see `Following`.
    """
    records = planted.records
    places = Places(records.text, records.config, "score")
    following = Following(records.text, records.config, least=least_places, seed=seed)
    windows = [draw(places, records, latent, seed=seed) for latent in range(records.d_sae)]
    return {one.name: _gate(planted, one, windows, following, seed) for one in explainers}


def _gate(
    planted: Planted, explainer: Explainer, windows: list[Windows], following: Following, seed: int
) -> Gate:
    n = len(windows)
    explanations = [explainer.explain(latent) for latent in range(n)]
    own = np.asarray([_spearman(explanations[i], windows[i]) for i in range(n)])
    other = [_spearman(explanations[j], windows[i]) for i, j in enumerate(another(n, seed))]
    constant = [
        scores_of(one.acts, np.ones_like(one.acts), one.weights, one.largest).spearman for one in windows
    ]
    judged = [choose_tokens(planted.logits, latent, following, seed) for latent in range(n)]
    both = zip(explanations, judged, strict=True)
    accuracy = np.asarray([logit_score(following.judge(one), of).accuracy for one, of in both])
    is_one, promotes, kinds = planted.monosemantic, planted.promotes, np.asarray(planted.kinds)
    either = promotes | planted.has_random_logits
    return Gate(
        told_apart(own, is_one),
        float(own[is_one].mean()),
        float(own[~is_one].mean()),
        {kind: float(own[kinds == kind].mean()) for kind in sorted(set(planted.kinds))},
        float(np.mean(other)),
        float(np.mean(constant)),
        told_apart(accuracy[either], promotes[either]),
        float(accuracy[promotes].mean()),
        float(accuracy[planted.has_random_logits].mean()),
    )


def _spearman(explanation: Explanation, windows: Windows) -> float:
    predicted = explanation.predict(windows.tokens)
    return scores_of(windows.acts, predicted, windows.weights, windows.largest).spearman


def another(n: int, seed: int = 0) -> list[int]:
    """For each of n units another one, drawn at random: no unit is its own, and each is that of one unit."""
    check(n >= 2, f"n: expected at least 2 units, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found.tolist()
