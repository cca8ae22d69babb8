"""Surprisal: how much better a model predicts a text when it is told what the text is said to be about. No answer is needed.

Paulo et al., "Automatically interpreting millions of features in large language models" (2024, arXiv 2410.13928).
"""

from collections.abc import Sequence

import numpy as np

from saefast.interp.explain.asked.shots import SHOTS, pieces
from saefast.interp.explain.models import LanguageModel

DUMMY = "Anything that is written."


def gains(model: LanguageModel, sentence: str, texts: Sequence[str]) -> np.ndarray:
    """Mean loss per token, in nats, after a sentence that says nothing minus that after the explanation: [n] float64, positive where
    the explanation helps, 0 of an empty text.

    Raises:
        CannotAnswer: no probabilities inside prompts.
    """
    asked = [text for text in texts if text]
    pairs = [(_before(said), text) for said in (DUMMY, sentence) for text in asked]
    losses = [one.mean() if len(one) else 0.0 for one in model.losses(pairs)] if pairs else []
    found = np.zeros(len(texts))
    is_asked = np.array([bool(text) for text in texts], bool)
    found[is_asked] = np.array(losses[: len(asked)]) - np.array(losses[len(asked) :])
    return found


def _before(sentence: str) -> str:
    text = "Below are texts, each after a sentence that says what is in it.\n"
    for shot in SHOTS[:3]:
        words, _ = pieces(shot.texts[0])
        text += f"\nIn the text: {shot.sentence}\nText:\n{''.join(words.texts)}\n"
    return f"{text}\nIn the text: {sentence}\nText:\n"
