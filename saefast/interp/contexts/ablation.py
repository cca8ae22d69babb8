"""What the model's predictions lose without a latent, in a context and outside of it (row 13 of the acceptance table).

"Towards Monosemanticity": the part of the latent is taken out at every token of a context of the model, and the log-likelihood of
each token compared (`saefast.interp.effects.ablation`). Here the rise of the loss is averaged over the tokens that are in the
context that the latent stands for, and over all others. Where the latent is nowhere active, the loss is exactly the same and no
pass is needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from saefast.config.records import SPLITS
from saefast.errors import check
from saefast.interp.contexts.judged import documents_of, rows_of
from saefast.interp.effects.ablation import Ablation, Window
from saefast.interp.effects.checks import check_same
from saefast.interp.records import Records
from saefast.sae import SAE

RESAMPLES = 1000  # of the documents, for the intervals
TAIL = 2.5  # per cent on each side: intervals of 95 %


class Mean(NamedTuple):
    """Nats per token, with its 95 % confidence interval by documents (bootstrap)."""

    value: float
    low: float
    high: float


class ContextAblation(NamedTuple):
    """The rise of the loss without a latent: -(log p without it - log p), over tokens that are predicted."""

    latent: int
    n_ablated: int  # contexts of the model with a pass without the latent
    n_active: int  # contexts in which it is active at all; in all others the rise is exactly 0
    n_inside: int  # tokens in the context that it stands for, in all of the split
    n_outside: int
    inside: Mean
    outside: Mean
    ratio: Mean  # inside / |outside|; infinite where there is no effect outside
    after_inside: (
        float | None
    )  # mean over the tokens in the context that come right after a token where it is active
    after_outside: float | None  # over those outside; None: there are none


@torch.no_grad()
def context_ablation(
    records: Records,
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str],
    latent: int,
    labels: np.ndarray,
    *,
    n: int = 128,
    seed: int = 0,
    split: str = SPLITS[1],
    output_hook: str | Sequence[str] | None = None,
    contexts_at_once: int | None = None,
) -> ContextAblation:
    """Take one latent out of a language model.

    Of the contexts of the model in which it is active, those that have tokens with the label and those that have none are drawn
    apart, at most n of each, and weighted by how many each stands for; with n or fewer, the means are those of the whole split.

    Args:
        records: of `sae`, on the text of `labels`; `saefast.interp.neurons.neurons` for a neuron.
        hook, output_hook, contexts_at_once: as in `saefast.interp.effects.ablation_effects`.
        labels: [m, L] bool, the tokens in the context.
        n: contexts of the model of each kind; each takes two passes.
        seed: of the draw and of the resampled documents.
        split: the documents that count.

    Raises:
        InputError: records of another SAE, labels of another text, a label that no token or every token of the split has, n < 1,
            or what `ablation_effects` raises.
    """
    check_same(records, sae)
    text = records.text
    shape = text.contexts.shape
    check(labels.shape == shape, f"labels: expected {list(shape)}, got {list(labels.shape)}")
    check(n > 0, f"n: expected at least 1, got {n}")
    predicted = rows_of(records, split)
    predicted[:, 0] = False
    both = predicted & labels, predicted & ~labels
    counts = [int(each.sum()) for each in both]
    check(min(counts) > 0, f"labels: expected tokens of the split with and without it, got {counts}")

    slots, _ = records.entries(latent)
    active = np.zeros(shape, bool)
    active.ravel()[slots] = True
    is_active = (active & predicted.any(axis=1, keepdims=True)).any(axis=1)
    has_label = both[0].any(axis=1)
    rng = np.random.default_rng(seed)
    weights = np.where(is_active, 0.0, 1.0)
    for kind in (is_active & has_label, is_active & ~has_label):
        drawn = rng.permutation(kind.nonzero()[0])[:n]
        weights[drawn] = kind.sum() / max(len(drawn), 1)
    ablated = (is_active & (weights > 0)).nonzero()[0].tolist()
    windows = [Window(latent, "context", 0, i, context, 0, text.length) for i, context in enumerate(ablated)]
    rise = np.zeros(shape)
    if windows:
        model.eval()
        ablation = Ablation(records, sae, model, hook, output_hook, contexts_at_once)
        for window, effects in ablation.effects(windows):
            rise[window.context, 1:] = -np.array(effects[1:], np.float64)

    documents = documents_of(text)
    sums = [
        np.bincount(documents[tokens], of[tokens], int(documents.max()) + 1)
        for tokens in both
        for of in (rise * weights[:, None], np.broadcast_to(weights[:, None], shape))
    ]
    inside, outside, ratio = _means(np.stack(sums), rng)
    after = np.zeros(shape, bool)
    after[:, 1:] = active[:, :-1]
    after[weights == 0] = False
    return ContextAblation(
        latent=latent,
        n_ablated=len(ablated),
        n_active=int(is_active.sum()),
        n_inside=counts[0],
        n_outside=counts[1],
        inside=inside,
        outside=outside,
        ratio=ratio,
        after_inside=_weighted(rise, weights, both[0] & after),
        after_outside=_weighted(rise, weights, both[1] & after),
    )


def _means(sums: np.ndarray, rng: np.random.Generator) -> tuple[Mean, Mean, Mean]:
    """Of each document [4, D] the sum of the rises inside, the tokens there, and both outside -> the two means and their ratio."""
    sums = sums[:, sums.any(axis=0)]
    n = sums.shape[1]
    again = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ sums.T

    def figures(of: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # no tokens: NaN; no effect outside: infinite
            inside, outside = of[..., 0] / of[..., 1], of[..., 2] / of[..., 3]
            return np.stack([inside, outside, inside / np.abs(outside)], axis=-1)

    values, resampled = figures(sums.sum(axis=1)), figures(again)
    found = []
    for value, drawn in zip(values.tolist(), resampled.T, strict=True):
        drawn = np.sort(drawn[~np.isnan(drawn)])
        # by rank: between infinite numbers nothing is interpolated
        ends = [int(np.floor(share / 100 * (len(drawn) - 1) + 0.5)) for share in (TAIL, 100 - TAIL)]
        low, high = (float(drawn[end]) for end in ends) if len(drawn) else (float("nan"), float("nan"))
        found.append(Mean(value, low, high))
    return found[0], found[1], found[2]


def _weighted(rise: np.ndarray, weights: np.ndarray, tokens: np.ndarray) -> float | None:
    """The weighted mean over some tokens."""
    of_tokens = np.broadcast_to(weights[:, None], rise.shape)[tokens]
    return float((rise[tokens] * of_tokens).sum() / of_tokens.sum()) if len(of_tokens) else None
