"""The best string: the largest sum over the tokens of a string, of all strings that end at a token.

The sums are log-likelihood ratios, log P(s | context) - log P(s), of a model in which tokens are independent; so the maximum
over the prefixes is a recursion over positions (Kadane 1984), done for all contexts at once.
"""

from functools import lru_cache

import numpy as np

from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary

OTHER = float(np.log(1e-10))  # of what a context does not have ("Towards Monosemanticity", appendix)


def best_ending(ratios: np.ndarray, begins: np.ndarray, at_least: int = 1) -> np.ndarray:
    """The largest sum of a string that ends at each token, [m, L] float64.

    Args:
        ratios: [m, L] of each token.
        begins: [m, L] bool, tokens before which no string of theirs begins.
        at_least: tokens of a string. Where there are fewer since it begins, a token that the context cannot have counts for
            each that is missing.
    """
    best = ratios.astype(np.float64).copy()
    for t in range(1, ratios.shape[1]):
        best[:, t] += np.where(begins[:, t], 0, np.maximum(best[:, t - 1], 0))
    for missing in range(1, at_least):
        before = np.where(begins[:, 1:], missing * OTHER, best[:, :-1])
        best = ratios + np.concatenate([np.full((len(best), 1), missing * OTHER), before], axis=1)
    return best


@lru_cache(maxsize=2)
def unigram(text: Text, vocabulary: Vocabulary) -> np.ndarray:
    """log P of each token id, [V] float64, from how often it is in the text; one that is not counts as being there once."""
    tokens = text.contexts[text.contexts >= 0]
    counts = np.bincount(tokens, minlength=len(vocabulary))
    return np.log(np.maximum(counts, 1)) - np.log(max(len(tokens), 1))
