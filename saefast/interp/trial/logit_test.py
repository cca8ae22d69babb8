"""Explanations made from activations, tested on what the unit does to the output: which tokens does it make more likely?

100 tokens are judged, 50 of them the unit's positive logits of the ranks 11 to 60, 50 random ones. A unit acts on the *next*
token, so a token is judged by what the explanation predicts just before it: the mean of the predictions over the places of the
text after which the token comes. Up to a factor that is P(token is next | the explanation says active) / P(token). A reader who
judges the tokens knows from reading what comes after what; here the text of the split "explain" says so. Of the unit itself the
judgement knows its explanation and nothing else: not its logits, which only say which tokens are the 50, and not its activations.

So an explanation by context ("in DNA", "Hebrew", "a run of capitals") finds its tokens after one another, and one of a single
token finds what follows it. Tokens that are rare in the text are left out on both sides, as near-unused vocabulary is from the
paper's plots. The same is done with 50 random tokens that are as frequent as the positive ones: a dictionary whose logits
merely sort the vocabulary by frequency wins nothing there.
"""

from typing import NamedTuple

import numpy as np

from saefast.config.records import SPLITS, RecordsConfig
from saefast.errors import check
from saefast.interp.effects import LogitWeights
from saefast.interp.explain import Explanation
from saefast.interp.records.text import Text, mix
from saefast.interp.trial.scores import auc
from saefast.interp.trial.windows import key

FIRST, LAST = 10, 60  # positive logits, from 0 on: [FIRST, LAST)
SALT = 62  # of the draws; those of the windows are other ones
NEAR = 8  # tokens of similar frequency, of which one is drawn
NO_TOKEN = -1


class Following:
    """Which token comes next at the places of a text, in documents of the split "explain".

    Args:
        text, config: of the records.
        most: tokens of the text that are read, in whole contexts drawn by the seed.
        least: places before a token; tokens with fewer are not known.

    Attributes:
        windows: [m, L] int32, whole contexts; -1 in documents of the other split.
        known: ids of the tokens that can be judged, ascending; no separators.
        counts: [largest id + 1] int64, places before each token.

    Raises:
        InputError: no token has as many places.
    """

    def __init__(
        self, text: Text, config: RecordsConfig, most: int = 2**19, least: int = 32, seed: int = 0
    ) -> None:
        n = max(1, most // text.length)
        hashes = mix(np.arange(len(text.contexts), dtype=np.uint32) ^ key(0, seed, SALT))
        chosen = np.sort(np.argsort(hashes, kind="stable")[:n])
        ended = text.ends[chosen].cumsum(axis=1) - text.ends[chosen]  # documents before each token
        documents = text.first_document[chosen, None] + ended
        shape, explain = documents.shape, SPLITS.index("explain")
        is_explain = (text.splits(documents.reshape(-1), config) == explain).reshape(shape)
        contexts, has_row = text.contexts[chosen], text.encoded[chosen]
        self.windows: np.ndarray = np.where(is_explain, contexts, NO_TOKEN).astype(np.int32)
        is_place = is_explain & has_row
        is_place[:, :-1] &= documents[:, 1:] == documents[:, :-1]
        is_place[:, -1] = False
        self._places = is_place.reshape(-1).nonzero()[0]
        self._next = contexts.reshape(-1)[self._places + 1]
        self.counts: np.ndarray = np.bincount(self._next, minlength=int(contexts.max()) + 1)
        enough = (self.counts >= least).nonzero()[0]
        self.known: np.ndarray = enough[~np.isin(enough, text.separators)]
        want = f"records: expected tokens that come {least} times in documents for explaining"
        check(len(self.known) > 0, f"{want}, got too little text")

    def judge(self, explanation: Explanation) -> np.ndarray:
        """How active the explanation says that a unit is just before each token, [largest id + 1] float64; 0 for tokens that do
        not come.

        Raises:
            InputError: a prediction that is NaN or infinite.
        """
        predicted = np.asarray(explanation.predict(self.windows), np.float64)
        want, got = list(self.windows.shape), list(predicted.shape)
        ok = predicted.shape == self.windows.shape and bool(np.isfinite(predicted).all())
        check(ok, f"predicted: expected finite numbers {want}, got {got} or NaN or Inf")
        sums = np.bincount(self._next, predicted.reshape(-1)[self._places], len(self.counts))
        return sums / np.maximum(self.counts, 1)


class Judged(NamedTuple):
    """The tokens that are judged of a unit, n at most 50; ids, int64."""

    positive: np.ndarray  # [n]
    random: np.ndarray  # [n]
    matched: np.ndarray  # [n], about as frequent as the positive ones


def choose_tokens(logits: LogitWeights, latent: int, following: Following, seed: int = 0) -> Judged:
    """The positive logits 11 to 60 of a unit, without those that are not known, and as many known tokens, drawn by the seed, that
    are not among its first 60: random ones, and for each positive one another of the 8 that are most nearly as frequent.

    Raises:
        InputError: fewer than 60 logits of each unit, or fewer known tokens.
    """
    n_logits = logits.positive_tokens.shape[1]
    check(n_logits >= LAST, f"logits: expected {LAST} of each latent (n={LAST}), got {n_logits}")
    known, counts = following.known, following.counts
    first = logits.positive_tokens[latent, :LAST].numpy().astype(np.int64)
    positive = first[FIRST:][np.isin(first[FIRST:], known)]
    others = known[~np.isin(known, first)].astype(np.int64)
    want = f"text: expected {len(positive)} tokens besides those of the largest logits"
    check(len(others) >= len(positive), f"{want}, got {len(others)}")
    hashes = mix(others.astype(np.uint32) ^ key(latent, seed, SALT))
    random = others[np.argsort(hashes, kind="stable")[: len(positive)]]
    matched, left = [], np.ones(len(others), bool)
    for token in positive.tolist():
        far = np.abs(np.log(counts[others] / counts[token]))
        near = np.argsort(np.where(left, far, np.inf), kind="stable")[: min(NEAR, int(left.sum()))]
        one = near[hashes[near].argmin()]
        left[one] = False
        matched.append(int(others[one]))
    return Judged(positive, random, np.asarray(matched, np.int64))


class LogitScore(NamedTuple):
    """Chance is 0.5 for all of them, and so is an explanation that says the same of all tokens."""

    accuracy: float  # the half with the higher judgements is said to be positive; of equal ones a fair share
    auc: float
    matched_accuracy: float  # against tokens that are as frequent
    n: int  # positive tokens


def logit_score(judgements: np.ndarray, judged: Judged) -> LogitScore:
    """How well judgements, `Following.judge`, tell the positive tokens from the others. None: 0.5."""
    n = len(judged.positive)
    if not n:
        return LogitScore(0.5, 0.5, 0.5, 0)
    both = [
        np.concatenate([judgements[judged.positive], judgements[one]])
        for one in (judged.random, judged.matched)
    ]
    is_positive = np.arange(2 * n) < n
    return LogitScore(
        accuracy(both[0], is_positive), auc(is_positive, both[0]), accuracy(both[1], is_positive), n
    )


def accuracy(judgements: np.ndarray, is_positive: np.ndarray) -> float:
    """The share that is right where the upper half of the judgements [2 n] is said to be positive, n of which are. Of those that
    are equal at the border it is the mean over all their orders."""
    half = len(judgements) // 2
    limit = np.sort(judgements)[::-1][half - 1]
    above, at = judgements > limit, judgements == limit
    share = (half - above.sum()) / at.sum()  # of those at the limit that are in the upper half
    said = np.where(above, 1.0, np.where(at, share, 0.0))
    return float(np.where(is_positive, said, 1 - said).mean())
