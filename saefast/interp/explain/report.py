"""The report of a run over all units: OUT/report.html and OUT/report.md, OUT/good.tsv, OUT/pictures."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saefast.errors import InputError
from saefast.files import write_atomic
from saefast.interp.blocks import Link, Picture, Section, Table, as_html, as_markdown, file_of
from saefast.interp.explain.every import RESULTS
from saefast.interp.explain.summary import GOOD, MAIN, Group, Summary
from saefast.interp.pictures import draw_scores

log = logging.getLogger("saefast")
LISTED = 200  # good units in the report; all of them are in good.tsv
PICTURE = "scores"
WORDS = {  # of the numbers, in the order of the table, and what chance gives
    MAIN: ("simulation: correlation", "0"),
    "simulation.spearman": ("simulation: Spearman", "0"),
    "simulation.rsquared_score": ("simulation: R\u00b2", "0"),
    "simulation.absolute_dev_explained_score": ("simulation: absolute deviation explained", "0"),
    "simulation.top_only": ("correlation, top windows only", "0"),
    "simulation.random_only": ("correlation, random windows only", "0"),
    "detection.balanced_accuracy": ("detection: balanced accuracy", "0.5"),
    "detection.auc": ("detection: AUC", "0.5"),
    "fuzz.balanced_accuracy": ("fuzzing: balanced accuracy", "0.5"),
    "fuzz.auc": ("fuzzing: AUC", "0.5"),
}
DETAILS = ("accuracy", "precision", "recall", "f1", "defined")  # that results.jsonl has besides
HEAD = ("number", "units", "mean", "95 %", "median", f"at least {GOOD}", "controls on")
CONTROLS = {"shuffled": "another unit's explanation", "always 0": "always 0", "always 1": "always 1"}
COLUMNS = (*HEAD, *CONTROLS.values(), "chance")


def write_report(
    out: str | Path,
    title: str,
    notes: Sequence[str | Table] = (),
    link: Callable[[str, int], str | None] = lambda kind, latent: None,
) -> Path:
    """Write the report of the results in a folder, and return its page.

    Args:
        notes: what is said first: who explained, who judged, whether the judge may speak.
        link: the page of a unit, by kind and number; None: it has none.
    """
    out = Path(out)
    summary = Summary(out / RESULTS)
    written = [
        Section("How it was made", [*notes, *_made(summary)]),
        Section("Scores", [*_scores(summary), *_picture(summary, out)]),
        Section(f"Units of at least {GOOD}", _good(summary, link)),
    ]
    lines = ["kind\tlatent\tcorrelation\texplanation"]
    lines += [f"{u.kind}\t{u.latent}\t{u.value:.4f}\t{_line(u.explanation)}" for u in summary.good]
    texts = {
        "good.tsv": "\n".join(lines) + "\n",
        "report.md": as_markdown(title, written),
        "report.html": as_html(title, written),
    }
    for name, text in texts.items():
        write_atomic(out / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return out / "report.html"


def lines_of(summary: Summary) -> Iterator[str]:
    """The table for a terminal."""
    for kind in summary.kinds:
        rows = [COLUMNS, *_rows(summary, kind, "all")]
        widths = [max(len(str(row[i])) for row in rows) for i in range(len(COLUMNS))]
        yield f"{summary.units[kind]:,} {kind}{_reasons(summary.unscored.get(kind, {}))}"
        for row in rows if len(rows) > 1 else []:
            cells = [
                f"{row[0]:<{widths[0]}}",
                *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
            yield "  " + "  ".join(cells).rstrip()
    yield f"{len(summary.good):,} units with a correlation of at least {GOOD}"


def _made(summary: Summary) -> list[str | Table]:
    lines = [(name, _said(value)) for name, value in summary.settings.items()]
    n = sum(summary.units.values())
    took = f"{n:,} units took {summary.seconds:,.0f} s ({1000 * summary.seconds / max(n, 1):,.1f} ms each)."
    return [took, Table(("setting", "value"), lines)]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _scores(summary: Summary) -> list[str | Table]:
    parts: list[str | Table] = []
    for kind in summary.kinds:
        parts.append(f"{summary.units[kind]:,} {kind}{_reasons(summary.unscored.get(kind, {}))}.")
        for part in ("all", "others", "single tokens"):
            rows = _rows(summary, kind, part)
            if rows and not (part == "others" and not _rows(summary, kind, "single tokens")):
                parts += [f"{kind}: {_PARTS[part]}"] if part != "all" else []
                parts.append(Table(COLUMNS, rows))
    return parts


_PARTS = {
    "others": "without single tokens",
    "single tokens": "single tokens only (all examples share the token)",
}


def _rows(summary: Summary, kind: str, part: str) -> list[tuple[str, ...]]:
    names = [name for name in WORDS if name in summary.names]
    names += [name for name in summary.names if name not in WORDS and name.partition(".")[2] not in DETAILS]
    found = ((name, summary.groups.get((kind, part, name))) for name in names)
    return [_row(name, group) for name, group in found if group is not None]


def _row(name: str, group: Group) -> tuple[str, ...]:
    words, chance = WORDS.get(name, (name.replace(".", ": ").replace("_", " "), ""))
    mean = group.mean
    controls = [f"{group.controls[name]:.3f}" if name in group.controls else "" for name in CONTROLS]
    n = f"{group.n_controls:,}" if group.n_controls else ""
    interval = f"{mean.low:.3f} to {mean.high:.3f}"
    good = f"{group.above:,}" if name == MAIN else ""
    own = (words, f"{group.units:,}", f"{mean.value:.3f}", interval, f"{group.median:.3f}", good)
    return (*own, n, *controls, chance)


def _reasons(reasons: Mapping[str, int]) -> str:
    return "".join(f"; {n:,} not scored: {reason}" for reason, n in sorted(reasons.items()))


def _picture(summary: Summary, out: Path) -> list[str | Picture]:
    values = {kind: summary.values[kind, MAIN] for kind in summary.kinds if (kind, MAIN) in summary.values}
    if not values:
        return []
    (out / file_of(PICTURE)).parent.mkdir(exist_ok=True)
    try:
        draw_scores(values, out / file_of(PICTURE), "correlation of simulated and real activations", GOOD)
    except InputError as error:
        log.warning("no picture: %s", error)
        return []
    return [Picture(PICTURE, "Simulation: correlation of each unit")]


def _good(summary: Summary, link: Callable[[str, int], str | None]) -> list[str | Table]:
    n, shown = len(summary.good), summary.good[:LISTED]
    counts = {kind: sum(unit.kind == kind for unit in summary.good) for kind in summary.kinds}
    said = ", ".join(f"{count:,} of {summary.units[kind]:,} {kind}" for kind, count in counts.items())
    rows = []
    for unit in shown:
        page, name = link(unit.kind, unit.latent), f"{unit.kind} {unit.latent}"
        rows.append((Link(name, page) if page else name, f"{unit.value:.3f}", _line(unit.explanation)))
    rest = f" The first {LISTED}; all are in good.tsv." if n > LISTED else ""
    return [f"{said}.{rest}", *([Table(("unit", "correlation", "explanation"), rows)] if rows else [])]


def _line(text: str) -> str:
    return " ".join(text.split())
