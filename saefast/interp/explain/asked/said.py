"""What a language model said of a unit, and how it becomes an explanation."""

import re
from dataclasses import dataclass, field

import numpy as np

from saefast.errors import InputError
from saefast.interp.explain import Judge
from saefast.interp.explain.asked.tokens import CONTROL
from saefast.interp.explain.models import LanguageModel, Prompt, Turn
from saefast.interp.explain.programs.words import NEVER

MOST = 400  # characters of a sentence
READ = 4000  # characters of an answer that are looked at
TOKENS = 60  # of an answer, as Bills et al. (2023) have it
UNUSABLE = "No explanation: the answer of the model could not be used."
BEGINNING = "This unit is active on"  # of an answer; the sentence is what comes after it


@dataclass(frozen=True)
class Said:
    """An explanation in words, which only a judge can turn into predictions."""

    latent: int
    sentence: str
    model: str  # that was asked, its name; "" if none was
    prompt: Prompt = field(repr=False)
    seen: np.ndarray = field(
        repr=False, compare=False
    )  # [k] int64, slots of the tokens that the model was shown
    simulator: Judge | None = field(default=None, repr=False, compare=False)

    @property
    def is_explained(self) -> bool:
        return self.sentence not in (NEVER, UNUSABLE)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Explanation.predict`; 0 everywhere where nothing was explained.

        Raises:
            InputError: no simulator.
        """
        if not self.is_explained:
            return np.zeros(np.shape(tokens))
        if self.simulator is None:
            raise InputError(
                "simulator: a sentence predicts nothing by itself: expected a judge that simulates, as in "
                "`TokenActivations(..., simulator=judge)`"
            )
        return self.simulator.simulate(self, tokens)


def ask(
    model: LanguageModel,
    latent: int,
    prompt: Prompt,
    seen: np.ndarray,
    simulator: Judge | None,
    *,
    temperature: float = 0.0,
    n: int = 1,
    seed: int = 0,
) -> list[Said]:
    """n answers to a prompt that ends with a question; all begin with BEGINNING."""
    whole = (*prompt, Turn("assistant", BEGINNING))
    answers = model.write([whole], max_tokens=TOKENS, temperature=temperature, n=n, seed=seed)[0]
    found = [sentence_of(answer) or UNUSABLE for answer in answers] or [UNUSABLE]
    return [Said(latent, one, model.name, whole, seen, simulator) for one in found]


def never(latent: int, simulator: Judge | None) -> Said:
    """Of a unit that is active nowhere where it could be looked at: no model is asked."""
    return Said(latent, NEVER, "", (), np.zeros(0, np.int64), simulator)


def sentence_of(answer: str) -> str | None:
    """The first paragraph of an answer as one line of at most MOST characters; None if there is nothing in it.

    Whatever it says is text: signs that cannot be seen are spaces, and what chat templates mean something by has a backslash.
    """
    text = answer[:READ].strip()
    if text.lower().startswith(BEGINNING.lower()):  # not all models go on with what they are given
        text = text[len(BEGINNING) :].lstrip(" :")
    paragraph = re.split(r"\n\s*\n", text, maxsplit=1)[0]
    line = " ".join("".join(char if char.isprintable() else " " for char in paragraph).split())
    line = line.strip("*_` ")
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" and line[0] not in line[1:-1]:
        line = line[1:-1].strip()  # the whole of it is quoted
    line = CONTROL.sub(r"<\\", line)
    if sum(char.isalnum() for char in line) < 2:
        return None
    if len(line) > MOST:
        line = line[: MOST - 1].rsplit(" ", 1)[0] + "\u2026"
    return line[0].upper() + line[1:]


def lowered(sentence: str) -> str:
    """As it goes on after BEGINNING."""
    return sentence[:1].lower() + sentence[1:]
