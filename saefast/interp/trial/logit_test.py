"""Explanations made from activations, tested on what the unit does to the output: which tokens does it make more likely?

100 tokens are judged, 50 of them the unit's positive logits of the ranks 11 to 60, 50 random ones. A unit acts on the *next*
token, so a token is judged by what the explanation predicts on the token before it: its mean over real places of the text after
which the judged token comes. That is P(token is next | a unit of this explanation is active), as a multiple of how frequent the
token is anyway. A reader who judges the tokens knows from reading what comes after what; here the text of the split "explain"
says so. Of the unit itself the judgement knows its explanation and nothing else: not its logits, which only say which tokens are
the 50, and not its activations on these places.

An explanation by context ("in DNA", "Hebrew", "a run of capitals") finds its tokens after one another, one of a previous token
finds what follows it. All tokens are judged at equally many places, and those with fewer are left out on both sides: else rare
ones, whose means are wilder, would stand out for that alone.
"""

from typing import NamedTuple

import numpy as np

from saefast.config.records import RecordsConfig
from saefast.errors import check
from saefast.interp.effects import LogitWeights
from saefast.interp.explain import Explanation
from saefast.interp.records.text import Text, mix
from saefast.interp.trial.scores import auc
from saefast.interp.trial.windows import Places, key

FIRST, LAST = 10, 60  # positive logits, from 0 on: [FIRST, LAST)
SALT = 62  # of the draw; those of the windows are other ones


class Before:
    """For each token of the vocabulary, places of the text before it.

    Args:
        text, config: of the records.
        per_token: places of each token, drawn by the seed; tokens with fewer are not known.
        length: tokens of the window that ends before the judged one.

    Raises:
        InputError: no token has as many places.
    """

    def __init__(
        self, text: Text, config: RecordsConfig, per_token: int = 32, length: int = 9, seed: int = 0
    ) -> None:
        places = Places(text, config, "explain", before=length - 1, after=1)
        after = text.contexts.reshape(-1)[places.slots + 1]
        hashes = mix(places.slots.astype(np.uint32) ^ key(0, seed, SALT))
        order = np.lexsort((places.slots, hashes, after))
        known, first, counts = np.unique(after[order], return_index=True, return_counts=True)
        enough = (counts >= per_token) & ~np.isin(known, text.separators)
        check(bool(enough.any()), f"records: expected tokens with {per_token} places, got too little text")
        self.known: np.ndarray = known[enough]  # token ids, ascending
        chosen = places.slots[order[first[enough][:, None] + np.arange(per_token)]]
        self.windows: np.ndarray = text.contexts.reshape(-1)[
            chosen[..., None] + np.arange(-length + 1, 1)
        ]  # [known, per_token, length] int32

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """[n] known tokens -> the windows before them, [n, per_token, length]."""
        return self.windows[np.searchsorted(self.known, tokens)]


class Judged(NamedTuple):
    """The tokens to be judged, as many positive ones as random ones."""

    tokens: np.ndarray  # [n] int64 ids
    is_positive: np.ndarray  # [n] bool


def choose_tokens(logits: LogitWeights, latent: int, before: Before, seed: int = 0) -> Judged:
    """The positive logits 11 to 60 of a unit, without those that are not known, and as many random known tokens that are not
    among its first 60.

    Raises:
        InputError: fewer than 60 logits of each unit, or fewer known tokens.
    """
    n = logits.positive_tokens.shape[1]
    check(n >= LAST, f"logits: expected {LAST} of each latent (n={LAST}), got {n}")
    first = logits.positive_tokens[latent, :LAST].numpy().astype(np.int64)
    positive = first[FIRST:][np.isin(first[FIRST:], before.known)]
    others = before.known[~np.isin(before.known, first)].astype(np.int64)
    want = f"text: expected {len(positive)} tokens besides those of the largest logits"
    check(len(others) >= len(positive), f"{want}, got {len(others)}")
    order = np.argsort(mix(others.astype(np.uint32) ^ key(latent, seed, SALT)), kind="stable")
    random = others[order[: len(positive)]]
    return Judged(np.concatenate([positive, random]), np.arange(2 * len(positive)) < len(positive))


def judge(explanation: Explanation, tokens: np.ndarray, before: Before) -> np.ndarray:
    """[n] tokens -> how active the explanation says that a unit is just before each, [n] float64.

    Raises:
        InputError: a prediction that is NaN or infinite.
    """
    windows = before.of(tokens)
    n, per_token, length = windows.shape
    predicted = np.asarray(explanation.predict(windows.reshape(n * per_token, length)), np.float64)
    check(bool(np.isfinite(predicted).all()), "predicted: expected finite numbers, got NaN or Inf")
    return predicted[:, -1].reshape(n, per_token).mean(axis=1)


class LogitScore(NamedTuple):
    """Chance is 0.5 for both, and so is an explanation that says the same of all tokens."""

    accuracy: float  # the half with the higher judgements is said to be positive; of equal ones a fair share
    auc: float
    n: int  # tokens


def logit_score(judgements: np.ndarray, is_positive: np.ndarray) -> LogitScore:
    """How well the judgements [n] tell the positive tokens, half of all, from the others. None: 0.5."""
    n = len(judgements)
    if not n:
        return LogitScore(0.5, 0.5, 0)
    half = n // 2
    limit = np.sort(judgements)[::-1][half - 1]
    above, at = judgements > limit, judgements == limit
    share = (half - above.sum()) / at.sum()  # of those at the limit that are in the upper half
    said = np.where(above, 1.0, np.where(at, share, 0.0))
    right = np.where(is_positive, said, 1 - said)
    return LogitScore(float(right.mean()), auc(is_positive, judgements), n)
