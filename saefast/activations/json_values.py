"""Values of a JSON file one by one, so that an array of millions of documents is never in memory as a whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check

DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\n\r]*")


class JsonValues:
    """Reads `texts`, the characters of the file `path` in pieces."""

    def __init__(self, path: Path, texts: Iterator[str]) -> None:
        self.path, self.texts = path, texts
        self.text, self.at = "", 0  # what is read and not parsed is text[at:]

    def documents(self, field: str) -> Iterator[Any]:
        """The elements of an array; or the values of the file, where the first may be an object with one array, whose
        elements are then those that count.

        Raises:
            InputError: it is not JSON, or goes on after the array.
        """
        if self.next_character() == "[":
            yield from self._elements()
            self._ends()
            return
        first = True
        while self.next_character():
            value = self._value()
            if first and isinstance(value, dict) and field not in value:
                arrays = [entry for entry in value.values() if isinstance(entry, list)]
                if len(arrays) == 1:
                    yield from arrays[0]
                    self._ends()
                    return
            first = False
            yield value

    def _elements(self) -> Iterator[Any]:
        self.at += 1
        if self.next_character() == "]":
            self.at += 1
            return
        while True:
            yield self._value()
            mark = self.next_character()
            check(mark in (",", "]"), f"text: {self.path}: expected JSON, got {mark!r} after an element")
            self.at += 1
            if mark == "]":
                return

    def _ends(self) -> None:
        rest = self.next_character()
        check(not rest, f"text: {self.path}: expected JSON, got {rest!r} after its end")

    def next_character(self) -> str:
        """The next one that is no space, which stays; "" at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read as much again as is there, so that a long value is tried a few times only; False at the end."""
        parts, wanted = [self.text[self.at :]], len(self.text) - self.at
        read = 0
        for text in self.texts:
            parts.append(text)
            read += len(text)
            if read > wanted:
                break
        self.text, self.at = "".join(parts), 0
        return read > 0

    def _value(self) -> Any:
        self.next_character()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except RecursionError:
                raise InputError(
                    f"text: {self.path}: expected JSON, its lists are nested too deeply"
                ) from None
            except ValueError as error:
                # a value that is not there as a whole ends where the text ends, or inside of a string
                place = getattr(error, "pos", 0)
                is_cut = place > len(self.text) - 16 or str(error).startswith("Unterminated string")
                if is_cut and self._more():
                    continue
                raise InputError(f"text: {self.path}: expected JSON ({str(error)[:100]})") from None
            is_open = end == len(self.text) and not isinstance(value, str | list | dict)
            if is_open and self._more():
                continue  # 12 may be the beginning of 123
            self.at = end
            return value
