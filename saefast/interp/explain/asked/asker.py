"""What explainers that ask a language model have in common."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Judge
from saefast.interp.explain.asked.said import Said, ask, never
from saefast.interp.explain.asked.windows import ROLE, Body, fitted, shot_turns
from saefast.interp.explain.examples import Examples, Tiles
from saefast.interp.explain.models import LanguageModel, Prompt, Turn
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

MOST = 8000  # characters of a prompt with examples of other units: about 5,000 tokens of SmolLM2


class Question(NamedTuple):
    prompt: Prompt
    seen: np.ndarray  # [k] int64, slots of the tokens in it


class Asker:
    """What explainers that ask have in common.

    Args:
        simulator: a judge, which makes predictions of sentences; without one they can be read only.
        temperature, n: n answers are asked for (`candidates`); with several, at a temperature above 0. `explain` gives the first.
        n_shots: units of our own making that are explained before, fewer where the prompt would be longer than `most` characters.
        seed: of what is drawn, and of the answers.

    Raises:
        InputError: a number below 1, or several answers that would all be the same.
    """

    name: str

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        *,
        simulator: Judge | None = None,
        temperature: float = 0.0,
        n: int = 1,
        n_shots: int = 2,
        most: int = MOST,
        seed: int = 0,
    ) -> None:
        check(n >= 1, f"n: expected at least 1 answer, got {n}")
        check(n_shots >= 0, f"n_shots: expected at least 0 examples, got {n_shots}")
        ok = temperature >= 0 and (n == 1 or temperature > 0)
        check(ok, f"temperature: expected a number above 0 for {n} different answers, got {temperature}")
        self.records, self.vocabulary, self.model, self.simulator = records, vocabulary, model, simulator
        self.temperature, self.n, self.n_shots, self.most, self.seed = temperature, n, n_shots, most, seed

    def question(self, latent: int) -> Question | None:
        """None: the unit is never active in documents for explaining."""
        raise NotImplementedError

    def candidates(self, latent: int) -> list[Said]:
        """All n answers. Raises InputError if there is no such latent."""
        asked = self.question(latent)
        if asked is None:
            return [never(latent, self.simulator)]
        return ask(
            self.model,
            latent,
            asked.prompt,
            asked.seen,
            self.simulator,
            temperature=self.temperature,
            n=self.n,
            seed=self.seed,
        )

    def explain(self, latent: int) -> Said:
        return self.candidates(latent)[0]

    def _prompt(self, how: str, body: Body, question: str) -> Prompt:
        system = Turn("system", f"{ROLE} {how}")
        return fitted(system, shot_turns(body, self.n_shots), Turn("user", question), self.most)


class Explained(Records):
    """Records as if there were no documents for scoring: `draw` looks at all activations, for the intervals and the top token."""

    def __init__(self, records: Records) -> None:
        vars(self).update(vars(records))  # and nothing is read again
        self._records, text = records, records.text
        documents = text.first_document[:, None] + text.ends.cumsum(axis=1) - text.ends
        self._is_explain = text.splits(documents.ravel(), records.config) == 0

    def entries(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        slots, acts = self._records.entries(latent)
        ours = self._is_explain[slots]
        return slots[ours], acts[ours]


def slots_of(examples: Examples) -> np.ndarray:
    """Of all tokens of these windows, [n L] int64."""
    found: np.ndarray = (examples.slots[:, None] + np.arange(examples.tokens.shape[1])).ravel()
    return found


def held_out(
    tiles: Tiles, latent: int, seen: Sequence[np.ndarray], n_top: int = 5, n_random: int = 5, seed: int = 0
) -> Examples:
    """As `top_and_random`, of the windows that have no token whose slot was seen: on these one of several sentences is chosen.

    Still they are of documents for explaining: what is chosen on them is scored on others.
    """
    slots = np.unique(np.concatenate([np.zeros(0, np.int64), *seen]))
    is_free = np.searchsorted(slots, tiles.first + tiles.length) == np.searchsorted(slots, tiles.first)
    active, peaks = tiles.peaks(latent)
    active, peaks = active[is_free[active]], peaks[is_free[active]]
    top = active[np.argsort(-peaks, kind="stable")[:n_top]]
    others = tiles.random(latent, n_random, seed + 7, top, is_free)
    return tiles.examples(latent, [("top", -1, top), ("random", -1, others)])
