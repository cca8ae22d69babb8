"""Look-up (seeds: E0): a latent is what it is on average on each token, whatever comes before.

The baseline of Bills et al., "Language models can explain neurons in language models" (2023). It explains latents that stand for
single tokens completely, and what depends on the text not at all.
"""

from dataclasses import dataclass, field

import numpy as np

from saefast.interp.explain.programs.split import ExplainSplit, checked_windows
from saefast.interp.explain.programs.words import NEVER, listed, number, quoted
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

NAMED = 8  # tokens in the sentence
SHARE = 0.01  # of all activation, that must be on a token for the sentence to name it


@dataclass(frozen=True)
class TokenMeans:
    """A prediction for each token id."""

    latent: int
    sentence: str
    means: np.ndarray = field(repr=False)  # [V] float64

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Explanation.predict`."""
        return np.append(self.means, 0.0)[
            checked_windows(tokens, len(self.means))
        ]  # padding, -1, is the last


class LookUp:
    """Means over the tokens with a row in documents for explaining. A token that is not there has the mean of all."""

    name = "lookup"

    def __init__(self, records: Records, vocabulary: Vocabulary, split: ExplainSplit | None = None) -> None:
        self.split, self.vocabulary = split or ExplainSplit(records), vocabulary
        known = self.split.tokens[self.split.has_row]
        checked_windows(known[None], len(vocabulary))
        self.counts = np.bincount(known, minlength=len(vocabulary))

    def explain(self, latent: int) -> TokenMeans:
        """Raises InputError if there is no such latent."""
        places, acts = self.split.entries(latent)
        sums = np.bincount(self.split.tokens[places], acts, len(self.counts))
        mean = float(acts.sum()) / max(self.split.n_rows, 1)
        means = np.where(self.counts > 0, sums / np.maximum(self.counts, 1), mean)
        return TokenMeans(latent, self._sentence(sums, means), means)

    def _sentence(self, sums: np.ndarray, means: np.ndarray) -> str:
        """The strongest of the tokens that matter: not one that is there once, or only if there is nothing else."""
        if not sums.any():
            return NEVER
        least = min(SHARE * sums.sum(), sums.max())
        enough = np.flatnonzero(sums >= least)  # few of the vocabulary, and the order of few is cheap
        strongest = enough[np.argsort(-means[enough], kind="stable")][:NAMED].tolist()
        parts = [f"{quoted([self.vocabulary.raw[i]])} ({number(means[i])})" for i in strongest]
        n_others = int((sums > 0).sum()) - len(strongest)
        others = f"; less of it on {n_others} other tokens" if n_others else ""
        return f"Active on the token{'s' * (len(parts) > 1)} {listed(parts)}{others}."
