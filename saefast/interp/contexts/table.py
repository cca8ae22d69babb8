"""The best feature and the best neuron of each context, and the contexts that have no good feature.

Which latent is the best is decided on the documents of the split "explain", and all figures are from those of the split "score":
the maximum over thousands of latents is not better than it is.
"""

from typing import NamedTuple

import numpy as np

from saefast.config.records import SPLITS
from saefast.errors import check
from saefast.interp.contexts.auc import Auc, auc_of, difference
from saefast.interp.contexts.evaluate import Evaluation
from saefast.interp.contexts.judged import Judged, documents_of, rows_of
from saefast.interp.records import Records
from saefast.interp.together import check_same_text

FEWEST = 10  # tokens of which a share says something


class Unit(NamedTuple):
    """A latent and one context, on the split "score". Shares are None where there is no token."""

    latent: int
    auc: float
    auc_low: float  # of the 95 % confidence interval, by documents
    auc_high: float
    pearson: float | None  # with the score of the proxy
    n_active: int  # tokens
    precision: float | None  # of the active tokens, the share in the context
    recall: float | None  # of the tokens in the context, the share on which it is active
    mass: float | None  # of the sum of its activations, the share in the context
    n_top_half: int  # tokens with an activation of half of the largest or more
    top_half: float | None  # of them, the share in the context
    stronger_half: (
        float | None
    )  # of the tokens with one of the stronger half of its activations, the share in the context
    intervals: list[
        float | None
    ]  # the share in the context in each of 11 intervals of activation, the weakest first
    n_intervals: list[int]  # tokens in each
    threshold: float  # activation with the largest F1 on the split "explain"
    f1: float | None  # from it on
    f1_precision: float | None
    f1_recall: float | None


class Row(NamedTuple):
    """A context. With fewer than about ten documents the confidence intervals are too narrow."""

    context: str
    description: str
    n_tokens: int  # in the context, on the split "score"
    share: float  # of all tokens with a row
    n_documents: int
    feature: Unit
    neuron: Unit
    difference: float  # AUC of the feature minus that of the neuron
    difference_low: float  # of the 95 % confidence interval, by documents
    difference_high: float
    missed: list[str]  # which figures are not what was asked for; none: a good feature


class ContextTable(NamedTuple):
    """All of them; row 11 of the acceptance table."""

    rows: list[Row]
    misses: list[Row]  # those of the rows without a good feature
    skipped: dict[str, int]  # contexts of which the text has too little, with the number of their tokens
    asked: dict[str, float]  # the least AUC, top half and difference of a good feature


def best_latents(evaluation: Evaluation, top_half: float | None = None) -> np.ndarray:
    """[K] int64, of each context the latent with the largest AUC on the split "explain", of equal ones the smaller.

    Args:
        top_half: if given, of those whose top half there is in the context to this share, and has 10 tokens at least, if there
            are such.
    """
    auc = np.nan_to_num(evaluation.explain.auc, nan=-1)
    if top_half is not None:
        enough = evaluation.explain.top_half() >= top_half
        enough &= evaluation.explain.n_top_half() >= FEWEST
        auc = np.where(enough | ~enough.any(axis=1, keepdims=True), auc, -1)
    return auc.argmax(axis=1)


def context_table(
    features: Records,
    neurons: Records,
    judged: Judged,
    evaluations: tuple[Evaluation, Evaluation],
    *,
    auc: float = 0.95,
    top_half: float = 0.8,
    least_difference: float = 0.05,
) -> ContextTable:
    """Compare them context by context.

    The feature of a context is the one of the largest AUC among those whose top half is in it; the neuron is simply the one of
    the largest AUC, so that the difference favours no feature.

    Args:
        features, neurons: records of the same rows of the same text.
        judged: of that text.
        evaluations: of the features and of the neurons, by `evaluate_contexts`.
        auc, top_half, least_difference: what a good feature has at least.

    Raises:
        InputError: records of different texts, or evaluations of other contexts.
    """
    check_same_text(features, neurons)
    of_features, of_neurons = evaluations
    for evaluation, records in ((of_features, features), (of_neurons, neurons)):
        same = evaluation.names == judged.names and len(evaluation.largest) == records.d_sae
        check(
            same, f"evaluations: expected those of the contexts {judged.names} and of {records.d_sae} latents"
        )
    rows = rows_of(features, SPLITS[1]).ravel()
    documents = documents_of(features.text).ravel()[rows]
    chosen = best_latents(of_features, top_half), best_latents(of_neurons)
    found, skipped = [], dict(judged.skipped)
    for k, name in enumerate(judged.names):
        labels = judged.labels[k].ravel()[rows]
        if min(of_features.explain.positives[k], len(labels) - labels.sum(), labels.sum()) == 0:
            skipped[name] = int(judged.labels[k].sum())  # the tokens are in documents of one split only
            continue
        pair: list[Unit] = []
        aucs: list[Auc] = []
        for records, evaluation, latents in zip((features, neurons), evaluations, chosen, strict=True):
            latent = int(latents[k])
            aucs.append(auc_of(_dense(records, latent)[rows], labels, documents))
            pair.append(_unit(evaluation, k, latent, aucs[-1]))
        apart = difference(*aucs)
        missed = [
            what
            for what, value, least in (
                ("auc", aucs[0].value, auc),
                ("top_half", pair[0].top_half or 0.0, top_half),
                ("difference", apart[0], least_difference),
            )
            if value < least
        ]
        count = int(of_features.score.positives[k])
        n_documents = int(of_features.score.documents[k])
        share = float(judged.labels[k].sum()) / features.text.n_rows
        found.append(
            Row(
                context=name,
                description=judged.descriptions[k],
                n_tokens=count,
                share=share,
                n_documents=n_documents,
                feature=pair[0],
                neuron=pair[1],
                difference=apart[0],
                difference_low=apart[1],
                difference_high=apart[2],
                missed=missed,
            )
        )
    asked = {"auc": auc, "top_half": top_half, "difference": least_difference}
    return ContextTable(found, [row for row in found if row.missed], skipped, asked)


class ActivationHistogram(NamedTuple):
    """How often a latent has which activation in a context and outside of it, on the split "score"."""

    edges: np.ndarray  # [n_bins + 1] float64, from 0 to the largest activation
    inside: np.ndarray  # [n_bins] int64, tokens
    outside: np.ndarray  # [n_bins] int64
    mass_inside: np.ndarray  # [n_bins] float64, sums of their activations: what the expected value is made of
    mass_outside: np.ndarray  # [n_bins] float64


def activation_histogram(
    records: Records, labels: np.ndarray, latent: int, n_bins: int = 44, split: str = SPLITS[1]
) -> ActivationHistogram:
    """What the pictures of a context show.

    Args:
        labels: [m, L] bool, tokens in the context.

    Raises:
        InputError: labels of another text, no such latent, n_bins < 1.
    """
    shape = records.text.contexts.shape
    check(labels.shape == shape, f"labels: expected {list(shape)}, got {list(labels.shape)}")
    check(n_bins > 0, f"n_bins: expected at least 1, got {n_bins}")
    slots, acts = records.entries(latent)
    here = rows_of(records, split).ravel()[slots]
    edges = np.linspace(0, float(acts.max()) if len(acts) else 1.0, n_bins + 1)
    slots, acts = slots[here], acts[here].astype(np.float64)
    inside = labels.ravel()[slots]
    parts = []
    for weights in (None, acts):
        for those in (inside, ~inside):
            of_those = None if weights is None else weights[those]
            parts.append(np.histogram(np.minimum(acts[those], edges[-1]), edges, weights=of_those)[0])
    return ActivationHistogram(edges, *parts)


def _dense(records: Records, latent: int) -> np.ndarray:
    """[m * L] float32, 0 where it is not active."""
    acts = np.zeros(records.text.n_slots, np.float32)
    slots, values = records.entries(latent)
    acts[slots] = values
    return acts


def _unit(evaluation: Evaluation, k: int, latent: int, auc: Auc) -> Unit:
    score = evaluation.score
    at = int(np.nanargmax(evaluation.explain.curves(k, latent)[2]))
    precision, recall, f1 = score.curves(k, latent)
    active, inside = score.active[latent], score.inside[k, latent]
    pairs = [each.reshape(-1, 2).sum(axis=1).tolist() for each in (active, inside)]
    half, strong = len(active) // 2, int(score.strong[latent])
    n_top_half = int(active[half:].sum())
    mass = float(score.mass[latent])
    return Unit(
        latent=latent,
        auc=auc.value,
        auc_low=auc.low,
        auc_high=auc.high,
        pearson=_or_none(score.pearson[k, latent]),
        n_active=int(active.sum()),
        precision=_or_none(precision[0]),
        recall=_or_none(recall[0]),
        mass=float(score.mass_inside[k, latent]) / mass if mass else None,
        n_top_half=n_top_half,
        top_half=int(inside[half:].sum()) / n_top_half if n_top_half else None,
        stronger_half=int(score.strong_inside[k, latent]) / strong if strong else None,
        intervals=[a / n if n else None for n, a in zip(*pairs, strict=True)],
        n_intervals=pairs[0],
        threshold=at * float(evaluation.largest[latent]) / len(active),
        f1=_or_none(f1[at]),
        f1_precision=_or_none(precision[at]),
        f1_recall=_or_none(recall[at]),
    )


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
