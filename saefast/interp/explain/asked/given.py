"""Explanations that are there already, whoever made them: to be scored."""

from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Judge
from saefast.interp.explain.asked.said import Said
from saefast.interp.explanations import read_explanations


class Given:
    """An explainer that says what explanations.jsonl in a folder of records says.

    Args:
        judge: predicts from the sentences.
        method, model: those of it; None: all. Of several explanations of a unit the last one counts.

    Raises:
        InputError: there are none of that method.
    """

    name = "given"

    def __init__(
        self, folder: str | Path, judge: Judge, method: str | None = None, model: str | None = None
    ) -> None:
        self.judge = judge
        lines = read_explanations(folder)
        self._said = {
            one["latent"]: one
            for one in lines
            if method in (None, one["method"]) and model in (None, one["model"])
        }
        methods = sorted({str(one["method"]) for one in lines})
        check(
            bool(self._said),
            f"method: expected one of {', '.join(methods) or 'none'} in {folder}, got {method!r} of {model!r}",
        )

    def who(self, latent: int) -> tuple[str | None, str | None]:
        """The method and the model of the explanation of a unit that has one."""
        return self._said[latent]["method"], self._said[latent]["model"]

    @property
    def said(self) -> list[tuple[Any, ...]]:
        """(latent, sentence, method, model) of each, without scores."""
        return [
            (latent, self._said[latent]["explanation"], *self.who(latent)) for latent in sorted(self._said)
        ]

    @property
    def latents(self) -> np.ndarray:
        """Units that have an explanation, [n] int64."""
        return np.asarray(sorted(self._said), np.int64)

    def explain(self, latent: int) -> Said:
        """Raises InputError if there is none of that unit."""
        check(latent in self._said, f"latent: expected one with an explanation, got {latent}")
        one = self._said[latent]
        return Said(latent, one["explanation"], one["model"] or "", (), np.zeros(0, np.int64), self.judge)
