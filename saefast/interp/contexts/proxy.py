"""What a proxy is: a number that says how likely a token is part of a kind of text, and a judgement, both from the text alone."""

from typing import Protocol

import numpy as np

from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary


class Proxy(Protocol):
    """A context that a latent may stand for."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """What a token of the context is part of, for people."""
        ...

    def scores(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] float32 for each token of the text: the larger, the surer; at most 0 where nothing speaks for it."""
        ...

    def labels(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] bool: whether it is in the context."""
        ...
