"""Revision (Bills et al. 2023): a model corrects an explanation when it is shown on what this is wrong.

    Reviser(records, vocabulary, model, simulator, activations=subject).revise(said)

What is wrong is found in two ways: windows on which the simulator predicts much and the unit does nothing, of documents for explaining, random ones
and such in which units like this one are active; and texts that the model writes to fit the explanation, on which the unit is run. The
correction is taken only if it does better on windows of documents for explaining that were in no prompt. Explanations that are programs are
revised without a model: `saefast.interp.explain.programs.exceptions`.
"""

import re

import numpy as np

from saefast.activations.tokens import encode
from saefast.errors import check
from saefast.interp.effects import Neighbours
from saefast.interp.explain import Judge
from saefast.interp.explain.asked.asker import held_out, slots_of
from saefast.interp.explain.asked.combined import score_on
from saefast.interp.explain.asked.said import Said, ask
from saefast.interp.explain.asked.tokens import CONTROL
from saefast.interp.explain.asked.windows import MARKED, ROLE, Window, examples_of, highlighted, windows_of
from saefast.interp.explain.examples import Examples, Tiles, inactive
from saefast.interp.explain.models import LanguageModel, Turn
from saefast.interp.explain.subject import Activations
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

TEXT = 200  # characters of a text that the model writes
NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*\u2022])\s+")


class Reviser:
    """Args:
        model: corrects, and writes texts; may be another than the explainer's.
        simulator: finds what the explanation is wrong on, and on what the correction is better.
        activations: what units do on other texts, for those that the model writes (`saefast.interp.explain.subject.model_activations`); None: none.
        near: units like each, for near misses.
        length: tokens of a window.
        n_pool: windows that are simulated to find such on which the explanation is wrong.
        n_shown: of each kind, windows and texts in the prompt.
        n_texts: that the model is asked to write.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        simulator: Judge,
        *,
        activations: Activations | None = None,
        near: Neighbours | None = None,
        length: int = 32,
        n_pool: int = 40,
        n_shown: int = 5,
        n_texts: int = 5,
        seed: int = 0,
    ) -> None:
        for name, value in {"n_pool": n_pool, "n_shown": n_shown, "n_texts": n_texts}.items():
            check(value >= 1, f"{name}: expected at least 1, got {value}")
        self.vocabulary, self.model, self.simulator = vocabulary, model, simulator
        self.activations, self.near, self.seed = activations, near, seed
        self.n_pool, self.n_shown, self.n_texts = n_pool, n_shown, n_texts
        self.tiles = Tiles(records, "explain", length)

    def revise(self, said: Said) -> Said:
        """The correction, or the explanation itself where nothing is wrong with it that was found, or the correction is no better."""
        active, peaks = self.tiles.peaks(said.latent)
        if not said.is_explained or not len(active):
            return said
        top = active[np.argsort(-peaks, kind="stable")[: self.n_shown]]
        strongest = self.tiles.examples(said.latent, [("top", -1, top)])
        wrong, least = self._wrong(said, strongest)
        broken, kept = self._texts(said, strongest.largest, least)
        if not len(wrong) and not broken:
            return said
        shown = [
            highlighted(examples_of(self.vocabulary, strongest), "Active, the strongest first:"),
            highlighted(kept, "Active, in texts that were written to fit the explanation:"),
            highlighted(examples_of(self.vocabulary, wrong), "Not active, though the explanation fits:"),
            highlighted(broken, "Not active, in texts that were written to fit the explanation:"),
        ]
        system = Turn(
            "system",
            f"{ROLE} You get an explanation that was given before, and texts. Tokens on which the unit is active are between << and >>, with how "
            "active it is, from 0 to 10, below the text. In some texts it is not active, though the explanation fits them. Correct the "
            "explanation: it must hold for the first and not for the others. Say the whole of it again, not what was wrong.",
        )
        question = f"Explanation before: {said.sentence}\n\n" + "\n".join(part for part in shown if part)
        seen = np.unique(np.concatenate([said.seen, slots_of(strongest), slots_of(wrong)]))
        revised = ask(
            self.model, said.latent, (system, Turn("user", question)), seen, self.simulator, seed=self.seed
        )[0]
        windows = held_out(self.tiles, said.latent, [seen], 2 * self.n_shown, 2 * self.n_shown, self.seed)
        is_better = revised.is_explained and score_on(windows, revised, self.simulator) > score_on(
            windows, said, self.simulator
        )
        return revised if is_better else said

    def _wrong(self, said: Said, strongest: Examples) -> tuple[Examples, float]:
        """Windows without activation on which most is predicted, and what counts as much: a share of the most that is predicted anywhere."""
        near = (
            [] if self.near is None else [one for one in self.near.indices[said.latent].tolist() if one >= 0]
        )
        pool = inactive(self.tiles, said.latent, self.n_pool, self.seed, near)
        peaks = self._peaks(said, pool.tokens)
        most = max(peaks.max(initial=0.0), self._peaks(said, strongest.tokens).max(initial=0.0))
        order = np.argsort(-peaks, kind="stable")[: self.n_shown]
        return pool.take(order[peaks[order] > MARKED * most]), MARKED * float(most)

    def _peaks(self, said: Said, tokens: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.simulator.simulate(said, tokens).max(axis=1, initial=0.0)
        return found

    def _texts(self, said: Said, largest: float, least: float) -> tuple[list[Window], list[Window]]:
        """Of the texts that the model writes and the simulator takes for such that fit: those on which the unit does little, and the others."""
        if self.activations is None:
            return [], []
        system = Turn(
            "system",
            f"A unit of a neural network is said to be active on what is described. To test that, write {self.n_texts} short texts of "
            "different kinds that fit the description, but are not the most usual ones. One text in each line, nothing else.",
        )
        prompt = (system, Turn("user", f"Active on: {said.sentence}"))
        answer = self.model.write([prompt], max_tokens=60 * self.n_texts, seed=self.seed)[0][0]
        rows = [encode(self.vocabulary.tokenizer, text) for text in texts_of(answer, self.n_texts)]
        rows = [row[: self.tiles.length] for row in rows if row]
        if not rows:
            return [], []
        tokens = np.full((len(rows), max(map(len, rows))), -1, np.int64)
        for to, row in zip(tokens, rows, strict=True):
            to[: len(row)] = row
        acts = self._acts(said.latent, tokens)
        fits, does = self._peaks(said, tokens) > least, acts.max(axis=1) > MARKED * largest
        windows = windows_of(self.vocabulary, tokens, np.where(does[:, None], acts, 0.0), largest)
        chosen = [
            [window for window, one in zip(windows, rows_, strict=True) if one]
            for rows_ in (fits & ~does, fits & does)
        ]
        return chosen[0][: self.n_shown], chosen[1][: self.n_shown]

    def _acts(self, latent: int, tokens: np.ndarray) -> np.ndarray:
        """Of the unit on each token, [n, L]; 0 on padding."""
        assert self.activations is not None
        row, at = (tokens >= 0).nonzero()
        acts = np.zeros(tokens.shape)
        acts[row, at] = self.activations(np.maximum(tokens, 0)[row], at, latent)
        return acts


def texts_of(answer: str, n: int) -> list[str]:
    """At most n lines of an answer, without numbers before them; what cannot be seen in them is left out."""
    found: list[str] = []
    for line in answer.splitlines():
        text = "".join(char for char in NUMBERED.sub("", line) if char.isprintable()).strip("\"' ")
        if text and len(found) < n:
            found.append(CONTROL.sub(r"<\\", text[:TEXT]))
    return found
