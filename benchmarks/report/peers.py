"""Tables of ours beside the peers, from benchmarks/results/: quality per second, the step, drop-in trainers."""

import hashlib
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
DOCS = RESULTS.parent.parent / "docs"
PICTURES = ("quality", "step")  # results that have one: docs/bench_<result>.png
Rows = list[list[str]]


def read(name: str, device: str = "cpu") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / device / f"{name}.json").read_text())
    return found


def fingerprint(name: str, device: str = "cpu") -> str:
    return hashlib.sha256((RESULTS / device / f"{name}.json").read_bytes()).hexdigest()


def markdown(rows: Rows) -> str:
    """The first row is the head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shape_text(shape: dict[str, int]) -> str:
    return "B {B}, d_in {d_in}, d_sae {d_sae}, k {k}".format(**shape)


def times(values: list[float]) -> str:
    """A ratio with its spread."""
    return "{:.1f} ({:.1f} to {:.1f})".format(*values)


def machine_text(machine: dict[str, Any]) -> str:
    return "{device}, {threads} threads, torch {torch}, commit {commit}, {date}".format(
        **machine, torch=machine["versions"]["torch"]
    )


def label(name: str, versions: dict[str, str]) -> str:
    """The name of a contender with its version."""
    packages = {
        "sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning", "SAELens": "sae-lens",
        "llamascopium": "llamascopium", "overcomplete": "overcomplete",
    }  # fmt: skip
    version = versions.get(packages.get(name.split()[0], ""))
    return f"{name} ({version})" if version else name


# quality per second


def seconds_until(curve: list[list[float]], target: float) -> float | None:
    """Of training, at the first mark at which the FVU is at most `target`."""
    return next((seconds for seconds, _, fvu in curve if fvu <= target), None)


def common_target(curves: dict[str, list[list[float]]]) -> float:
    """The FVU that everybody reaches, rounded up to two digits."""
    return -(-max(curve[-1][2] for curve in curves.values()) * 100 // 1) / 100


def quality_table(found: dict[str, Any]) -> str:
    """Of each: the FVU at the end, and when a run of ours is as good."""
    curves, shape, versions = found["[seconds, tokens, FVU]"], found["shape"], found["machine"]["versions"]
    target = common_target(curves)
    mine = {name: curve for name, curve in curves.items() if name.startswith("saefast")}
    soonest = min(s for curve in mine.values() if (s := seconds_until(curve, target)) is not None)
    head = f"FVU on held-out activations after {shape['tokens']:,} tokens ({shape_text(shape)})"
    rows = [
        [
            head,
            "best lr",
            "FVU",
            "seconds",
            "saefast is there after",
            "times as long",
            f"seconds to FVU {target:.2f}",
        ]
    ]
    for name, curve in sorted(curves.items(), key=lambda item: item[1][-1][0]):
        seconds, _, fvu = curve[-1]
        there = [s for other in mine.values() if (s := seconds_until(other, fvu)) is not None]
        reached = seconds_until(curve, target)
        beside = [f"{min(there):.1f} s", f"{seconds / min(there):.1f}"] if there else ["not", ""]
        until = f"{reached:.1f} ({reached / soonest:.1f} times ours)" if reached else "not"
        rows.append(
            [
                label(name, versions), f"{found['lr'][name]:g}", f"{fvu:.4f}", f"{seconds:.1f}",
                *(["", ""] if name in mine else beside), f"{reached:.1f}" if name in mine and reached else until,
            ]
        )  # fmt: skip
    rows += left_out(found, len(rows[0]))
    return markdown(rows)


def left_out(found: dict[str, Any], width: int) -> Rows:
    return [[name, f"left out: {why}", *[""] * (width - 2)] for name, why in found["left out"].items()]


# the step


def step_table(found: dict[str, Any]) -> str:
    """Times of the others over ours, with glibc's allocator and with one that keeps its buffers, and peak memory."""
    cases, versions = list(found["shapes"].values()), found["machine"]["versions"]
    head = "A training step: times as long as ours; with an allocator that keeps its buffers; peak MiB"
    rows = [[head, *(shape_text(case["shape"]) for case in cases)]]
    names = [name for name in cases[0]["glibc"]["contenders"]]
    for name in names:
        cells = []
        for case in cases:
            both = [case[allocator]["contenders"][name] for allocator in ("glibc", "glibc, keeping")]
            peak = case["peak MiB"].get(name)
            texts = (
                [f"{one['seconds'][0]:.3f} s" for one in both]
                if name == "saefast"
                else [times(one["times ours"]) for one in both]
            )
            cells.append("; ".join([*texts, *([f"{peak:.0f} MiB"] if peak else [])]))
        rows.append([label(name, versions), *cells])
    rows += left_out(found, 1 + len(cases))
    return markdown(rows)


# drop-in trainers


def drop_in() -> dict[str, str]:
    """Of each project: how many times faster its trainer's step is with our line in it."""
    texts = {}
    for project, row in read("drop_in")["projects"].items():
        kinds = [
            f"{kind} {case['stock over ours'][0]:.1f} ({case['seconds']:.2f} s)"
            for kind, case in row.items()
            if kind != "version"
        ]
        texts[project] = ", ".join(kinds)
    return texts


def drop_in_table() -> str:
    found = read("drop_in")
    what = f"A step of another project's trainer with one line of its user's changed ({shape_text(found['shape'])}): times as fast"
    names = {"pytorch": "plain PyTorch loop, torch", "sae_lens": "SAELens"}
    rows = [[what, "and seconds of the step"]]
    for project, text in drop_in().items():
        name = f"[{names.get(project, project)} {found['projects'][project]['version']}](docs/drop-in/{project}.md)"
        rows.append([name, text])
    return markdown(rows)


def drop_in_text(project: str) -> str:
    """What stands on the project's own page."""
    found = read("drop_in")
    machine, version = found["machine"], found["projects"][project]["version"]
    return (
        f"A step is so many times faster (in seconds): {drop_in()[project]}. Both sides in one process, interleaved, medians; "
        f"{shape_text(found['shape'])};\n{machine['cpu']}, {machine['threads']} threads, no GPU; version {version}. "
        "`benchmarks/peers/drop_in.py`"
    )


# other architectures


def architecture_table() -> str:
    """Step times of the recipes of `parity.py`: ours, as a multiple of our TopK's, the peer's own trainer's over ours."""
    paths = sorted(
        (RESULTS / "cpu").glob("parity_time_*.json"), key=lambda path: int(path.stem.split("_")[2])
    )
    timed = [json.loads(path.read_text()) for path in paths]
    names = {"DL": "dictionary_learning", "SP": "sparsify", "SL": "SAELens"}
    shapes = ["B {B}, d_in {d_in}, d_sae {d_sae}".format(**one["shape"]) for one in timed]
    rows = [["A step of other architectures: ours, over our TopK's, the peer's over ours", *shapes]]
    for name in timed[0]["rows"]:
        library, what = name.split(maxsplit=1)
        cells = []
        for one in timed:
            row = one["rows"][name]
            over_topk = next(value for key, value in row.items() if key.startswith("of our"))
            over = row["peer's over ours"]
            cells.append(f"{row['seconds'] * 1e3:.0f} ms, {over_topk:.1f}, {over:.1f} (L0 {row['l0']:.0f})")
        rows.append([f"{names[library]} {what}", *cells])
    return markdown(rows)
