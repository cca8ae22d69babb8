"""Explanations as a language model reads them: what it expects of text that it is shown.

judge = ModelJudge(model, vocabulary)
judge.simulate(explanation, tokens)              # [n, L] ids -> [n, L] float64
judge.detect(explanation, tokens)                # [n] float64 in [0, 1]
judge.malformed                                  # answers that could not be read, by what was asked
"""

from collections import Counter
from dataclasses import dataclass
from threading import Lock
from typing import Literal, get_args

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation
from saefast.interp.explain.asked import detect, intruder, simulate, surprisal
from saefast.interp.explain.asked.tokens import Words, merged, shown, shown_line, words
from saefast.interp.explain.models import CannotAnswer, LanguageModel
from saefast.interp.explain.programs.split import checked_windows
from saefast.interp.vocabulary import Vocabulary

How = Literal["auto", "all at once", "one at a time", "written"]
LONGEST = 1000  # characters of an explanation
CUT = " [...]"  # behind one that was longer
AT_ONCE = 14  # windows of `select`, as in SAEBench


@dataclass(frozen=True)
class Simulation:
    """What is expected of each token of n windows of L: how probable each level of activation is."""

    levels: np.ndarray  # [C] float64, from 0
    probabilities: np.ndarray  # [n, L, C] float64, rows of sum 1; on padding level 0 is certain

    @property
    def values(self) -> np.ndarray:
        """[n, L] float64, the expected levels."""
        found: np.ndarray = self.probabilities @ self.levels
        return found


class ModelJudge:
    """A judge of explanations by a language model; see `saefast.interp.explain.Judge`. Thread-safe.

    Args:
        vocabulary: of the windows.
        how: activations are simulated, see `simulate.py`. "auto": all at once where the model can do that, else written, because
            one at a time costs as many times more as a window has tokens.
        probabilities: whether `detect` and `fuzz` read probabilities, one window to a prompt, or answers. Default: where the model
            gives them.
        per_prompt: windows of a prompt, where answers are read.

    Attributes:
        malformed: how many answers could not be read, by "simulate", "detect", "fuzz", "select" and "intruder".

    Raises:
        InputError: no such way.
        CannotAnswer: the model does not give what was asked for by name.
    """

    def __init__(
        self,
        model: LanguageModel,
        vocabulary: Vocabulary,
        *,
        how: How = "auto",
        probabilities: bool | None = None,
        per_prompt: int = 5,
    ) -> None:
        check(how in get_args(How), f"how: expected one of {', '.join(get_args(How))}, got {how!r}")
        check(per_prompt > 0, f"per_prompt: expected at least one window, got {per_prompt}")
        if how == "auto":
            how = "all at once" if model.reads_prompts else "written"
        if how == "all at once" and not model.reads_prompts:
            raise CannotAnswer(_cannot(model, "simulation all at once", "inside prompts"))
        if (how == "one at a time" or probabilities) and not model.gives_choices:
            asked = "detection by probabilities" if probabilities else "simulation one at a time"
            raise CannotAnswer(_cannot(model, asked, "of answers"))
        self.model, self.vocabulary, self.how, self.per_prompt = model, vocabulary, how, per_prompt
        self.probabilities = model.gives_choices if probabilities is None else probabilities
        self.malformed: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.how}, by {'probabilities' if self.probabilities else 'answers'}"

    def simulation(self, explanation: Explanation, tokens: np.ndarray) -> Simulation:
        """How active the unit is on each token.

        Args:
            tokens: [n, L] int, windows of ids; -1 is padding.
        """
        tokens, windows = self._windows(tokens)
        sentence = described(explanation)
        if self.how == "written":
            found, n_malformed = simulate.written(self.model, sentence, windows)
            self._count("simulate", n_malformed)
        else:
            ask = simulate.all_at_once if self.how == "all at once" else simulate.one_at_a_time
            found = ask(self.model, sentence, windows)
        n_levels = found.shape[1]
        probabilities = np.zeros((*tokens.shape, n_levels))
        probabilities[..., 0] = 1  # on padding
        ends = np.cumsum([len(window.texts) for window in windows])
        for row, window, end in zip(probabilities, windows, ends, strict=True):
            is_token = window.of_token >= 0
            row[is_token] = found[end - len(window.texts) : end][window.of_token[is_token]]
        return Simulation(np.arange(n_levels, dtype=np.float64), probabilities)

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Judge.simulate`: the expected levels of `simulation`."""
        return self.simulation(explanation, tokens).values

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Judge.detect`. 0 for a window without tokens; 0.5 where the answer cannot be read."""
        _, windows = self._windows(tokens)
        return self._true_of("detect", explanation, windows, [shown_line(window) for window in windows])

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Judge.fuzz`. 0 for a window without tokens; 0.5 where the answer cannot be read."""
        _, windows = self._windows(tokens)
        return self._true_of("fuzz", explanation, windows, _marked_lines(windows, tokens, marked))

    def select(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """Windows in which the unit is active, as SAEBench asks for them: [n, L] -> [n] bool, 14 windows to a prompt. None of them
        where the answer cannot be read."""
        _, windows = self._windows(tokens)
        lines = [shown_line(window) for window in windows]
        chosen = np.zeros(len(lines), bool)
        for begin in range(0, len(lines), AT_ONCE):
            some = lines[begin : begin + AT_ONCE]
            found = detect.select(self.model, described(explanation), some)
            self._count("select", found is None)
            if found is not None:
                chosen[begin : begin + AT_ONCE] = found
        return chosen

    def intruder(self, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        """How probable it is that each of some marked windows is not of the same unit as the others: [k, L] and [k, L] bool -> [k]
        float64 of sum 1. Equally probable where the answer cannot be read.

        Raises:
            InputError: fewer than 2 windows, or more than 9.
        """
        _, windows = self._windows(tokens)
        found, is_read = intruder.probabilities(self.model, _marked_lines(windows, tokens, marked))
        self._count("intruder", not is_read)
        return found

    def surprisal(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """How much better the model predicts each window when it is told the explanation: [n, L] -> [n] float64, nats per token of
        the model, positive where it helps.

        Raises:
            CannotAnswer: no probabilities inside prompts.
        """
        if not self.model.reads_prompts:
            raise CannotAnswer(_cannot(self.model, "surprisal", "inside prompts"))
        tokens, _ = self._windows(tokens)
        has_text = (tokens >= 0) & ~np.isin(tokens, list(self.vocabulary.special))
        windows = [words(self.vocabulary, window) for window in np.where(has_text, tokens, -1)]
        texts = ["".join(window.texts) for window in windows]
        return surprisal.gains(self.model, described(explanation), texts)

    def _windows(self, tokens: np.ndarray) -> tuple[np.ndarray, list[Words]]:
        tokens = checked_windows(tokens, len(self.vocabulary))
        return tokens, [words(self.vocabulary, window) for window in tokens]

    def _true_of(
        self, asked: str, explanation: Explanation, windows: list[Words], lines: list[str]
    ) -> np.ndarray:
        has_text = np.array([bool(window.texts) for window in windows], bool)
        lines = [line for line, has in zip(lines, has_text, strict=True) if has]
        found, sentence, are_marked = np.zeros(len(windows)), described(explanation), asked == "fuzz"
        if self.probabilities:
            found[has_text] = detect.probabilities(self.model, sentence, lines, are_marked)
            return found
        answers, n_malformed = detect.answers(self.model, sentence, lines, are_marked, self.per_prompt)
        self._count(asked, n_malformed)
        found[has_text] = answers
        return found

    def _count(self, asked: str, n_malformed: int) -> None:
        with self._lock:
            self.malformed[asked] += int(n_malformed)


def described(explanation: Explanation) -> str:
    """What an explanation says, in one line that is not too long."""
    sentence = " ".join(explanation.sentence.split())
    return shown(sentence if len(sentence) <= LONGEST else sentence[:LONGEST] + CUT)


def _marked_lines(windows: list[Words], tokens: np.ndarray, marked: np.ndarray) -> list[str]:
    marked = np.asarray(marked)
    want = f"marked: expected bool {list(np.shape(tokens))}, got {marked.dtype} {list(marked.shape)}"
    check(marked.shape == np.shape(tokens) and marked.dtype == bool, want)
    return [shown_line(window, merged(row, window) > 0) for window, row in zip(windows, marked, strict=True)]


def _cannot(model: LanguageModel, asked: str, where: str) -> str:
    return f"model: {asked} needs probabilities {where}, which {model.name} does not give"
