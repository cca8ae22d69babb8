"""Language models that explain and judge: what they are asked, whoever answers.

local.py: a causal language model of Hugging Face on this machine; endpoint.py: any server that speaks OpenAI's protocol. What a model
cannot do it says with `CannotAnswer`, before it is paid for.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from saefast.errors import InputError


class Turn(NamedTuple):
    """A part of a conversation."""

    role: str  # "system", "user" or "assistant"
    text: str


Prompt = tuple[Turn, ...]
"""A conversation. Where its last turn is the assistant's, the answer goes on with that text (which is not given back)."""


class CannotAnswer(InputError):
    """This model cannot be asked that: it gives no log-probabilities, or none of a prompt."""


class LanguageModel(Protocol):
    """Thread-safe. Answers to the same questions are the same for a local model and for one behind a cache."""

    @property
    def name(self) -> str:
        """What goes into results beside the method."""
        ...

    @property
    def at_once(self) -> int:
        """How many units should be worked on at once to keep it busy: 1 for a local model."""
        ...

    @property
    def gives_choices(self) -> bool:
        """Whether `choices` works."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether `choices_inside` and `losses` work: probabilities of tokens in the middle of a prompt."""
        ...

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        """n answers to each prompt; one that was cut off at max_tokens ends there."""
        ...

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """How probable each choice is as the beginning of the answer, [prompts, choices] float64, rows of sum 1.

        A choice is known by its first token, so these must differ. Of choices that the model does not report the probability is 0;
        if it reports none of them they are equally probable.

        Raises:
            CannotAnswer: no log-probabilities.
        """
        ...

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        """How probable each choice is after each segment but the last, given all that is before.

        Args:
            segments: of each text, its parts, which are tokenized one by one: [texts][m + 1]. A text is no conversation.
            choices: each of them one token; see `choices` for those that are not reported.

        Returns:
            of each text [m, choices] float64, rows of sum 1.

        Raises:
            CannotAnswer: no log-probabilities of prompts, or a choice that is several tokens.
        """
        ...

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """Of each (before, text): the negative log-probability in nats of each token of `text` after `before`, [tokens] float64.

        Raises:
            CannotAnswer: no log-probabilities of prompts.
        """
        ...
