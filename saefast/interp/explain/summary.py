"""What the scores of all units come to: by kind of unit, with and without single tokens, beside the explanations of other units."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.interp.explain.scores.statistics import Interval, mean_interval
from saefast.interp.lines import read_lines

GOOD = 0.8  # correlation from which Bills et al. (2023) say that an explanation accounts for most of what a neuron does
MAIN = "simulation.ev_correlation_score"


class Unit(NamedTuple):
    kind: str
    latent: int
    explanation: str
    value: float


class Group(NamedTuple):
    """A number over some units."""

    units: int
    mean: Interval
    median: float
    above: int  # units with at least `GOOD`
    controls: dict[str, float]  # means of "shuffled", "always 0", "always 1", over `n_controls` of the units
    n_controls: int


class Summary:
    """One pass over a file of results.

    Attributes:
        settings: its first line.
        units: by kind, how many were explained.
        unscored: by kind and reason, how many have no scores.
        seconds: of all units, added up.
        good: units whose simulation is at least `GOOD`, the best first.
        groups: by kind, "all", "single tokens" and "others", and name of the number ("detection.auc").
        values: by kind and name of the number, those of all units, [n] float64.
    """

    def __init__(self, path: str | Path) -> None:
        lines = read_lines(path)
        self.settings: dict[str, Any] = next(lines, {})
        self.units: dict[str, int] = defaultdict(int)
        self.unscored: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.seconds = 0.0
        self.good: list[Unit] = []
        self.controls: dict[str, None] = {}  # the names that there are, in order
        own: dict[tuple[str, str], list[float]] = defaultdict(list)
        single: dict[tuple[str, str], list[bool]] = defaultdict(list)
        others: dict[tuple[str, str, bool, str], list[float]] = defaultdict(list)
        for row in lines:
            kind, latent, is_single = row["kind"], row["latent"], row["single_token"]
            self.units[kind] += 1
            self.seconds += row["seconds"]
            if "unscored" in row:
                self.unscored[kind][row["unscored"]] += 1
                continue
            for name, value in flat(row["scores"]).items():
                own[kind, name].append(value)
                single[kind, name].append(is_single)
                if name == MAIN and value >= GOOD:
                    self.good.append(Unit(kind, latent, row["explanation"], value))
            for control, scores in row.get("controls", {}).items():
                self.controls = {**self.controls, control: None}
                for name, value in flat(scores).items():
                    others[kind, name, is_single, control].append(value)
        self.good.sort(key=lambda unit: (-unit.value, unit.kind, unit.latent))
        self.values = {key: np.asarray(values) for key, values in own.items()}
        self.groups: dict[tuple[str, str, str], Group] = {}
        for (kind, name), values in self.values.items():
            is_one = np.asarray(single[kind, name], bool)
            parts = {"all": np.ones_like(is_one), "single tokens": is_one, "others": ~is_one}
            for part, mask in parts.items():
                if mask.any():
                    wanted = {"all": (False, True), "single tokens": (True,), "others": (False,)}[part]
                    control = {
                        control: [one for of in wanted for one in others[kind, name, of, control]]
                        for control in self.controls
                    }
                    self.groups[kind, part, name] = _group(values[mask], control)

    @property
    def kinds(self) -> list[str]:
        return sorted(self.units)

    @property
    def names(self) -> list[str]:
        """Of the numbers, in the order of the file."""
        return list(dict.fromkeys(name for _, name in self.values))


def _group(values: np.ndarray, controls: Mapping[str, list[float]]) -> Group:
    means = {name: float(np.mean(some)) for name, some in controls.items() if some}
    n = max((len(some) for some in controls.values()), default=0)
    above = int((values >= GOOD).sum())
    return Group(len(values), mean_interval(values), float(np.median(values)), above, means, n)


def flat(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{"detection": {"auc": 0.9, "auc_low": ...}} -> {"detection.auc": 0.9}, without ends of intervals and without what is no number."""
    return {
        f"{score}.{name}": float(value)
        for score, numbers in scores.items()
        for name, value in numbers.items()
        if type(value) in (int, float) and not name.endswith(("_low", "_high")) and not name.startswith("n_")
    }
