"""What the tests of trials share: an explainer that is a table of means, and small arms."""

from functools import cache

import numpy as np
import torch

from saefast.interp.effects import LogitWeights
from saefast.interp.records.text import Text
from saefast.interp.trial import Arm, TrialConfig, plant


class Means:
    """Explains a unit by its mean on each token of the documents of the split "explain"."""

    def __init__(self, records, name="means", noise=0.0):
        self.records, self.name, self.noise = records, name, noise
        text = records.text
        slots = np.arange(text.n_slots)
        kept = (text.splits(text.documents(slots), records.config) == 0) & text.encoded.ravel()
        self.is_explain = kept
        self.tokens = text.contexts.ravel()
        self.counts = np.bincount(self.tokens[kept], minlength=int(self.tokens.max()) + 1)
        self.explained = []

    def explain(self, latent):
        self.explained.append(latent)
        slots, acts = self.records.entries(latent)
        kept = self.is_explain[slots]
        sums = np.bincount(self.tokens[slots[kept]], acts[kept], len(self.counts))
        return Table(sums / np.maximum(self.counts, 1))


class Table:
    sentence = "a table"

    def __init__(self, means):
        self.means = np.append(means, 0.0)  # padding, -1, is the last

    def predict(self, tokens):
        return self.means[tokens]


def text_of(contexts, separators=(), left_out=()):
    """A text in which all tokens have a row but for the slots `left_out`."""
    contexts = np.asarray(contexts, np.int32)
    encoded = np.ones(contexts.size, bool)
    encoded[list(left_out)] = False
    return Text(contexts, encoded.reshape(contexts.shape), separators)


@cache
def planted(folder, seed=0, n_contexts=200):
    return plant(folder, seed, n_contexts)


def random_logits(n, n_tokens, seed=0):
    x = torch.randn(n, n_tokens, generator=torch.Generator().manual_seed(seed))
    top, low = x.sort(dim=1, descending=True), x.sort(dim=1)
    return LogitWeights(
        top.indices[:, :60].int(),
        top.values[:, :60],
        low.indices[:, :60].int(),
        low.values[:, :60],
        torch.zeros(n, 50, dtype=torch.int32),
        x.amin(dim=1),
        x.amax(dim=1),
    )


def arms_of(ground, explainers=None):
    """Planted units as the arms of a trial: one thing each, mixtures, and the rest with random logits."""
    explainers = [Means(ground.records)] if explainers is None else explainers
    kinds = np.asarray(ground.kinds)
    pools = {
        "features": ground.monosemantic.nonzero()[0],
        "neurons": (kinds == "mixture").nonzero()[0],
        "shuffled": np.isin(kinds, ["noise", "dense"]).nonzero()[0],
    }
    return {
        name: Arm(ground.records, explainers, ground.logits, pool.tolist()) for name, pool in pools.items()
    }


def config(**other):
    given = {
        "explainers": ("means",),
        "primary": "means",
        "n_units": 12,
        "n_permutations": 999,
        "n_bootstrap": 200,
    }
    given |= {"least_places": 8}  # of a small text
    return TrialConfig(**(given | other))
