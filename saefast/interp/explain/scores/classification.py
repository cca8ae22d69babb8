"""Yes or no: does the unit act in this window (detection), and are the marked tokens those on which it does (fuzzing)?

The protocols of Paulo et al., "Automatically interpreting millions of features in large language models" (2024): windows of 32 tokens,
50 in which the unit is active, of 10 quantiles of its largest activation, and 50 in which it never is. Labels are what the unit really
does. Balanced accuracy and AUC of an answer that does not depend on the window are 0.5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples, Tiles, by_quantile, inactive, joined
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.separation import UNKNOWN, separation
from saefast.interp.explain.scores.statistics import DRAWS, Interval, interval
from saefast.interp.records.text import mix

N = 50  # windows of either label
MARKED = 0.3  # of the largest activation in a window, that a marked token has at least


class ClassificationScore(NamedTuple):
    """Of n windows: it says yes where the probability is above 0.5, and where it is exactly 0.5 half of it."""

    balanced_accuracy: (
        Interval  # mean of the shares of both labels that are right; 0.5 of 0 to 1 if one label is missing
    )
    auc: Interval  # of the probabilities, ties half; likewise
    accuracy: float
    precision: float  # 0 where it never says yes
    recall: float  # 0 without positive windows
    f1: float
    n_positive: int
    n_negative: int


def classification_score(
    labels: np.ndarray, probabilities: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> ClassificationScore:
    """All scores of a judge on the windows of a unit, with intervals from a bootstrap over windows of each label.

    Args:
        labels: [n] bool.
        probabilities: [n] in [0, 1], that the label is true.
        draws: of the bootstrap; with 0 intervals are 0 to 1.

    Raises:
        InputError: other shapes, no window, or something that is no probability.
    """
    labels, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    ok = labels.dtype == bool and labels.ndim == 1 and len(labels) > 0
    check(ok, f"labels: expected bool [n] of at least one window, got {labels.dtype} {list(labels.shape)}")
    check(p.shape == labels.shape, f"probabilities: expected {list(labels.shape)}, got {list(p.shape)}")
    ok = bool(((p >= 0) & (p <= 1)).all())
    check(ok, f"probabilities: expected numbers from 0 to 1, got {p.min()} to {p.max()}")
    said = np.where(p == 0.5, 0.5, p > 0.5)
    n_positive, n_negative, hits = int(labels.sum()), int((~labels).sum()), float(said[labels].sum())
    precision = hits / float(said.sum()) if said.any() else 0.0
    recall = hits / n_positive if n_positive else 0.0
    right = np.where(labels, said, 1 - said)
    balanced = auc = UNKNOWN
    if n_positive and n_negative:
        balanced = interval(_balanced, (labels, right), groups=labels, seed=seed, n=draws or 1)
        auc = separation(labels, p, draws=draws or 1, seed=seed)
    if not draws:
        balanced, auc = (UNKNOWN._replace(value=one.value) for one in (balanced, auc))
    return ClassificationScore(
        balanced,
        auc,
        float(right.mean()),
        precision,
        recall,
        2 * precision * recall / (precision + recall) if hits else 0.0,
        n_positive,
        n_negative,
    )


def detection_examples(tiles: Tiles, latent: int, near: Sequence[int] = (), seed: int = 0) -> Examples:
    """The windows of a unit, fewer where there are fewer.

    Args:
        tiles: of 32 tokens, as in the paper. For scoring they are of the split "score".
        near: units that are like this one: windows in which one of them is active and this one is not make detection harder.
    """
    active = by_quantile(tiles, latent, N, seed=seed)
    return joined(active, inactive(tiles, latent, N, seed, near))


def detection(
    judge: Judge, explanation: Explanation, examples: Examples, *, draws: int = DRAWS, seed: int = 0
) -> ClassificationScore:
    """Whether the judge tells from the explanation in which windows the unit is active.

    Raises:
        InputError: windows of the split that explainers see.
    """
    check_held_out(examples)
    probabilities = judge.detect(explanation, examples.tokens)
    return classification_score(examples.active, probabilities, draws=draws, seed=seed)


def fuzzing(
    judge: Judge, explanation: Explanation, examples: Examples, *, draws: int = DRAWS, seed: int = 0
) -> ClassificationScore:
    """Whether the judge tells from the explanation which tokens are those on which the unit is active: see `fuzzing_marks`.

    Args:
        seed: also of the marks.

    Raises:
        InputError: windows of the split that explainers see.
    """
    check_held_out(examples)
    probabilities = judge.fuzz(explanation, examples.tokens, fuzzing_marks(examples, seed))
    return classification_score(examples.active, probabilities, draws=draws, seed=seed)


def fuzzing_marks(examples: Examples, seed: int = 0) -> np.ndarray:
    """The marked tokens, [n, L] bool: the true ones where the unit is active, in the other windows random ones.

    True are those with at least 0.3 times the largest activation in the window. As many are wrong in each other window as the unit is
    active on in a window on average, rounded up (which, as in delphi, is not less than what is marked in the true ones).
    """
    acts, tokens, active = examples.acts, examples.tokens, examples.active
    marked = (acts > 0) & (acts >= MARKED * acts.max(axis=1, keepdims=True, initial=0.0))
    if active.any() and not active.all():
        n = int(np.ceil((acts[active] > 0).sum(axis=1).mean()))
        wrong = ~active
        marked[wrong] = random_marks(examples.take(wrong), n, seed)
    assert not marked[tokens < 0].any()
    return marked


def random_marks(examples: Examples, n: int, seed: int = 0) -> np.ndarray:
    """n tokens of each window on which the unit is not active, or as many as there are, by hashes: [windows, L] bool."""
    slots = examples.slots[:, None] + np.arange(examples.tokens.shape[1])
    key = mix(np.uint32(examples.latent) ^ mix(np.uint32((16 * seed + 11) % 2**32)))
    order = mix(slots.astype(np.uint32) ^ key).astype(np.int64)
    may = (examples.tokens >= 0) & (examples.acts == 0)
    order[~may] = 2**32
    marked = np.zeros(order.shape, bool)
    np.put_along_axis(marked, np.argsort(order, axis=1, kind="stable")[:, :n], True, axis=1)
    return marked & may


def _balanced(counts: np.ndarray, labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of draws by label: the mean of the shares of both that are right."""
    sides = [counts[:, labels == side] @ right[labels == side] / (labels == side).sum() for side in (1, 0)]
    return (sides[0] + sides[1]) / 2
