"""The result of a sweep: one table, and one plot of L0 against the error, of all its SAEs."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.files import write_json
from saefast.train.run import run_folder
from saefast.train.run.loggers import read_lines

Rows = Sequence[dict[str, Any]]
TABLE, PLOT = "table.json", "pareto.png"
SHOWN = ("l0", "fvu", "dead_frac", "cosine", "loss_recovered", "kl")
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:gray")
MARKERS = "osD^vPX"

log = logging.getLogger("saefast")


def described(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """The row of the table for a run of so many steps that is not evaluated: what it is, and its last metrics.

    Raises:
        InputError: run.json or metrics.jsonl is damaged, or the last line is gone.
    """
    run = run_folder.read(folder)
    sae, train = run["sae"], run["train"]
    row = {"name": name, "activation": sae["activation"], "d_sae": sae["d_sae"], "k": sae["k"]}
    row |= {"seed": train["seed"], "columns": run["source"]["columns"]}
    lines = read_lines(folder / "metrics.jsonl")
    last = lines[-1] if lines else {}
    if not (folder / "sae.safetensors").exists():
        return row | {"diverged": last.get("step", 0)}  # the last step that was logged
    there, path = last.get("step", 0), folder / "metrics.jsonl"
    check(there >= steps, f"{path}: expected the line of step {steps}, found none after that of step {there}")
    return row | {key: last[key] for key in ("tokens", "fvu", "l0", "dead_frac")}


def table(rows: Rows) -> str:
    """The rows as aligned text, sorted by architecture and L0."""
    keys = [key for key in SHOWN if any(key in row for row in rows)]
    ordered = sorted(rows, key=lambda row: (row["activation"], "diverged" in row, row.get("l0", 0.0)))
    lines = [["name", *keys]]
    for row in ordered:
        values = [f"{row[key]:.4g}" if key in row else "" for key in keys]
        lines.append([row["name"], *(["diverged"] if "diverged" in row else values)])
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(keys) + 1)]
    texts = []
    for name, *values in lines:
        shown = [value.rjust(width) for value, width in zip(values, widths[1:], strict=False)]
        texts.append("  ".join([name.ljust(widths[0]), *shown]).rstrip())
    return "\n".join(texts)


def front(points: Sequence[tuple[float, float]], up: bool = False) -> list[tuple[float, float]]:
    """The points (l0, y) that no other point beats: none has a smaller or equal l0 and a better y.

    up: whether a larger y is better; else a smaller one is.
    """
    best, found = math.inf, []
    for l0, y in sorted(points, key=lambda p: (p[0], -p[1] if up else p[1])):
        if (worse := -y if up else y) < best:
            best = worse
            found.append((l0, y))
    return found


def write(out: Path, rows: Rows) -> None:
    """Write OUT/table.json and OUT/pareto.png. Without the extra `viz` (matplotlib) there is a warning in place of the plot."""
    write_json(out / TABLE, {"rows": json.loads(json.dumps(rows), parse_constant=lambda _: None)})
    try:
        plot(out / PLOT, rows)
    except ImportError:
        log.warning(f"{PLOT} was not drawn: it needs `pip install saefast[viz]`")


def plot(path: Path, rows: Rows) -> None:
    """Draw L0 against FVU, and against loss recovered if it was measured, with a line through the best SAEs of each
    architecture."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    panels = [("fvu", "FVU (fraction of variance unexplained)", False)]
    if any("loss_recovered" in row for row in rows):
        panels.append(("loss_recovered", "loss recovered (share of zero ablation)", True))
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    kinds = sorted({row["activation"] for row in rows})
    for axis, (key, title, up) in zip(axes, panels, strict=True):
        for i, kind in enumerate(kinds):
            color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
            here = [r for r in rows if r["activation"] == kind and finite(r, "l0") and finite(r, key)]
            points = [(r["l0"], r[key]) for r in here]
            axis.plot(*zip(*points, strict=True), marker, color=color, markersize=5) if points else None
            l0, y = zip(*front(points, up), strict=True) if points else ((), ())
            axis.plot(l0, y, color=color, marker=marker, markersize=5, label=kind)
            # labels of two architectures at the same k must not cover each other
            above: dict[str, Any] = {"xytext": (5, 4), "ha": "left", "va": "bottom"}
            below: dict[str, Any] = {"xytext": (-5, -4), "ha": "right", "va": "top"}
            place = {"textcoords": "offset points"} | (above if i % 2 == 0 else below)
            for row in here:
                axis.annotate(label(row, here), (row["l0"], row[key]), fontsize=7, color=color, **place)
        axis.set_xscale("log", base=2)
        axis.margins(x=0.16, y=0.1)
        axis.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0,)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("L0 (active latents per token)")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(title="number: d_sae; line: the best of each", title_fontsize=8, fontsize=8)
    figure.savefig(path, dpi=110, facecolor="white")  # not transparent: readable on light and dark pages


def finite(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    return value is not None and math.isfinite(value) and (key != "l0" or value > 0)


def label(row: dict[str, Any], among: Rows) -> str:
    """What distinguishes a point from the others of its architecture: d_sae, and the seed or columns if they differ."""
    parts = [f"{row['d_sae']}"]
    if len({r["seed"] for r in among}) > 1:
        parts.append(f"seed {row['seed']}")
    if len({str(r["columns"]) for r in among}) > 1:
        parts.append("columns {}-{}".format(*row["columns"]) if row["columns"] else "all columns")
    return ", ".join(parts)
