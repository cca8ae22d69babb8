"""The scores of a trial: units are known by opaque ids, and every score is bound to the registration.

A row of the file is the score of one explainer on one unit, a line of JSON:
    {"unit": id, "explainer": name, "registration": SHA-256, "scores": {...}, "other": {...}, "logits": {...} or null,
     "other_logits": {...} or null, "chain": hash}
"other" are those of the explanation of another unit, a control that should be near nothing (of logits 0.5). chain is a hash of
the row and of all before it, so that a row that was edited, left out or put elsewhere is found. What a kill left of the last line
is cut off by the next call, which goes on there.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import InputError, check
from saefast.files import naming
from saefast.interp.explain import Explanation
from saefast.interp.trial.logit_test import Following, Judged, choose_tokens, logit_score
from saefast.interp.trial.registration import Arm, Registration
from saefast.interp.trial.scores import scores_of
from saefast.interp.trial.windows import SCORED, Places, Windows, draw

OTHER = ("spearman", "spearman_weighted")


def score_trial(
    registration: Registration,
    arms: Mapping[str, Arm],
    path: str | Path,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Score all units by all explainers, those that are not scored yet.

    Args:
        arms: those that were registered, with their explainers and logits.
        path: where the rows are appended, one after another.
        progress: called with the number of rows that are there and of all.

    Raises:
        InputError: the registration was changed after scores were made, or does not fit these arms; rows that were edited; an
            explainer is missing, or predicts something that is no number; another process is scoring.
    """
    path = Path(path).absolute()
    rows, size = _read(registration, path)
    registration.check_fits(arms)
    units = _Units(registration, arms)
    ids, names = registration.ids, registration.config.explainers
    done = {(row["unit"], row["explainer"]) for row in rows}
    progress(len(rows), len(ids) * len(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, unit in enumerate(ids):
        for name in names:
            if (unit, name) not in done:
                row = {"unit": unit, "explainer": name, "registration": registration.sha256}
                row |= _score(units, unit, ids[(i + 1) % len(ids)], name)
                row["chain"] = _chain(rows[-1]["chain"] if rows else registration.sha256, row)
                size = _append(path, row, size)
                rows.append(row)
                progress(len(rows), len(ids) * len(names))
    return rows


def read_scores(registration: Registration, path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of scores, whose units are still known by their ids only. No file: none.

    Raises:
        InputError: rows of another registration, or that were edited.
    """
    return _read(registration, Path(path))[0]


def _read(registration: Registration, path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows, and the bytes that they take."""
    rows: list[dict[str, Any]] = []
    size, last = 0, registration.sha256
    data = path.read_bytes() if path.exists() else b""
    expected = {(unit, name) for unit in registration.ids for name in registration.config.explainers}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            of, chain, place = row["registration"], row["chain"], (row["unit"], row["explainer"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{where}: expected a row of scores, got something else: it was edited"
            ) from None
        want = (
            f"{where}: expected scores of the registration {registration.path}, {registration.sha256[:16]}..."
        )
        changed = (
            f"{want}, got those of {str(of)[:16]}...: it was changed after scores were made, or is another"
        )
        check(of == registration.sha256, changed)
        last = _chain(last, row)
        check(chain == last, f"{where}: this row was edited, or one before it was removed")
        check(
            place in expected, f"{where}: expected a unit that is registered and not scored yet, got {place}"
        )
        expected.remove(place)
        rows.append(row)
        size += len(line) + 1
    return rows, size


def _chain(before: str, row: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in row.items() if name != "chain"}, sort_keys=True)
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()[:32]


def _append(path: Path, row: Mapping[str, Any], size: int) -> int:
    """Write a row after the first `size` bytes, to disk, in place of what a kill left there. Returns the new size."""
    line = json.dumps(row).encode() + b"\n"
    with naming(path), open(path, "ab") as file:
        whole = file.tell() == size or not path.read_bytes()[size:].count(b"\n")
        check(whole, f"{path}: expected to be the only one that writes scores, got rows of another process")
        file.truncate(size)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return size + len(line)


class _Units:
    """What scoring may know of a unit: by its id its windows, its explanations and its logits; not what it is."""

    def __init__(self, registration: Registration, arms: Mapping[str, Arm]) -> None:
        config = registration.config
        self._arms, self._key, self._seed = arms, registration.key(), config.seed
        self._explainers = {}
        for arm_name, arm in arms.items():
            by_name = {explainer.name: explainer for explainer in arm.explainers}
            missing = [name for name in config.explainers if name not in by_name]
            check(not missing, f"arms: expected explainers {missing} of {arm_name!r}, got {list(by_name)}")
            logits = arm.logits is not None or not config.logit_test
            check(logits, f"arms: expected the logits of {arm_name!r} for the logit test, got none")
            self._explainers[arm_name] = by_name
        text, of = next(iter(arms.values())).records.text, next(iter(arms.values())).records.config
        self._places = Places(text, of, "score")
        self.following = None
        if config.logit_test:
            self.following = Following(text, of, config.judged_text, config.least_places, config.seed)
        self._windows: dict[str, Windows] = {}
        self._explanations: dict[tuple[str, str], tuple[Explanation, np.ndarray | None]] = {}

    def windows(self, unit: str) -> Windows:
        if unit not in self._windows:
            of = self._key[unit]
            self._windows = {
                unit: draw(self._places, self._arms[of.arm].records, of.latent, SCORED, self._seed)
            }
        return self._windows[unit]

    def explanation(self, unit: str, name: str) -> tuple[Explanation, np.ndarray | None]:
        """With its judgements of all tokens, where logits are tested."""
        if (unit, name) not in self._explanations:
            of = self._key[unit]
            kept = list(self._explanations.items())[-2 * len(self._explainers[of.arm]) :]  # two units' worth
            explanation = self._explainers[of.arm][name].explain(of.latent)
            judgements = None if self.following is None else self.following.judge(explanation)
            self._explanations = dict(kept) | {(unit, name): (explanation, judgements)}
        return self._explanations[unit, name]

    def judged(self, unit: str, following: Following) -> Judged:
        of = self._key[unit]
        logits = self._arms[of.arm].logits
        assert logits is not None
        return choose_tokens(logits, of.latent, following, self._seed)


def _score(units: _Units, unit: str, other: str, name: str) -> dict[str, Any]:
    """Of one explainer on one unit, and of its explanation of another unit."""
    windows = units.windows(unit)
    judged = None if units.following is None else units.judged(unit, units.following)
    found: list[Any] = []
    for whose in (unit, other):
        try:
            explanation, judgements = units.explanation(whose, name)
            predicted = explanation.predict(windows.tokens)
            scores = scores_of(windows.acts, predicted, windows.weights, windows.largest)
        except InputError as error:
            raise InputError(f"explainer {name!r}, unit {whose}: {error}") from None
        both = None if judged is None or judgements is None else logit_score(judgements, judged)._asdict()
        found.append((scores._asdict(), both))
    (own, own_logits), (others, other_logits) = found
    controls = {measure: others[measure] for measure in OTHER}
    return {"scores": own, "other": controls, "logits": own_logits, "other_logits": other_logits}
