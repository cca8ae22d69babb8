"""What a model without attention and MLP could say: unigrams and bigrams, as the bar for a subject."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor


class Bigrams:
    """Counts of tokens and of pairs of tokens in contexts, [V] and [V, V] int64: 134 MB for 4096 tokens."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.pairs = np.zeros((n_vocab, n_vocab), np.int64)
        self.counts = np.zeros(n_vocab, np.int64)

    def add(self, contexts: Tensor) -> None:
        """contexts: [m, L] int64 token ids."""
        tokens, V = contexts.numpy(), self.n_vocab
        there, counts = np.unique(tokens[:, :-1] * V + tokens[:, 1:], return_counts=True)
        self.pairs.reshape(-1)[there] += counts
        self.counts += np.bincount(tokens.reshape(-1), minlength=V)

    def losses(self, contexts: Iterable[Tensor]) -> tuple[float, float]:
        """Mean negative log-likelihood of the tokens from the second of each context on, in nats: by unigrams (every count
        with 1 added), and by bigrams mixed with them as by Witten and Bell (1991):

            p(b | a) = (count(a b) + T(a) p(b)) / (count(a) + T(a)),  T(a) the number of different tokens after a
        """
        one = (self.counts + 1) / (self.counts.sum() + self.n_vocab)
        after, kinds = self.pairs.sum(axis=1), (self.pairs > 0).sum(axis=1)
        totals, n = np.zeros(2), 0
        for batch in contexts:
            tokens = batch.numpy()
            a, b = tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1)
            seen = np.maximum(after[a] + kinds[a], 1)
            two = (self.pairs[a, b] + np.maximum(kinds[a], after[a] == 0) * one[b]) / seen
            totals -= np.log(one[b]).sum(), np.log(two).sum()
            n += len(b)
        return float(totals[0] / n), float(totals[1] / n)
