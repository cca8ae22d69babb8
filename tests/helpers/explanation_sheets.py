"""Small sheets of explanations for people, of records of random tokens."""

import numpy as np

from saefast.interp.explain.trust.sheet import deal_sheet
from tests.helpers import look_records

METHODS = ("lookup", "rules-of-two", "from-a-model")
LENGTH = 4


def records_of(folder, raw, special=()):
    """40 latents, of which the last two are never active."""
    vocabulary = look_records.Tokens(raw, special)
    contexts = np.random.default_rng(1).integers(0, len(raw), (60, 27)).astype(np.int32)
    return look_records.make(folder, vocabulary, contexts=contexts), vocabulary


def explanations(n=40, sentence="sentence {} of unit {}"):
    """One of each method for each latent."""
    return [
        {
            "latent": i,
            "explanation": sentence.format(j, i),
            "method": method,
            "model": None,
            "scores": {"auc": 0.5},
        }
        for i in range(n)
        for j, method in enumerate(METHODS)
    ]


def dealt(records, vocabulary, out, some=None, n=12, seed=0):
    given = explanations() if some is None else some
    return deal_sheet(records.folder, given, out, vocabulary, n=n, seed=seed, length=LENGTH)
