"""Every unit: explained, scored, and written down, whatever stops the process.

    units = [Units("features", records, latents, explainer, scoring), Units("neurons", ...)]
    explain_every(units, "runs/mine/explained/lookup", settings)       # the same call again goes on

OUT/results.jsonl: its first line has the settings, each other line is a unit:
    {"kind", "latent", "explanation", "single_token", "scores": {score: {number: value}}, "controls": {control: scores}, "seconds"}
"controls" are the scores of the explanation of another unit of the same kind, of "always 0" and of "always 1", for the first
`controls` units. Units come in random order, so that a part of them is a sample of all.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from saefast.errors import InputError, check
from saefast.interp.explain import Explainer, Explanation
from saefast.interp.lines import Lines
from saefast.interp.records import Records

RESULTS = "results.jsonl"
KEPT = 64  # explanations, for the controls that use them again


Scores = dict[str, dict[str, Any]]  # by score, the numbers of it


class Scored(NamedTuple):
    """What scoring found of a unit and an explanation."""

    scores: Scores
    unscored: str | None  # why there are none
    simulations: list[dict[str, Any]]  # as in simulations.jsonl, of the windows of the score "simulation"


class Scorer(Protocol):
    """`saefast.interp.explain.scoring.Scoring`."""

    def __call__(self, latent: int, explanation: Explanation) -> Scored: ...

    def controls(self, latent: int, other: Explanation) -> dict[str, Scores]: ...


@dataclass(frozen=True)
class Units:
    """A set of units of one kind."""

    kind: str  # "features", "neurons"
    records: Records
    latents: np.ndarray  # [n] int64
    explainer: Explainer
    scorer: Scorer
    single_token: Callable[[int], bool]


class _Task(NamedTuple):
    units: Units
    latent: int
    other: int | None  # whose explanation is the control


def explain_every(
    sets: Sequence[Units],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    limit: int | None = None,
    controls: int = 200,
    seed: int = 0,
    at_once: int = 1,
    keep: Callable[[Units, int, list[dict[str, Any]]], object] = lambda units, latent, simulations: None,
    progress: Callable[[int], object] = lambda n: None,
) -> Path:
    """Explain and score the units that are not in the file yet.

    Args:
        settings: what the results depend on, as JSON; those of the file must be the same.
        limit: only the first ones of the random order.
        controls: of each set, units on which the controls are tried besides.
        at_once: units that are worked on at the same time, for models that answer several questions at once.
        keep: is given the simulations of each unit.
        progress: is given the number of units that were done before it began, and then 1 for each.

    Returns:
        The file of results.

    Raises:
        InputError: what an explainer or a scorer says, with the unit; units before it are in the file.
    """
    check(limit is None or limit > 0, f"limit: expected at least 1, got {limit}")
    check(at_once > 0, f"at_once: expected at least 1, got {at_once}")
    path = Path(out) / RESULTS
    tasks = _tasks(sets, limit, controls, seed)
    with closing(Lines(path, {**settings, "controls": controls, "seed": seed})) as lines:
        done = {(row["kind"], row["latent"]) for row in lines.results()}
        left = [task for task in tasks if (task.units.kind, task.latent) not in done]
        progress(len(tasks) - len(left))
        explained = _explained(sets)
        with ThreadPoolExecutor(at_once) as pool:
            # a few at a time: what comes after a failure is not begun
            rows = (
                row
                for part in _parts(left, 4 * at_once)
                for row in pool.map(lambda t: _row(t, explained), part)
            )
            for (row, simulations), task in zip(rows, left, strict=True):
                keep(task.units, task.latent, simulations)
                lines.append(row)
                progress(1)
    return path


def tried(sets: Sequence[Units], n: int, controls: int, seed: int = 0) -> int:
    """Explain and score the first n units, write nothing, and return how many they were: for what it takes, by models that only count.
    With controls they are tried on all but the first unit of each kind."""
    tasks, explained = _tasks(sets, n, controls, seed), _explained(sets)
    for task in tasks:
        _row(task, explained)
    return len(tasks)


def _tasks(sets: Sequence[Units], limit: int | None, controls: int, seed: int) -> list[_Task]:
    every = [(units, int(latent)) for units in sets for latent in units.latents]
    order = np.random.default_rng(seed).permutation(len(every))[:limit]
    before: dict[str, list[int]] = {units.kind: [] for units in sets}
    found = []
    for i in order.tolist():
        units, latent = every[i]
        earlier = before[units.kind]
        other = earlier[-1] if earlier and len(earlier) <= controls else None
        found.append(_Task(units, latent, other))
        earlier.append(latent)
    return found


def _explained(sets: Sequence[Units]) -> Callable[[str, int], Explanation]:
    by_kind = {units.kind: units for units in sets}

    @lru_cache(KEPT)
    def explained(kind: str, latent: int) -> Explanation:
        return by_kind[kind].explainer.explain(latent)

    return explained


def _row(
    task: _Task, explained: Callable[[str, int], Explanation]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    units, latent, begin = task.units, task.latent, time.perf_counter()
    try:
        explanation = explained(units.kind, latent)
        found = units.scorer(latent, explanation)
        row: dict[str, Any] = {"kind": units.kind, "latent": latent, "explanation": explanation.sentence}
        row |= {"single_token": units.single_token(latent), "scores": found.scores}
        if found.unscored is not None:
            row["unscored"] = found.unscored
        elif task.other is not None:
            row["controls"] = units.scorer.controls(latent, explained(units.kind, task.other))
    except InputError as error:
        raise type(error)(f"{units.kind} {latent}: {error}") from None
    return row | {"seconds": round(time.perf_counter() - begin, 4)}, found.simulations


def _parts(tasks: Sequence[_Task], n: int) -> Iterator[list[_Task]]:
    left = iter(tasks)
    while part := list(islice(left, n)):
        yield part
