"""How well each latent tells each context, for all latents and all contexts at once.

One pass over the sparse code. An entry (an activation on a token) meets the few contexts of its token, so that the time is that
of sorting each latent's activations and of a few sums for each entry: the dense product of latents and tokens is never made.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from saefast.config.records import SPLITS
from saefast.errors import check
from saefast.interp.contexts.judged import Judged, documents_of, rows_of
from saefast.interp.records import Records
from saefast.interp.together import NO_VARIANCE

INTERVALS = (
    22  # of equal width, of (0, largest activation]: each of the 11 of a record's examples is two of them
)
ENTRIES = 2**22  # at a time


class Figures(NamedTuple):
    """Of F latents and K contexts on the documents of one split. Shares of nothing are NaN."""

    n_rows: int
    positives: np.ndarray  # [K] int64, tokens in the context
    documents: np.ndarray  # [K] int64, documents that they are in
    active: np.ndarray  # [F, 22] int64, tokens with an activation in each interval
    inside: np.ndarray  # [K, F, 22] int64, those of them in the context
    strong: np.ndarray  # [F] int64, tokens with one of the stronger half of its activations
    strong_inside: np.ndarray  # [K, F] int64
    mass: np.ndarray  # [F] float64, sum of the activations
    mass_inside: np.ndarray  # [K, F] float64
    auc: (
        np.ndarray
    )  # [K, F] float64, of the activation against the label; inactive tokens are ties; NaN: one kind only
    pearson: np.ndarray  # [K, F] float64, with the score of the proxy, at least 0; NaN: no variance

    def curves(self, context: int, latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1, [22] each: of calling what has an activation in this interval or above it the context."""
        inside, active = (
            each[::-1].cumsum()[::-1] for each in (self.inside[context, latent], self.active[latent])
        )
        positives = self.positives[context]
        return _over(inside, active), _over(inside, positives), _over(2 * inside, active + positives)

    def n_top_half(self) -> np.ndarray:
        """[F] int64: tokens with an activation of half of the largest one or more."""
        return self.active[:, INTERVALS // 2 :].sum(axis=1)

    def top_half(self) -> np.ndarray:
        """[K, F]: of those, the share in the context."""
        return _over(self.inside[:, :, INTERVALS // 2 :].sum(axis=2), self.n_top_half())


class Evaluation(NamedTuple):
    """Of all latents of records and all contexts, apart for the documents for choosing latents and for the others."""

    names: list[str]  # [K]
    largest: np.ndarray  # [F] float64, activation in the whole text, to which the intervals go
    explain: Figures
    score: Figures


def evaluate_contexts(records: Records, judged: Judged) -> Evaluation:
    """Compare all latents with all contexts.

    Time on one core: about 0.4 s for each million activations and split. Memory: K x F x 22 counts, and some arrays of 2^22.

    Args:
        records: of any dictionary, neurons too.
        judged: of their text, by `saefast.interp.contexts.judge`.

    Raises:
        InputError: a judgement of another text.
    """
    text = records.text
    same = judged.labels.shape[1:] == text.contexts.shape
    want, got = list(text.contexts.shape), list(judged.labels.shape[1:])
    check(
        same, f"judged: expected a judgement of the text of the records, of {want} tokens, got one of {got}"
    )
    splits = [_Sums(records, judged, split) for split in SPLITS]
    largest = np.zeros(records.d_sae)
    for first, counts, slots, acts in _chunks(records):
        latent = np.repeat(np.arange(len(counts)), counts)
        peaks = np.zeros(len(counts))
        np.maximum.at(peaks, latent, acts)
        largest[first : first + len(counts)] = peaks
        interval = np.minimum(acts / peaks[latent] * INTERVALS, INTERVALS - 1).astype(np.int64)
        for sums in splits:
            here = sums.rows[slots]
            sums.add(first, len(counts), latent[here], slots[here], acts[here], interval[here])
    return Evaluation(judged.names, largest, *(sums.figures() for sums in splits))


class _Lists:
    """Of each slot the contexts that have something there, and what."""

    def __init__(self, values: np.ndarray) -> None:
        """values: [K, slots]."""
        slot, self.which = values.T.nonzero()
        self.values = values.T[slot, self.which]
        self.offsets = np.searchsorted(slot, np.arange(values.shape[1] + 1))

    def meet(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of one of these slots and what is in its list: where the one is in `slots`, the other in the lists."""
        counts = self.offsets[slots + 1] - self.offsets[slots]
        ends = np.cumsum(counts)
        first = np.repeat(self.offsets[slots] - (ends - counts), counts)
        return np.repeat(np.arange(len(slots)), counts), first + np.arange(len(first))


class _Sums:
    """What is added up for one split."""

    def __init__(self, records: Records, judged: Judged, split: str) -> None:
        rows = rows_of(records, split)
        labels = judged.labels & rows
        documents = documents_of(records.text)
        self.rows, self.n_rows = rows.ravel(), int(rows.sum())
        self.positives = labels.sum(axis=(1, 2))
        self.documents = np.array([len(np.unique(documents[one])) for one in labels], np.int64)
        K, F = len(labels), records.d_sae
        self.labels = _Lists(labels.reshape(K, -1))
        scores = np.where(rows, judged.scores, 0).reshape(K, -1)
        self.scores = _Lists(scores)
        self.score_sums = scores.sum(axis=1, dtype=np.float64), (scores.astype(np.float64) ** 2).sum(axis=1)
        self.active, self.inside = np.zeros((F, INTERVALS), np.int64), np.zeros((K, F, INTERVALS), np.int64)
        self.strong, self.strong_inside = np.zeros(F, np.int64), np.zeros((K, F), np.int64)
        self.act_sums, self.mass_inside = np.zeros((2, F)), np.zeros((K, F))
        self.ranks, self.products = np.zeros((K, F)), np.zeros((K, F))

    def add(
        self,
        first: int,
        n: int,
        latent: np.ndarray,
        slots: np.ndarray,
        acts: np.ndarray,
        interval: np.ndarray,
    ) -> None:
        """The entries of n latents from `first` on, sorted by latent; latent [N] is numbered from 0 on."""
        these, K = slice(first, first + n), len(self.positives)
        counts = np.bincount(latent, minlength=n)
        rank = _ranks(latent, acts, counts)
        wide = acts.astype(np.float64)
        strong = rank > counts[latent] / 2
        self.active[these] = np.bincount(latent * INTERVALS + interval, minlength=n * INTERVALS).reshape(
            n, -1
        )
        self.strong[these] = np.bincount(latent[strong], minlength=n)
        self.act_sums[:, these] = [np.bincount(latent, each, n) for each in (wide, wide**2)]

        entry, place = self.labels.meet(slots)
        cell = self.labels.which[place] * n + latent[entry]
        inside = np.bincount(cell * INTERVALS + interval[entry], minlength=K * n * INTERVALS)
        self.inside[:, these] = inside.reshape(K, n, INTERVALS)
        self.strong_inside[:, these] = np.bincount(cell[strong[entry]], minlength=K * n).reshape(K, n)
        self.mass_inside[:, these] = np.bincount(cell, wide[entry], K * n).reshape(K, n)
        self.ranks[:, these] = np.bincount(cell, rank[entry], K * n).reshape(K, n)
        entry, place = self.scores.meet(slots)
        cell = self.scores.which[place] * n + latent[entry]
        products = wide[entry] * self.scores.values[place]
        self.products[:, these] = np.bincount(cell, products, K * n).reshape(K, n)

    def figures(self) -> Figures:
        n, positives = self.n_rows, self.positives[:, None]
        inactive, inside = n - self.active.sum(axis=1), self.inside.sum(axis=2)
        ranks = self.ranks + inside * inactive + (positives - inside) * (inactive + 1) / 2
        pairs = positives * (n - positives)
        auc = _over(ranks - positives * (positives + 1) / 2, pairs)
        mean, square = self.act_sums / max(n, 1)
        score_mean, score_square = (each / max(n, 1) for each in self.score_sums)
        std = np.sqrt(np.where(square - mean**2 > NO_VARIANCE * square, square - mean**2, 0))
        variance = score_square - score_mean**2
        score_std = np.sqrt(np.where(variance > NO_VARIANCE * score_square, variance, 0))
        together = self.products / max(n, 1) - score_mean[:, None] * mean
        return Figures(
            n_rows=n,
            positives=self.positives,
            documents=self.documents,
            active=self.active,
            inside=self.inside,
            strong=self.strong,
            strong_inside=self.strong_inside,
            mass=self.act_sums[0],
            mass_inside=self.mass_inside,
            auc=auc,
            pearson=_over(together, score_std[:, None] * std),
        )


def _chunks(records: Records) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Some latents at a time: the first of them, [n] how many entries each has, and of all of these slots and acts."""
    total = np.zeros(records.d_sae, np.int64)
    for block in records.blocks:
        total += np.diff(block.offsets)
    first = 0
    while first < records.d_sae:
        end = first + max(1, int(np.searchsorted(np.cumsum(total[first:]), ENTRIES)))
        end = min(end, records.d_sae)
        found = [records.entries(latent) for latent in range(first, end)]
        slots, acts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        yield first, total[first:end], slots, acts
        first = end


def _ranks(latent: np.ndarray, acts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The rank of each activation among those of its latent, from 1 on, of equal ones the mean; latents are sorted."""
    # positive floats are in the order of their bits
    keys = (latent.astype(np.uint64) << np.uint64(32)) | acts.astype(np.float32).view(np.uint32)
    order = np.argsort(keys)
    keys = keys[order]
    new = np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])
    firsts = new.nonzero()[0]
    sizes = np.diff(np.append(firsts, len(keys)))
    mean = np.repeat(firsts + (sizes + 1) / 2, sizes)
    rank = np.empty(len(keys))
    rank[order] = mean
    return rank - np.repeat(np.cumsum(counts) - counts, counts)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
