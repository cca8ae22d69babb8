"""The AUC of one latent with its uncertainty, for tokens that come in documents.

Each document's tokens move the AUC together. The sum of what they add to it (the placement values of DeLong, DeLong and
Clarke-Pearson 1988, summed over clusters as by Obuchowski 1997) gives the variance:

    var(AUC) = sum over documents of ( sum over its positives of (V - AUC) / P + sum over its negatives of (V - AUC) / N )^2

with V of a positive the share of negatives below it, of a negative the share of positives above it, ties half.
"""

from typing import NamedTuple

import numpy as np

from saefast.errors import check

Z = 1.959964  # of 95 %


class Auc(NamedTuple):
    value: float
    low: float  # of the 95 % confidence interval, from 0 to 1
    high: float
    by_document: np.ndarray  # [D] float64, what each document adds; D numbers of documents


def auc_of(acts: np.ndarray, labels: np.ndarray, documents: np.ndarray) -> Auc:
    """The probability that a token in the context has the larger activation than one that is not, ties half.

    Args:
        acts: [n] of each token, 0 where it is not active.
        labels: [n] bool.
        documents: [n] int64, numbers from 0 on.

    Raises:
        InputError: labels that are all true or all false.
    """
    check(bool(labels.any()) and not labels.all(), "labels: expected tokens in the context and others")
    inside, outside = np.sort(acts[labels]), np.sort(acts[~labels])
    distinct, which = np.unique(acts, return_inverse=True)

    def share_below(among: np.ndarray) -> np.ndarray:
        sides = [np.searchsorted(among, distinct, side) for side in ("left", "right")]
        return (sides[0] + sides[1]) / 2 / len(among)

    value_in, value_out = share_below(outside)[which], 1 - share_below(inside)[which]
    value = float(value_in[labels].mean())
    parts = np.where(labels, (value_in - value) / len(inside), (value_out - value) / len(outside))
    by_document = np.bincount(documents, parts)
    half = Z * float(np.sqrt((by_document**2).sum()))
    return Auc(value, max(0.0, value - half), min(1.0, value + half), by_document)


def difference(one: Auc, other: Auc) -> tuple[float, float, float]:
    """The first AUC minus the second one, of the same tokens, and its 95 % confidence interval."""
    value = one.value - other.value
    half = Z * float(np.sqrt(((one.by_document - other.by_document) ** 2).sum()))
    return value, value - half, value + half
