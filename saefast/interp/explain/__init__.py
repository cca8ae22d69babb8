"""Explanations that predict: a sentence about a latent, and a number for each token that it is held to.

    explainer = Rules(records, vocabulary)           # or LookUp, NGrams: a file for each
    explanation = explainer.explain(17)
    explanation.sentence                             # "Active on Hebrew letters in a run of them (mean 2.1)."
    explanation.predict(tokens)                      # [n, L] ids of windows -> [n, L] activations

Nothing is asked of a remote model. Explainers read documents of the split "explain" only; what they predict is compared with the
activations of the others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from saefast.interp.explanations import add_explanations


class Explanation(Protocol):
    @property
    def sentence(self) -> str: ...

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Activations in the unit of the real ones.

        Args:
            tokens: [n, L] int, windows of token ids of which each is a text of its own; -1 is padding, no token.

        Returns:
            [n, L] float64, 0 on padding.
        """
        ...


class Explainer(Protocol):
    @property
    def name(self) -> str: ...

    def explain(self, latent: int) -> Explanation: ...


def add_sentences(
    folder: str | Path,
    name: str,
    explanations: Mapping[int, Explanation],
    scores: Mapping[int, Mapping[str, float]] | None = None,
) -> Path:
    """Add the sentences of latents to explanations.jsonl in a folder of records, in place of earlier ones of the same method.

    Args:
        name: the method, `Explainer.name`.
        explanations: by latent.
        scores: by latent and name; default: none.
    """
    given = scores or {}
    lines = (
        {
            "latent": int(latent),
            "explanation": one.sentence,
            "method": name,
            "scores": dict(given.get(latent, {})),
        }
        for latent, one in explanations.items()
    )
    return add_explanations(folder, lines)
