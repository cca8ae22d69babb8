"""The folder of a study: what was asked for, and what each stage found, so that a study goes on where it stopped.

    OUT/study.json           which study, with which numbers, of which model and text
    OUT/results/STAGE.json   what a stage found, and its seconds; delete it to run the stage again

A stage writes its result when it is done, in one step. What it makes on the way (models, dictionaries, records) lies beside,
and goes on by itself where it was interrupted.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check, shown
from saefast.files import read_json_checked, write_json_checked

STUDY = "study.json"
VERSION = 1


class Folder:
    """
    Args:
        path: made if it does not exist.
        asked: plain values that say what the study is of; the same ones whenever it goes on.

    Raises:
        InputError: the folder holds something else, a study of other numbers, or a damaged file.
    """

    def __init__(self, path: str | Path, asked: dict[str, Any]) -> None:
        self.path = Path(path).absolute()
        self.asked = asked
        there = self.path / STUDY
        known = {"format": "saefast-study", "version": VERSION}
        if there.exists():
            found = read_json_checked(there)
            kind = {name: found.get(name) for name in known}
            check(kind == known, f"out: {there}: expected {known}, got {kind}")
            for name, value in asked.items():
                got = found["asked"].get(name)
                same = got == value
                check(
                    same, f"out: {self.path} holds a study of {name} {shown(got)}, asked for {shown(value)}"
                )
            return
        empty = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        check(
            empty, f"out: expected a new folder or that of a study, got {self.path} with other things in it"
        )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json_checked(there, known | {"asked": asked})

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a stage found; None if it has not run."""
        path = self._path(stage)
        if not path.exists():
            return None
        found = read_json_checked(path)
        good = found.get("stage") == stage and isinstance(found.get("found"), dict)
        if not good:
            raise InputError(
                f"{path}: expected the result of the stage {stage!r}; delete it to run the stage again"
            )
        return found

    def run(self, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a stage found, now or before: {"stage", "seconds", "found"}. make: gives plain values."""
        known = self.result(stage)
        if known is not None:
            return known
        start = time.perf_counter()
        found = make()
        result = {"stage": stage, "seconds": round(time.perf_counter() - start, 2), "found": found}
        path = self._path(stage)
        path.parent.mkdir(exist_ok=True)
        write_json_checked(path, result)
        return result

    def _path(self, stage: str) -> Path:
        return self.path / "results" / f"{stage}.json"
