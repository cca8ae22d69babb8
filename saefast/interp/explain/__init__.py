"""Explain, simulate, score: a sentence about a unit, what it predicts, and how well that agrees with what the unit does.

    explainer = Rules(records, vocabulary)           # or LookUp, NGrams, or one that asks a language model
    explanation = explainer.explain(17)
    explanation.sentence                             # "Active on Hebrew letters in a run of them (mean 2.1)."
    explanation.predict(tokens)                      # [n, L] ids of windows -> [n, L] activations

A unit is a latent of an SAE or a neuron, as the records have it. Explainers read documents of the split "explain" only; what they
predict is compared with the activations of the others.

programs/   explanations that are programs, made without a language model
models/     language models: local ones, endpoints
asked/      explainers and judges that ask a language model
scores/     simulation, detection, fuzzing, intruder, embedding, surprisal, ablation, each with an interval and its controls
trust/      which judges may speak: ground truth, and a sheet for people
examples.py which windows of text are seen by whom
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from saefast.interp.explanations import add_explanations


class Explanation(Protocol):
    @property
    def latent(self) -> int: ...

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


class Judge(Protocol):
    """What an explanation says of text, by whoever reads it: a program (`scores/program.py`) or a language model (`asked/judge.py`).

    It sees the explanation and the tokens, never an activation.
    """

    @property
    def name(self) -> str: ...

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """[n, L] ids of windows -> [n, L] float64, predicted activations of each token in any linear scale of the real ones; 0 on padding."""
        ...

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """[n, L] -> [n] float64 in [0, 1], how probable it is that the unit is active anywhere in each window."""
        ...

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        """[n, L] and [n, L] bool -> [n] float64 in [0, 1], how probable it is that the marked tokens are those it is active on."""
        ...


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
