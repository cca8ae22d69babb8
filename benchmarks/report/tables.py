"""The tables of `python -m benchmarks.report`, rendered from benchmarks/results/cpu/*.json. A section is a list of paragraphs.

A cell holds one number. If it was measured in rounds, it is their median, and the 10th and 90th percentile stand in a second
table, which GitHub shows after a click.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parents[1] / "results"
Result = dict[str, Any]
Section = list[str]
Curve = list[list[float]]  # of [seconds, tokens, FVU]


class Spread(NamedTuple):
    """The cell of a number that has a spread."""

    number: str
    between: str


Rows = list[list[str | Spread]]


def read(name: str) -> Result:
    found: Result = json.loads((RESULTS / "cpu" / f"{name}.json").read_text())
    return found


# What all sections are made of


def spread(values: Sequence[float], form: str = "{:.1f}") -> Spread:
    """A cell from median, 10th and 90th percentile."""
    number, low, high = (form.format(value) for value in values)
    return Spread(number, f"{low} to {high}")


def milliseconds(seconds: float) -> str:
    """Of a time in seconds, to three digits."""
    return f"{float(f'{1e3 * seconds:.3g}'):,g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def table(rows: Rows, labels: int = 1, spreads: str = "10th and 90th percentile") -> str:
    """The first row is the head, the first `labels` columns name a row; columns with spreads come again, with these."""
    numbers = markdown([[c.number if isinstance(c, Spread) else c for c in row] for row in rows])
    wide = [i for i in range(len(rows[0])) if any(isinstance(row[i], Spread) for row in rows)]
    if not wide:
        return numbers
    kept = [row for row in rows if row is rows[0] or any(isinstance(cell, Spread) for cell in row)]
    picked = [[row[i] for i in (*range(labels), *wide)] for row in kept]
    between = markdown([[c.between if isinstance(c, Spread) else c for c in row] for row in picked])
    return f"{numbers}\n\n<details><summary>{spreads}</summary>\n\n{between}\n\n</details>"


def shape_text(shape: dict[str, int]) -> str:
    names = {"B": "B", "d_in": "d_in", "D": "d_in", "d_sae": "d_sae", "F": "d_sae", "k": "k", "K": "k"}
    return ", ".join(f"{name} {shape[key]}" for key, name in names.items() if key in shape)


def source(command: str, machine: Result) -> str:
    """How, where and when it was measured."""
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
    return f"`{command}`; {where}, commit {machine['commit']}, {machine['date']}."


def label(name: str, versions: dict[str, str]) -> str:
    """The name of a contender with its version."""
    project = name.split()[0]
    packages = {"sparsify": "eai-sparsify", "SAELens": "sae-lens"}
    version = versions.get(packages.get(project, project.replace("_", "-")))
    return f"{name} ({version})" if version else name


# Beside the peers


def seconds_until(curve: Curve, target: float) -> float | None:
    """Of training, at the first mark at which the FVU is at most `target`."""
    return next((seconds for seconds, _, fvu in curve if fvu <= target), None)


def soonest(curves: dict[str, Curve], target: float) -> float | None:
    """Seconds until one of our runs has an FVU of at most `target`."""
    ours = [seconds_until(curve, target) for name, curve in curves.items() if name.startswith("saefast")]
    return min((seconds for seconds in ours if seconds is not None), default=None)


def target_table(found: Result, best_only: bool = False) -> str:
    """Seconds until the FVU that everybody reaches (rounded up to two digits), of each project with all its settings or its best."""
    curves, versions = found["[seconds, tokens, FVU]"], found["machine"]["versions"]
    target = -(-max(curve[-1][2] for curve in curves.values()) * 100 // 1) / 100
    ours, shown = soonest(curves, target), set()
    rows: Rows = [["", f"seconds to FVU {target:.2f}", "times as long as saefast"]]
    reached = {name: seconds_until(curve, target) for name, curve in curves.items()}
    for name, seconds in sorted(reached.items(), key=lambda item: item[1]):
        project = name.replace(",", "").split()[0]
        if not (best_only and project in shown):
            rows.append([label(name, versions), f"{seconds:.1f}", f"{seconds / ours:.1f}"])
        shown.add(project)
    return table(rows)


def quality(found: Result) -> Section:
    """When a run of ours is as good as each contender at its end; then the seconds to one FVU for all."""
    curves, shape, versions = found["[seconds, tokens, FVU]"], found["shape"], found["machine"]["versions"]
    head = [
        "",
        "learning rate",
        "FVU at the end",
        "seconds",
        "seconds until saefast is there",
        "times as long",
    ]
    rows: Rows = [[*head]]
    for name, curve in sorted(curves.items(), key=lambda item: item[1][-1][0]):
        seconds, _, fvu = curve[-1]
        there, beside = soonest(curves, fvu), ["", ""]
        if not name.startswith("saefast"):
            beside = [f"{there:.1f}", f"{seconds / there:.1f}"] if there else ["never", ""]
        rate = f"{found['lr'][name]:g}"
        rows.append([label(name, versions), rate, f"{fvu:.4f}", f"{seconds:.1f}", *beside])
    about = f"FVU on held-out activations after {shape['tokens']:,} tokens; {shape_text(shape)}."
    command = source("benchmarks/peers/quality.py", found["machine"])
    return [f"{command} {about}", table(rows), target_table(found)]


def step(found: Result) -> Section:
    versions = found["machine"]["versions"]
    about = "Buffers kept: glibc's allocator is told to keep freed memory."
    parts = [f"{source('benchmarks/peers/step_ratios.py', found['machine'])} {about}"]
    head = [
        "",
        "ms",
        "times as long as saefast",
        "ms, buffers kept",
        "times as long, buffers kept",
        "peak MiB",
    ]
    for case in found["shapes"].values():
        usual, keeping = case["glibc"]["contenders"], case["glibc, keeping"]["contenders"]
        rows: Rows = [[*head]]
        for name in usual:
            row: list[str | Spread] = [label(name, versions)]
            for one in (usual[name], keeping[name]):
                row += [milliseconds(one["seconds"][0]), spread(one["times ours"])]
            rows.append([*row, f"{case['peak MiB'][name]:.0f}" if name in case["peak MiB"] else ""])
        parts += [f"{shape_text(case['shape'])}:", table(rows)]
    return parts


def drop_in(found: Result, only: str | None = None) -> Section:
    """For docs/benchmarks.md, or for the page of one project."""
    machine, names = found["machine"], {"pytorch": "plain PyTorch loop, torch", "sae_lens": "SAELens"}
    rows: Rows = [["project", "trainer", "times as fast", "ms"]]
    for project, case in found["projects"].items():
        link = f"[{names.get(project, project)} {case['version']}](drop-in/{project}.md)"
        for kind, row in case.items():
            if kind != "version" and only in (None, project):
                rows.append([link, kind, spread(row["stock over ours"]), milliseconds(row["seconds"])])
    about = f"{shape_text(found['shape'])}; {machine['cpu']}, {machine['threads']} threads, no GPU, torch {machine['torch']}"
    if only:
        rows, about = [row[1:] for row in rows], f"version {found['projects'][only]['version']}; {about}"
    what = "A step of the project's trainer with the changed line, beside one without it"
    return [
        f"{what} (`benchmarks/peers/drop_in.py`; {about}; both in one process, in turn):",
        table(rows, 1 if only else 2),
    ]


def left_out(*results: Result) -> Section:
    """Peers that could not run, each once."""
    reasons = {name: why for found in results for name, why in found["left out"].items()}
    return ["\n".join(f"- {name}: {why}" for name, why in reasons.items())]


def architectures(*timed: Result) -> Section:
    """Times of a step of the recipes of `parity.py` at 7be348a, ours and those of the peer's own trainer."""
    names = {"DL": "dictionary_learning", "SP": "sparsify", "SL": "SAELens"}
    head = [
        "",
        "saefast, ms",
        "times as long as its TopK",
        "the peer's trainer, times as long as saefast",
        "L0",
    ]
    parts = []
    for found in timed:
        rows: Rows = [[*head]]
        for name, row in found["rows"].items():
            library, what = name.split(maxsplit=1)
            over_topk = next(value for key, value in row.items() if key.startswith("of our"))
            ratios = [f"{value:.1f}" for value in (over_topk, row["peer's over ours"])]
            rows.append(
                [f"{names[library]} {what}", f"{1e3 * row['seconds']:.0f}", *ratios, f"{row['l0']:.0f}"]
            )
        parts += [f"{shape_text(found['shape'])}:", table(rows)]
    return parts


# Time and memory


def ops(found: Result) -> Section:
    """A row for each op and shape beside plain PyTorch, then the other ways to compute it."""
    mine = "triton" if any(row["contender"] == "triton" for row in found["rows"]) else "native"
    head = ["op", "shape", "plain, ms", f"saefast ({mine}), ms", "times as fast", "share of the floor"]
    rows: Rows = [[*head, "GB/s", "GFLOP/s", "peak MiB, plain", "peak MiB"]]
    others: Rows = [["op", "shape", "way", "times as fast as plain PyTorch; a selection: as encode_topk"]]
    cases: dict[tuple[str, str], dict[str, Result]] = {}
    for row in found["rows"]:
        cases.setdefault((row["op"], " ".join(map(str, row["shape"]))), {})[row["contender"]] = row
    for case, ways in cases.items():
        faster = {way: spread(row["times as fast as plain"], "{:.2f}") for way, row in ways.items()}
        plain, cells, peak = ways.get("plain"), [""] * 5, ""
        if ours := ways.get(mine):
            rates = [f"{ours[unit]:.0f}" if unit in ours else "" for unit in ("GB/s", "GFLOP/s")]
            share, peak = f"{ours['share of floor']:.0%}", f"{ours['peak MiB']:.0f}"
            cells = [milliseconds(ours["seconds"][0]), faster[mine], share, *rates]
        if plain:
            rows.append([*case, milliseconds(plain["seconds"][0]), *cells, f"{plain['peak MiB']:.0f}", peak])
        others += [[*case, way, faster[way]] for way in ways if way not in ("plain", mine)]
    floor = ", ".join(f"{value:g} {unit}" for unit, value in found["device"].items())
    about = (
        "Every result was compared with fp64 or the reference before it was timed. The floor is computed from what was measured "
        f"in the same session: {floor}. A share above 100% is possible: what is still in cache moves faster than a copy in main "
        "memory, and the encoder screens in 8 bits where the floor has an fp32 product. Peak memory is that of one call, "
        "above what is held between calls. A shape is B, d_in, d_sae, k."
    )
    command = source("pytest benchmarks", found["machine"])
    return [f"{command} {about}", table(rows, 2), "Other ways to compute the same:", table(others, 3)]


def scaling(found: Result) -> Section:
    parts = []
    for what, axis in found["seconds"].items():
        mine, *names = axis["points"][0]
        rows: Rows = [[what, f"{mine}, ms", *(f"{name}, times as long" for name in names)]]
        for value, point in zip(axis["values"], axis["points"], strict=True):
            ratios = [spread(point[name]["ratio"]) if name in point else "" for name in names]
            rows.append([f"{value:,}", milliseconds(point[mine]["seconds"][0]), *ratios])
        parts.append(table(rows))
    peaks = found["peak MiB"]
    titles = {"memory_bytes": "predicted by `saefast.train.memory`"}
    rows = [["d_sae: peak MiB", *(titles.get(name, name) for name in peaks["points"][0])]]
    for value, point in zip(peaks["values"], peaks["points"], strict=True):
        rows.append(
            [f"{value:,}", *(f"{point[n]['MiB'][0]:.0f}" if n in point else "" for n in peaks["points"][0])]
        )
    axes = {f"time over {what}": axis for what, axis in found["seconds"].items()} | {
        "memory over d_sae": peaks
    }
    slopes: Rows = [["exponent (slope in log-log)", *axes]]
    for name in dict.fromkeys(name for axis in axes.values() for name in axis["exponents"]):
        found_in = [axis["exponents"].get(name) for axis in axes.values()]
        cells = [Spread(f"{one[0]:.2f}", f"{one[1]:.2f}") if one else "" for one in found_in]
        slopes.append([titles.get(name, name), *cells])
    about = f"{source('benchmarks/peers/scaling.py', found['machine'])} One size changes at a time, from"
    return [f"{about} {shape_text(found['base'])}.", *parts, table(rows), table(slopes, 1, "standard errors")]


def largest(found: Result) -> Section:
    versions, budget = found["machine"]["versions"], found["budget GiB"]
    rows: Rows = [["", f"largest d_sae in {budget} GiB", "bytes per latent", "did not fit", "because"]]
    for name, row in sorted(found["largest"].items(), key=lambda item: -(item[1]["d_sae"] or 0)):
        size = f"{row['d_sae']:,}" if row["d_sae"] else "not even the first trial"
        over = min((t for t in row["trials"] if not t["fits"]), key=lambda t: t["d_sae"], default=None)
        beyond = [f"{over['d_sae']:,}", over["why"]] if over else ["", ""]
        rows.append([label(name, versions), size, f"{row.get('bytes per latent', 0):,}", *beyond])
    about = (
        f"Not part of `make bench`. Two steps at {shape_text(found['shape'])} in a process of their own, which is killed when it "
        f"takes more than {budget} GiB, imports included."
    )
    return [f"{source('benchmarks/peers/scaling.py --largest', found['machine'])} {about}", table(rows)]


def pipeline(found: Result) -> Section:
    about = "Files are in the page cache. All stages share the cores of a CPU, so a token takes the sum of their times."
    parts = [f"{source('benchmarks/activations/pipeline.py', found['machine'])} {about}"]
    head = ["trained", "tokens/s", "share of the time waiting", "share of the rate that its stages allow"]
    for case in (value for key, value in found.items() if key != "machine"):
        parts.append(f"{shape_text(case['shape'])}:")
        for part in (case[name] for name in ("shards", "model") if name in case):
            fits: Rows = [[*head, "times as long as from memory"]]
            for name, fit in part["fits"].items():
                allowed = f"{fit['over expected'][0]:.0%}" if "over expected" in fit else ""
                rate, longer = spread(fit["tokens/s"], "{:,.0f}"), spread(fit["over in memory"])
                fits.append([name, rate, f"{fit['share waiting'][0]:.1%}", allowed, longer])
            stages = [[name, spread(rate, "{:,.0f}")] for name, rate in part["stages, tokens/s"].items()]
            parts += [table(fits), table([["a stage alone", "tokens/s"], *stages])]
    return parts
