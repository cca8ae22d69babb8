"""Signs: what a person can see at a token of a text, each true or false. Rules are made of them.

A text is a line of token ids with -1 between its parts (`saefast.interp.explain.programs.split`); a sign looks at most `REACH` tokens from
its own, and never across -1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.interp.explain.programs.classes import BRACKETS, TokenClasses
from saefast.interp.explain.programs.split import NO_TOKEN, REACH

RUNS = (2, 4)
STATES = {
    "begins": "at the beginning of a word",
    "continues": "inside a word",
    "ends": "at the end of a word",
    "line": "at the start of a line",
    "quotes": "inside quotation marks",
    "repeated": f"seen among the {REACH} tokens before",
} | {name: f"inside {name}" for name in BRACKETS}


class Sign(NamedTuple):
    """kind is "is", "after", "before" (of a class by its name); "run" of at least n of a class; "state", one of STATES; or one of
    a set of tokens: "token", "previous", "second" (the one before the previous), "near" (within REACH tokens on either side)."""

    kind: str
    name: str = ""
    n: int = 0
    tokens: tuple[int, ...] = ()


class Reading:
    """The signs of one text.

    Args:
        tokens: [N] int64.
    """

    def __init__(self, classes: TokenClasses, tokens: np.ndarray) -> None:
        self.classes, self.tokens = classes, tokens
        self._columns: dict[str, np.ndarray] = {}

    def column(self, sign: Sign) -> np.ndarray:
        """[N] bool; False on padding."""
        if sign.kind in SETS:
            found = SETS[sign.kind](self, sign.tokens)
        elif sign.kind == "state":
            found = self._state(sign.name)
        else:
            found = self._class(sign.name)
            if sign.kind == "run":
                found = np.logical_and.reduce([shifted(found, back) for back in range(sign.n)])
            elif sign.kind != "is":
                found = shifted(found, 1 if sign.kind == "after" else -1)
        return found & (self.tokens != NO_TOKEN)

    def _class(self, name: str) -> np.ndarray:
        if name not in self._columns:
            i = self.classes.names.index(name)
            found = self.classes.table[self.tokens, i]
            if self.classes.is_script[i]:  # the rest of a character is of its script
                rest = self._of(self.classes.is_rest)
                for _ in range(3):
                    found = np.where(rest, shifted(found, 1), found)
            self._columns[name] = found
        return self._columns[name]

    def _of(self, table: np.ndarray) -> np.ndarray:
        return table[self.tokens]

    def _state(self, name: str) -> np.ndarray:
        of = self.classes
        alnum, after_alnum = self._of(of.begins_alnum), shifted(self._of(of.ends_alnum), 1)
        if name == "begins":
            known = shifted(self.tokens != NO_TOKEN, 1)
            spaced = self._of(of.begins_space) & ~self._of(of.is_space)
            return spaced | (alnum & known & ~after_alnum)
        if name == "continues":
            return alnum & after_alnum
        if name == "ends":
            known = shifted(self.tokens != NO_TOKEN, -1)
            return self._of(of.ends_alnum) & known & ~shifted(alnum, -1)
        if name == "line":
            ends = self._of(of.ends_line)
            indented = shifted(self._of(of.is_space) & shifted(ends, 1) & ~ends, 1)
            return (shifted(ends, 1) | indented) & ~self._of(of.is_space)
        if name == "repeated":
            return np.logical_or.reduce([self.tokens == self._before(d) for d in range(1, REACH + 1)])
        if name == "quotes":
            marks = self._of(of.quote)
            opens = self._of(of.quote_opens) | (marks & ~after_alnum & self._starts_with_mark())
            return self._inside(opens, marks)
        return self._inside(self._of(of.opens[name]), self._of(of.closes[name]))

    def _starts_with_mark(self) -> np.ndarray:
        """Where the token before ends in a space, a line or an open bracket, or is not there."""
        of = self.classes
        before = of.is_space | of.ends_line | np.logical_or.reduce(list(of.opens.values()))
        return shifted(self._of(before), 1)

    def _inside(self, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
        """Within REACH tokens after one that opens, with none between that closes, and not one itself."""
        found, open_since = np.zeros(len(self.tokens), bool), ~closes
        for back in range(1, REACH + 1):
            found |= open_since & shifted(opens, back)
            open_since = open_since & ~shifted(closes, back)
        return found

    def _before(self, back: int) -> np.ndarray:
        return shifted(self.tokens, back, NO_TOKEN)

    def _among(self, tokens: Sequence[int]) -> np.ndarray:
        table = np.zeros(len(self.classes.table), bool)
        table[list(tokens)] = True
        return table[self.tokens]

    def _near(self, tokens: Sequence[int]) -> np.ndarray:
        here = self._among(tokens)
        away = [d for d in range(-REACH, REACH + 1) if d]
        return np.logical_or.reduce([shifted(here, d) for d in away])


SETS = {
    "token": lambda reading, tokens: reading._among(tokens),
    "previous": lambda reading, tokens: shifted(reading._among(tokens), 1),
    "second": lambda reading, tokens: shifted(reading._among(tokens), 2),
    "near": lambda reading, tokens: reading._near(tokens),
}


def shifted(values: np.ndarray, back: int, fill: int | bool = False) -> np.ndarray:
    """[N] -> of each place what is `back` places before it (behind it, if negative)."""
    out = np.full_like(values, fill)
    if back > 0:
        out[back:] = values[:-back]
    elif back < 0:
        out[:back] = values[-back:]
    else:
        out[:] = values
    return out


def fixed_signs(classes: TokenClasses) -> list[Sign]:
    """Those that need no latent: of all classes and states."""
    found = [Sign(kind, name) for kind in ("is", "after", "before") for name in classes.names]
    found += [Sign("run", name, n) for name in classes.names for n in RUNS]
    return found + [Sign("state", name) for name in STATES]
