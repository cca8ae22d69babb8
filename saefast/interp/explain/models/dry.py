"""What a run will ask of a model, before any of it is asked."""

from collections.abc import Sequence

import numpy as np

from saefast.interp.explain.models import LanguageModel, Prompt
from saefast.interp.explain.models.budget import Budget, Cost, estimate


class Dry:
    """In place of a model: answers nothing of use, and adds up what the questions would take. An estimate: 4 characters are a token, and
    answers are as long as they may be.

    Args:
        model: whose abilities it has.
        budget: with the prices.
    """

    def __init__(self, model: LanguageModel, budget: Budget | None = None) -> None:
        self.model, self.budget = model, budget
        self.name, self.at_once = model.name, 1
        self.gives_choices, self.reads_prompts = model.gives_choices, model.reads_prompts
        self.asked, self.cost = 0, Cost(0, 0, 0.0)

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        self._add(prompts, max_tokens * n)
        return [["something"] * n for _ in prompts]

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        self._add(prompts, 1)
        return np.full((len(prompts), len(choices)), 1 / len(choices))

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        self._add(["".join(parts) for parts in segments], 1)
        return [np.full((len(parts) - 1, len(choices)), 1 / len(choices)) for parts in segments]

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        self._add([before + text for before, text in texts], 1)
        return [np.zeros(1) for _ in texts]

    def _add(self, prompts: Sequence[Prompt | str], max_tokens: int) -> None:
        more = estimate(prompts, max_tokens, self.budget)
        self.asked += len(prompts)
        now = self.cost
        self.cost = Cost(
            now.tokens_in + more.tokens_in, now.tokens_out + more.tokens_out, now.dollars + more.dollars
        )
