"""A file of JSON lines that grows, one result a line: whatever stops the process, the lines that are there are whole."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check
from saefast.files import naming


class Lines:
    """Results that belong to the settings in the first line of their file.

    What a kill left of the last line is cut off when the file is opened to go on.

    Args:
        path: made with its folder if it does not exist.
        head: what the results belong to, as JSON.

    Raises:
        InputError: the file has results of other settings, or is damaged; the message names the file and the line.
    """

    def __init__(self, path: str | Path, head: Mapping[str, Any]) -> None:
        self.path = Path(path).absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path):
            self._file = open(self.path, "ab+")  # noqa: SIM115 (open while results come)
        try:
            self._begin(json.loads(json.dumps(head)))
        except BaseException:
            self._file.close()
            raise

    def _begin(self, head: Mapping[str, Any]) -> None:
        self._size = _whole(self._file, self._file.seek(0, os.SEEK_END))
        self._file.truncate(self._size)
        there = next(read_lines(self.path), None)
        if there is None:
            self.append(head)
            return
        other = [name for name in {**there, **head} if there.get(name) != head.get(name)]
        want = f"{self.path}: expected results of the same settings"
        got = ", ".join(f"{name} {there.get(name)!r} and not {head.get(name)!r}" for name in other)
        check(not other, f"{want}, it has those of {got}; give another --out, or remove it")

    def append(self, value: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: another process has added lines.
            OSError: the disk is full; the line is then cut off by the next one who opens the file.
        """
        alone = self._file.seek(0, os.SEEK_END) == self._size
        check(alone, f"{self.path}: expected to be the only one that adds results, another process does, too")
        text = json.dumps(value).encode() + b"\n"
        with naming(self.path):
            self._file.write(text)
            self._file.flush()
        self._size += len(text)

    def results(self) -> Iterator[dict[str, Any]]:
        """All lines but the head."""
        lines = read_lines(self.path)
        next(lines, None)
        return lines

    def close(self) -> None:
        with naming(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file, one in memory.

    Raises:
        InputError: a line is no JSON object.
    """
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise InputError(
                    f"{path}, line {number}: damaged: expected a result as JSON, got {text[:60]!r}"
                )
            yield value


def _whole(file: Any, end: int, step: int = 2**16) -> int:
    """Bytes up to the end of the last whole line."""
    while end > 0:
        begin = max(0, end - step)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
