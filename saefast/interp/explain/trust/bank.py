"""The bank: units of which it is known what they stand for, marked by hand in sentences of our own.

assets/bank.json has of each unit its name, its kind, the true explanation, false ones that are nearly right (too broad, too narrow,
what comes with it, the token beside it, the topic in place of the word), and texts in which ^1 to ^10 after a token says how
strongly the unit is active on it:

    "The ticket cost $45^9 at the door."

An explanation is [sentence, rule]. A rule says on which tokens the explanation would have the unit active: a regular expression that is
searched for in the text before a token, the sign `HERE` and the token (without the space before it), and must end with the token. So
"[$€£]‣\\d+" is a number right after a currency sign. The marks do not come from the rules; with them a judge without a language model
can be tried.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError, check, shown
from saefast.files import read_json
from saefast.interp.explain.programs.split import NO_TOKEN, checked_windows
from saefast.interp.vocabulary import Vocabulary

HERE = "\u2023"  # in a rule: here the token begins
LEAST_FALSE, LEAST_TEXTS = 3, 8  # of a unit
LEAST_SIDE = 2  # texts in which it is active, and in which it is not
STRONGEST = 10
# A word with the space before it, a number, a sign of Chinese or Japanese, a line break, any other sign; then the mark.
PIECE = re.compile(
    r"( ?(?:[\u3041-\u30ff\u4e00-\u9fff]|(?:(?![\u3041-\u30ff\u4e00-\u9fff])[^\W\d])\w*|\d+|[^\w\s^])|\s)(?:\^(\d+))?"
)


class BankVocabulary(Vocabulary):
    """The tokens of the texts: a `Vocabulary` without a tokenizer. Token 0 ends a text."""

    def __init__(self, words: Iterable[str]) -> None:
        unique = ["<end>", *dict.fromkeys(words)]
        self.tokenizer = None
        self.raw = [word.encode() for word in unique]
        self.special = {0}
        self._is_taken_apart = False
        self.ids = {word: i for i, word in enumerate(unique) if i}


@dataclass(frozen=True)
class Stated:
    """An explanation of the bank, true or false: see `saefast.interp.explain.Explanation`."""

    latent: int  # number of the unit in the bank, the same for its true and its false explanations
    sentence: str
    rule: str
    vocabulary: BankVocabulary = field(repr=False)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """1 on the tokens on which the rule holds, else 0: [n, L] ids, -1 is padding -> [n, L] float64."""
        windows, rule = (
            checked_windows(tokens, len(self.vocabulary)),
            re.compile(self.rule + r"\Z", re.DOTALL),
        )
        found = np.zeros(windows.shape)
        for row, at in np.argwhere(windows != NO_TOKEN).tolist():
            ids = windows[row, : at + 1]
            before = self.vocabulary.text(ids[:-1][ids[:-1] != NO_TOKEN])
            token = self.vocabulary.strings[ids[-1]].removeprefix(" ")
            found[row, at] = rule.search(f"{before}{HERE}{token}") is not None
        return found


class PuzzleUnit(NamedTuple):
    name: str
    kind: str
    explanations: tuple[Stated, ...]  # the true one first
    tokens: np.ndarray  # [n, L] int64 ids, -1 is padding
    acts: np.ndarray  # [n, L] float64, 0 to 10 as marked by hand
    vocabulary: BankVocabulary  # of all units


def load_bank(path: str | Path | None = None) -> list[PuzzleUnit]:
    """The units of saefast, or of a file like its own.

    Raises:
        InputError: the file is no bank; the message names the unit and what is wrong with it.
    """
    own = resources.files(__package__) / "assets" / "bank.json"
    file = Path(str(own)) if path is None else Path(path)
    found = read_json(file)
    ok = isinstance(found, dict) and found.get("version") == 1 and isinstance(found.get("units"), list)
    check(ok, f'{file}: expected {{"version": 1, "units": [...]}}, got {shown(found)}')
    check(len(found["units"]) > 0, f"{file}: expected at least one unit, got none")
    units = [_checked(unit, f"{file}, unit {i}") for i, unit in enumerate(found["units"])]
    _different([unit["name"] for unit in units], f"{file}: names of units")
    texts = [[_pieces(text, f"{unit['name']!r}") for text in unit["texts"]] for unit in units]
    vocabulary = BankVocabulary(token for some in texts for text in some for token, _ in text)
    return [_unit(i, unit, some, vocabulary) for i, (unit, some) in enumerate(zip(units, texts, strict=True))]


def _checked(unit: Any, where: str) -> dict[str, Any]:
    texts = ("name", "kind")
    lists = ("true", "false", "texts")
    ok = isinstance(unit, dict) and all(isinstance(unit.get(key), str) and unit[key] for key in texts)
    ok = ok and all(isinstance(unit.get(key), list) for key in lists)
    check(ok, f"{where}: expected name, kind, true, false and texts, got {shown(unit)}")
    where = f"{where} ({unit['name']!r})"
    n = len(unit["false"])
    check(n >= LEAST_FALSE, f"{where}: expected at least {LEAST_FALSE} false explanations, got {n}")
    explanations = [unit["true"], *unit["false"]]
    for one in explanations:
        pair = isinstance(one, list) and len(one) == 2 and all(isinstance(part, str) and part for part in one)
        check(pair, f"{where}: expected an explanation as [sentence, rule], got {shown(one)}")
        try:
            re.compile(one[1])
        except re.error as error:
            raise InputError(
                f"{where}: expected a rule that is a regular expression, got {one[1]!r} ({error})"
            ) from None
        check(
            HERE in one[1], f"{where}: expected a rule with {HERE!r} where the token begins, got {one[1]!r}"
        )
    _different([one[0].casefold() for one in explanations], f"{where}: explanations")
    n = len(unit["texts"])
    check(n >= LEAST_TEXTS, f"{where}: expected at least {LEAST_TEXTS} texts, got {n}")
    check(all(isinstance(text, str) for text in unit["texts"]), f"{where}: expected texts that are strings")
    _different(unit["texts"], f"{where}: texts")
    n_active = sum("^" in text for text in unit["texts"])
    sides = min(n_active, n - n_active)
    want = f"at least {LEAST_SIDE} texts with a mark and {LEAST_SIDE} without one"
    check(sides >= LEAST_SIDE, f"{where}: expected {want}, got {n_active} and {n - n_active}")
    return unit


def _different(values: list[str], where: str) -> None:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    check(twice is None, f"{where}: expected each once, got {shown(twice)} twice")


def _pieces(text: str, where: str) -> list[tuple[str, int]]:
    """The tokens of a text, each with its strength, 0 where none is marked."""
    found, at = [], 0
    while at < len(text):
        piece = PIECE.match(text, at)
        if piece is None:
            raise InputError(f"{where}: expected tokens, each with at most one mark, got {shown(text[at:])}")
        strength = 0 if piece[2] is None else int(piece[2])
        ok = piece[2] is None or (0 < strength <= STRONGEST and piece[1] != " ")
        check(
            ok,
            f"{where}: expected marks from ^1 to ^{STRONGEST} behind a token, got ^{piece[2]} in {shown(text)}",
        )
        found.append((piece[1], strength))
        at = piece.end()
    check(len(found) > 0, f"{where}: expected texts with tokens, got an empty one")
    return found


def _unit(
    number: int, unit: dict[str, Any], texts: list[list[tuple[str, int]]], vocabulary: BankVocabulary
) -> PuzzleUnit:
    shape = (len(texts), max(map(len, texts)))
    tokens, acts = np.full(shape, NO_TOKEN, np.int64), np.zeros(shape)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = [vocabulary.ids[token] for token, _ in text]
        acts[row, : len(text)] = [strength for _, strength in text]
    pairs = [unit["true"], *unit["false"]]
    explanations = tuple(Stated(number, sentence, rule, vocabulary) for sentence, rule in pairs)
    return PuzzleUnit(unit["name"], unit["kind"], explanations, tokens, acts, vocabulary)
