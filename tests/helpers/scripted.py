"""A language model that is a script: it reads the questions of a judge as a careful person would, and knows one unit.

The unit ("SENTENCE") is active with 8 on " cat", with 4 on " dog" right after " blue", with 10 on the letter vav, of two tokens, and
with 6 on the end of a line. Whatever else is said to it, it takes for false.
"""

import re
from collections.abc import Sequence

import numpy as np

from saefast.interp.explain.models import CannotAnswer, Prompt
from tests.helpers.explained import VOCABULARY

SENTENCE = "Cats, and dogs that are blue."
LEVELS = {" cat": 8, "\u05d5": 10, "\\n": 6}
SURE = 0.75  # the probability of its answer; the rest is on 0
ACTIVE = re.compile(r" cat|(?<= blue) dog|\u05d5|\\n")


class Said:
    """An explanation."""

    latent = 0

    def __init__(self, sentence: str = SENTENCE) -> None:
        self.sentence = sentence

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        raise AssertionError("a judge reads the sentence only")


def level(tokens: Sequence[str]) -> int:
    """How active the unit is on the last of these tokens, as they are shown."""
    if tokens[-1] == " dog" and tokens[-2:-1] == [" blue"]:
        return 4
    return LEVELS.get(tokens[-1], 0)


def acts(tokens: np.ndarray) -> np.ndarray:
    """The same of windows of ids of VOCABULARY [n, L], by another way: [n, L] float64."""
    raw = [[b"" if i < 0 else VOCABULARY.raw[i] for i in row] for row in tokens.tolist()]
    found = np.zeros(tokens.shape)
    for i, row in enumerate(raw):
        for j, one in enumerate(row):
            before = row[j - 1] if j else b""
            found[i, j] = {b" cat": 8, b"\n": 6}.get(one, 4 * (one == b" dog" and before == b" blue"))
            if (before, one) == (b"\xd7", b"\x95"):
                found[i, j - 1 : j + 1] = 10
    return found


class Scripted:
    """Args: `answer` is written to every question instead of the right one; `ten`: whether "10" is one token."""

    name, at_once = "a script", 1

    def __init__(
        self, *, answer: str | None = None, choices: bool = True, inside: bool = True, ten: bool = True
    ) -> None:
        self.answer, self.ten = answer, ten
        self.gives_choices, self.reads_prompts = choices, inside
        self.asked: list[Prompt] = []
        self.texts: list[str] = []

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        self.asked += prompts
        right = [_written(prompt) for prompt in prompts]
        assert all(len(one) <= 8 * max_tokens for one in right)
        return [[one if self.answer is None else self.answer] * n for one in right]

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        if not self.gives_choices:
            raise CannotAnswer("no log-probabilities")
        self.asked += prompts
        return np.array([_spread(_chosen(prompt), choices) for prompt in prompts])

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        if not self.reads_prompts or ("10" in choices and not self.ten):
            raise CannotAnswer("not these")
        found = []
        for parts in segments:
            self.texts.append("".join(parts))
            rows = []
            for end in range(1, len(parts)):
                said, _, listed = "".join(parts[:end]).rpartition("\nActivations:\n<start>\n")
                is_ours = said.endswith(f"\nReacts to: {SENTENCE}")
                *before, last = listed.split("\n")
                assert last.endswith("\t") and all(one.endswith("\tunknown") for one in before)
                now = level([*(one.removesuffix("\tunknown") for one in before), last[:-1]]) if is_ours else 0
                rows.append(_spread(str(round(now * (len(choices) - 1) / 10)), choices))
            found.append(np.array(rows))
        return found

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        if not self.reads_prompts:
            raise CannotAnswer("no log-probabilities of prompts")
        self.texts += [text for _, text in texts]
        return [np.full(len(text), 1.0 if _helps(before, text) else 3.0) for before, text in texts]


def _helps(before: str, text: str) -> bool:
    return before.endswith(f": {SENTENCE}\nText:\n") and ACTIVE.search(text) is not None


def _spread(chosen: str, choices: Sequence[str]) -> np.ndarray:
    row = np.zeros(len(choices))
    row[0] = 1 - SURE
    row[list(choices).index(chosen)] += SURE
    return row


def _is_true(line: str) -> bool:
    """Of one text: marks are all where the unit is active, without marks it is active somewhere."""
    plain = line.replace("<<", "").replace(">>", "")
    right = re.sub(f"(?:{ACTIVE.pattern})+", r"<<\g<0>>>", plain)  # neighbours together
    return ACTIVE.search(plain) is not None and (line in (plain, right))


def _question(prompt: Prompt) -> tuple[bool, list[str]]:
    said, *lines = prompt[-1].text.split("\n")
    return said == f"Reacts to: {SENTENCE}", lines


def _chosen(prompt: Prompt) -> str:
    assert prompt[-1].role == "user"
    if not prompt[-1].text.startswith("Reacts to"):
        return _alone(prompt[-1].text.split("\n"))
    is_ours, lines = _question(prompt)
    text = lines[0].removeprefix("Text: ")
    if len(lines) == 1:
        return str(int(is_ours and _is_true(text)))
    last = lines[1].removeprefix("Last token: ")
    assert text.endswith(last)
    return str(round(level([" blue"] * text[: -len(last)].endswith(" blue") + [last]) * 9 / 10) * is_ours)


def _written(prompt: Prompt) -> str:
    assert prompt[-1].role == "user"
    if not prompt[-1].text.startswith("Reacts to"):
        return _alone(prompt[-1].text.split("\n"))
    is_ours, lines = _question(prompt)
    if lines[0] == "Tokens:":
        tokens = [line.removesuffix("\t?") for line in lines[1:]]
        return "\n".join(f"{one}\t{level(tokens[: i + 1]) * is_ours}" for i, one in enumerate(tokens))
    texts = [line.removeprefix(f"Text {i + 1}: ") for i, line in enumerate(lines)]
    bits = [int(is_ours and _is_true(text)) for text in texts]
    if " or None" in prompt[0].text:
        return ", ".join(str(i + 1) for i, bit in enumerate(bits) if bit) or "None"
    return str(bits)


def _alone(lines: list[str]) -> str:
    """The text of which the marks are not those of the unit."""
    are_true = [_is_true(re.sub(r"^Text \d+: ", "", line)) for line in lines]
    return str(1 + are_true.index(False)) if are_true.count(False) == 1 else "?"
