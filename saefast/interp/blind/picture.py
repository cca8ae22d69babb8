"""The picture of an evaluation: histograms of points by type, and points by interval. Needs the extra `viz` (matplotlib)."""

from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import InputError
from saefast.files import write_atomic
from saefast.interp.blind.rubric import FAIRLY

COLOURS = ("#b4400a", "#1f6fb2", "#66625a", "#6b8e23")


def draw_results(results: dict[str, Any], path: str | Path) -> Path:
    """Write the PNG of what `unseal` found: on the left how many intervals (units, if no intervals were rated) of each set had how
    many points, on the right the mean answers by interval.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install 'saefast[viz]'") from None
    path, most, sets = Path(path), results["most_points"], results["sets"]
    has_intervals = results["config"]["rated"] > 0
    figure = Figure(figsize=(10 if has_intervals else 5.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if has_intervals else 1, squeeze=False)[0]
    width, bins = 0.84 / len(sets), np.arange(most + 2)
    for i, (name, found) in enumerate(sets.items()):
        rows = [row for row in results["ratings"] if row["set"] == name]
        of = [row["interval_points"] if has_intervals else [row["points"]] for row in rows]
        counts = np.bincount(np.concatenate(of).astype(np.int64), minlength=most + 1)
        shown = found["intervals" if has_intervals else "units"]
        label = f"{name}: median {shown['median']:g}"
        colour = COLOURS[i % len(COLOURS)]
        at = bins[:-1] - 0.42 + width * (i + 0.5)
        axes[0].bar(at, counts / max(1, counts.sum()), width, label=label, color=colour)
        if has_intervals:
            known = [one for one in found["curve"] if one["n"]]
            x, y = [one["interval"] for one in known], [one["points"] for one in known]
            axes[1].plot(x, y, "o-", color=colour, label=name, markersize=4)
    axes[0].axvline(FAIRLY + 0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="points", ylabel=f"share of {'intervals' if has_intervals else 'units'}")
    axes[0].set_xticks(range(0, most + 1, 2))
    if has_intervals:
        n = results["config"]["n_intervals"]
        axes[1].set(
            xlabel="interval, the strongest on the right", ylabel="mean points", ylim=(-0.5, most + 0.5)
        )
        axes[1].set_xticks(range(1, n + 1))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})

    write_atomic(path, write)
    return path
