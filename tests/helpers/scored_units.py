"""Units whose windows have nothing to do with one another, for the tests of scores: each is active on two tokens of a text that is drawn
at random, token by token."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from saefast.interp.explain.examples import GROUPS, Examples
from saefast.interp.trial.planted import planted_records

LENGTH = 128
N_TOKENS = 121  # 0 ends a document
N_UNITS = 40
DENSE, RARE, NEVER = (
    N_UNITS,
    N_UNITS + 1,
    N_UNITS + 2,
)  # active on all tokens, in five windows for scoring, not at all


@dataclass(frozen=True)
class Said:
    """An explanation that is a table."""

    latent: int
    table: np.ndarray  # [N_TOKENS + 1]; padding is the last
    sentence: str = "a table"

    def predict(self, tokens):
        return self.table[tokens]


def true_of(latent):
    table = np.zeros(N_TOKENS + 1)
    if latent < N_UNITS:
        table[[2 * latent + 1, 2 * latent + 2]] = 1.5
    return Said(latent, table)


def constant(latent, value):
    return Said(latent, np.full(N_TOKENS + 1, value))


@cache
def records_of(folder, n_contexts=400):
    rng = np.random.default_rng(0)
    contexts = rng.integers(1, N_TOKENS, (n_contexts, LENGTH)).astype(np.int32)
    contexts[:, -1] = 0  # a context is a document
    rows = np.zeros((n_contexts, LENGTH, N_UNITS + 3), np.float32)
    for unit in range(N_UNITS):
        rows[:, :, unit] = np.isin(contexts, [2 * unit + 1, 2 * unit + 2]) * rng.uniform(1, 2, contexts.shape)
    rows[:, :, DENSE] = rng.uniform(1, 2, contexts.shape)
    first = planted_records(
        folder / "first", rows[:, :, :1], contexts
    )  # to know which documents are for scoring
    documents = first.text.splits(first.text.first_document, first.config)
    five = np.flatnonzero(documents == 1)[:5]
    rows[five, 3, RARE] = [1, 2, 3, 8, 9]
    return planted_records(folder / "all", rows, contexts)


def by_hand(acts, tokens=None, split="score", latent=0, first_slot=0):
    """Windows with these activations."""
    acts = np.asarray(acts, np.float64)
    n, length = acts.shape
    tokens = np.ones(acts.shape, np.int32) if tokens is None else np.asarray(tokens, np.int32)
    slots = first_slot + np.arange(n) * length
    group = np.full(n, GROUPS.index("random"), np.int8)
    return Examples(latent, split, tokens, acts, slots, group, np.full(n, -1, np.int8), float(acts.max()))
