"""Renders every figure of README.md and docs/ from benchmarks/results/: tables and pictures.

python -m benchmarks.report            rewrite what is between the two markers in each page, and draw the pictures
python -m benchmarks.report --check    exit 1 if a page does not say what the results say
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import tables as gpu
from benchmarks.report import interp, tables
from benchmarks.report.instructions import instructions
from benchmarks.report.tables import RESULTS, Result, Rows, Spread, read, shape_text, spread, table

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README, BENCHMARKS = ROOT / "README.md", DOCS / "benchmarks.md"
BEGIN, END = "<!-- figures: python -m benchmarks.report -->", "<!-- end of figures -->"
PICTURES = ("quality", "step")  # the results that have one: docs/bench_<result>.png
OURS, PEERS = "#c1121f", "#1f6fb2"
COLOURS = {
    "saefast": OURS,
    "plain": "#222222",
    "best": "#222222",
    "sparsify": "#2a9d8f",
    "dictionary_learning": "#6a4c93",
    "SAELens": PEERS,
    "llamascopium": "#b5651d",
    "overcomplete": "#6b8e23",
}
DASHED = ("best PyTorch ops", "sparsify signum", "SAELens sparse", "saefast, free decoder")


# Pages


def readme() -> str:
    found = read("quality")
    machine = found["machine"]
    about = (
        f"Seconds of training until everybody has the same FVU on held-out activations ({shape_text(found['shape'])}; "
        f"{machine['device']}, {machine['threads']} threads, no GPU):"
    )
    return "\n\n".join(
        [about, tables.target_table(found, best_only=True), *map(gpu.step_table, gpu.reports())]
    )


def benchmarks() -> str:
    timed = sorted(
        (RESULTS / "cpu").glob("parity_time_*.json"), key=lambda path: int(path.stem.split("_")[2])
    )
    sections = {
        "Seconds to equal quality": (tables.quality, ["quality"]),
        "A step": (tables.step, ["step"]),
        "More and fewer instructions": (instructions, ["instructions"]),
        "In another project's trainer": (tables.drop_in, ["drop_in"]),
        "Left out of these tables": (tables.left_out, ["quality", "step", "largest"]),
        "Ops": (tables.ops, ["ops"]),
        "Scaling": (tables.scaling, ["scaling"]),
        "The largest dictionary": (tables.largest, ["largest"]),
        "End to end": (tables.pipeline, ["pipeline"]),
        "Recording every latent": (interp.records, ["records"]),
        "SAEDashboard beside it": (interp.sae_dashboard, ["sae_dashboard"]),
        "Other architectures": (tables.architectures, [path.stem for path in timed]),
        "Numbers": (numbers, ["demo", "curve_parity", "recipe", "parity", "sweep", "interpreter_run"]),
    }
    parts = []
    for title, (render, names) in sections.items():
        missing = [name for name in names if not (RESULTS / "cpu" / f"{name}.json").exists()]
        parts += [f"## {title}", *(["Not measured."] if missing or not names else render(*map(read, names)))]
    return "\n\n".join([*parts, *map(gpu.section, gpu.reports())])


def stream(found: Result) -> str:
    """Rates of the streaming buffer and of what it is compared with, then ratios of them."""
    parts = []
    for key, head in (("GB/s", "GB/s of rows"), ("ratios within a round", "ratio within a round")):
        measured = found[f"{key}: median, min, max"]
        rows: Rows = [["", head], *([name, spread(values, "{:.2f}")] for name, values in measured.items())]
        parts.append(table(rows, spreads="least and most"))
    return "\n\n".join(parts)


def pages() -> dict[Path, str]:
    """Each page that has figures, and what is to stand between its markers."""
    found = read("drop_in")
    projects = {
        DOCS / "drop-in" / f"{project}.md": "\n\n".join(tables.drop_in(found, project))
        for project in found["projects"]
    }
    return {
        README: readme(),
        BENCHMARKS: benchmarks(),
        DOCS / "streaming.md": stream(read("stream")),
    } | projects


def filled(page: Path, figures: str) -> str:
    head, rest = page.read_text().split(BEGIN)
    return f"{head}{BEGIN}\n{figures}\n{END}{rest.split(END)[1]}"


# Numbers that are not times: whether ours are right, and what quality they reach


def numbers(
    demo: Result, curves: Result, recipe: Result, parity: Result, sweep: Result, interpreted: Result
) -> list[str]:
    model, live, args = demo["in_model"], sweep["from a live model"], sweep["args"]
    rows: Rows = [
        ["what", "saefast", "beside it", "which is", "command"],
        ["The demo's SAE on held-out tokens: FVU", f"{demo['fvu']:.4f}", "", "", "`make demo`"],
        ["The same: L0", f"{demo['l0']:.1f}", "", "", "`make demo`"],
    ]
    for key, ablation in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
        what = f"The same inside the language model: loss recovered, of {ablation} ablation"
        rows.append([what, f"{model[key]:.1%}", "", "", "`make demo`"])
    for name, other in (("plain", "plain autograd, torch's Adam"), ("reference", "the specification")):
        rows += parity_rows(curves[name], name, other) if name in curves else []
    mine, *others = (
        recipe_cell(recipe["runs"], who) for who in ("saefast Adam", "sparsify Adam", "sparsify signum")
    )
    for fvu, setting in others:
        what = f"Held-out FVU after {recipe['tokens']:,} tokens, best setting tried ({mine[1]})"
        rows.append([what, mine[0], fvu, setting, "`recipe.py` at 7be348a"])
    off = [[abs(row[key]["ours / theirs - 1"]) for key in ("fvu", "l0")] for row in parity["rows"].values()]
    what, command = "Recipes with FVU and L0 within 1% of the peer's", "`parity.py` at 7be348a"
    rows.append([what, str(sum(max(pair) <= 0.01 for pair in off)), str(len(off)), "all recipes", command])
    for what, key in (("FVU", "fvu"), ("L0", "l0")):
        off = {name: abs(row[key]["ours / theirs - 1"]) for name, row in parity["rows"].items()}
        worst = max(off, key=off.__getitem__)
        about = f"The same recipes, same rows: largest difference in {what}, that of {worst}"
        rows.append([about, f"{off[worst]:.1%}", "", "the peer's own trainer", command])
    about = "A sweep of 12 SAEs, {}: wall time over that of 12 runs"
    over_live = live["sweep"]["wall_s"] / live["12 runs"]["wall_s"]
    for feed, tokens, ratio in (
        ("shards", args["tokens"], sweep["ratio"]["wall_s"]),
        ("a model that runs meanwhile", args["live_tokens"], over_live),
    ):
        rows.append(
            [
                about.format(f"{tokens:,} tokens from {feed}"),
                f"{ratio:.2f}",
                "1",
                "12 runs",
                "`sweep_cost.py` at 7be348a",
            ]
        )
    about = "Triton's kernels in the interpreter, {steps} steps: largest relative difference from the reference's loss"
    off = [f"{interpreted[key]:.0e}" for key in ("loss_distance_all_steps", "control_all_steps")]
    rows.append(
        [about.format(**interpreted["shape"]), *off, "the reference, one ulp changed", "`interpreter_run.py`"]
    )
    return [table(rows, spreads="least and most over the seeds")]


def recipe_cell(runs: list[Result], who: str) -> tuple[str | Spread, str]:
    """The FVU of the best learning rate and batch size, and what they are."""
    best = min((run for run in runs if run["who"] == who and run["seed"] == 0), key=lambda run: run["fvu"])
    setting = ("who", "lr", "batch_size")
    same = [run["fvu"] for run in runs if all(run[key] == best[key] for key in setting)]
    said = f"{who}, lr {best['lr']:g}, batch {best['batch_size']}"
    number = f"{best['fvu']:.4f}"
    return (Spread(number, f"{min(same):.4f} to {max(same):.4f}") if len(same) > 1 else number), said


def parity_rows(case: Result, name: str, other: str) -> Rows:
    """The two answers of `curve_parity.py` at 7be348a."""
    forced, alone, command = case["from the same state"], case["left alone"], "`curve_parity.py` at 7be348a"
    mine, theirs = forced["saefast"], forced[name]
    start = f"A step from the same {forced['states']} states, {forced['of them with AuxK']} with AuxK"
    error, choices = "loss, largest relative error", "choices unlike fp64's: top-k, AuxK"
    factor = max(forced["rms error of saefast over that of the other"].values())
    rows = [
        [
            f"{start}: relative error of the loss against fp64",
            f"{mine[error]:.0e}",
            f"{theirs[error]:.0e}",
            other,
        ],
        [
            "The same: choices within rounding, unlike fp64's",
            *(str(sum(x[choices])) for x in (mine, theirs)),
            other,
        ],
        ["The same: rms error of what it changes, as a multiple", f"{factor:.2f}", "1", other],
    ]
    apart, fvu = dict(alone["apart"]), alone["heldout_fvu"]
    ours, _ = apart.pop("saefast"), apart.pop(name)
    never = alone["steps"] + 1
    firsts = [curve["first step apart"] or never for curve in (ours, *apart.values())]
    largest = [list(curve["largest relative difference"].values())[-1] for curve in (ours, *apart.values())]
    left, controls = (
        f"Left alone for {alone['steps']} steps",
        f"of {len(apart)} controls, one rounding error apart",
    )
    for which in (min, max) if apart else ():
        first, far = which(firsts[1:]), which(largest[1:])
        word = {min: "the smallest", max: "the largest"}[which]
        rows += [
            [f"{left}: first step with a loss 1e-6 off", str(firsts[0]), str(first), f"{word} {controls}"],
            [
                f"{left}: largest relative difference of the loss",
                f"{largest[0]:.0e}",
                f"{far:.0e}",
                f"{word} {controls}",
            ],
        ]
    rows.append([f"{left}: FVU on held-out rows", f"{fvu['saefast']:.4f}", f"{fvu[name]:.4f}", other])
    return [[*row, command] for row in rows]


# Pictures: opaque white, so that they can be read on light and dark pages


def fingerprint(name: str) -> str:
    """Is kept in the picture of a result, so that a test knows whether the picture is of the result as it is."""
    return hashlib.sha256((RESULTS / "cpu" / f"{name}.json").read_bytes()).hexdigest()


def draw() -> None:
    from matplotlib.figure import Figure

    for name, plot, height in (("quality", quality_picture, 5.6), ("step", step_picture, 4.4)):
        figure = Figure(figsize=(10, height), layout="constrained")
        plot(figure, read(name))
        about = {"Software": None, "Description": fingerprint(name)}
        figure.savefig(DOCS / f"bench_{name}.png", dpi=110, facecolor="white", metadata=about)


def quality_picture(figure: Any, found: Result) -> None:
    """Held-out FVU over seconds of training, a line for each contender."""
    curves, shape, axes = found["[seconds, tokens, FVU]"], found["shape"], figure.subplots()
    for name, curve in sorted(curves.items(), key=lambda item: item[1][-1][0]):  # as long as they train
        seconds, _, fvu = zip(*curve, strict=True)
        look = {
            "color": COLOURS.get(name.replace(",", "").split()[0], "#7f7f7f"),
            "marker": ".",
            "markersize": 4,
        }
        look["linewidth"] = 2.2 if name.startswith("saefast") else 1.4
        style = ":" if name == found["long"] else "--" if name in DASHED else "-"
        axes.plot(seconds, fvu, style, label=name, **look)
    best = min(curve[-1][2] for curve in curves.values())
    axes.set(xscale="log", yscale="log", ylim=(best * 0.93, 0.6))
    axes.set(xlabel="seconds of training", ylabel="FVU on held-out activations")
    axes.set_yticks([tick for tick in (0.12, 0.15, 0.2, 0.3, 0.4, 0.6) if tick >= best * 0.93])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    rows = f"The same {shape['tokens']:,} activations (SmolLM2-135M, attention sinks dropped)"
    axes.set_title(f"{rows}, {shape['d_sae']} latents, k = {shape['k']}", fontsize=10)
    axes.grid(alpha=0.25, which="both")


def step_picture(figure: Any, found: Result) -> None:
    """How many times as long as ours a step takes, with both settings of glibc's allocator."""
    cases = [found["shapes"][name] for name in ("demo", "residual", "mlp") if name in found["shapes"]]
    first = {name: row["times ours"][0] for name, row in cases[0]["glibc"]["contenders"].items()}
    order = sorted(
        (name for name in first if not name.startswith("the encoder")), key=lambda name: -first[name]
    )
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=True):
        for allocator, said, offset in (
            ("glibc", "as it is", 0.2),
            ("glibc, keeping", "keeping its buffers", -0.2),
        ):
            medians = [case[allocator]["contenders"][name]["times ours"][0] for name in order]
            places = [i + offset for i in range(len(order))]
            colours = [OURS if name == "saefast" else PEERS for name in order]
            alpha = 1.0 if offset > 0 else 0.5
            bars = axes.barh(places, medians, 0.36, color=colours, alpha=alpha, label=f"glibc {said}")
            axes.bar_label(bars, fmt=" {:.1f}", fontsize=7)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_title(shape_text(case["shape"]), fontsize=9)
        axes.set_xlabel("time of a step, times ours", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1)
    panels[-1].legend(fontsize=8, loc="upper right", frameon=False)


def main() -> None:
    for page, figures in pages().items():
        wanted = filled(page, figures)
        if "--check" not in sys.argv:
            page.write_text(wanted)
        elif wanted != page.read_text():
            sys.exit(f"{page} does not say what benchmarks/results/ says: run python -m benchmarks.report")
    if "--check" not in sys.argv:
        draw()


if __name__ == "__main__":
    main()
