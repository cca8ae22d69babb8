"""Renders the figures of README.md and docs/drop-in/ from benchmarks/results/*.json.

python benchmarks/report.py            rewrite what is between the two markers in each page
python benchmarks/report.py --check    exit 1 if a page does not say what the results say
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
PEERS_OVER_OURS = "peer's over ours"
BEGIN, END = "<!-- figures: python benchmarks/report.py -->", "<!-- end of figures -->"


def trainers_row() -> tuple[str, str, str]:
    """Ours beside the peers' own trainers: FVU and L0, means over the seeds."""
    rows = json.loads((RESULTS / "cpu" / "parity.json").read_text())["rows"]
    off = {name: abs(row["fvu"]["ours / theirs - 1"]) for name, row in rows.items()}
    off_l0 = {name: abs(row["l0"]["ours / theirs - 1"]) for name, row in rows.items()}
    worst, worst_l0 = max(off, key=off.__getitem__), max(off_l0, key=off_l0.__getitem__)
    kept = sum(off[name] <= 0.01 and off_l0[name] <= 0.01 for name in rows)
    return (
        f"{len(rows)} recipes beside the trainers of dictionary_learning, sparsify and SAELens, same rows: FVU and L0 within 1%",
        f"{kept} of {len(rows)}; FVU at most {off[worst]:.1%} off ({worst}), L0 {off_l0[worst_l0]:.1%} ({worst_l0})",
        "`parity_peers.py`, `parity.py`",
    )


def sweep_row() -> tuple[str, str, str]:
    found = json.loads((RESULTS / "sweep_cpu.json").read_text())
    live = found["from a live model"]
    ratio = live["sweep"]["wall_s"] / live["12 runs"]["wall_s"]
    args, widths = found["args"], found["widths"]
    what = f"A sweep of 12 SAEs ({args['tokens']:,} tokens, widths {min(widths)} to {max(widths)}) beside 12 runs, wall time"
    live_tokens = f"{args['live_tokens']:,} tokens"
    measured = f"{found['ratio']['wall_s']:.2f} times, from shards; {ratio:.2f} times from a model that runs meanwhile ({live_tokens})"
    return what, measured, "`sweep_cost.py`"


def architecture_table() -> list[str]:
    """Step times of the recipes of `parity.py`: ours, as a multiple of our TopK's, and the peer's own trainer's over ours."""
    timed = [
        json.loads(path.read_text())
        for path in sorted(
            (RESULTS / "cpu").glob("parity_time_*.json"), key=lambda p: int(p.stem.split("_")[2])
        )
    ]
    names = {"DL": "dictionary_learning", "SP": "sparsify", "SL": "SAELens"}
    shapes = ["B {B}, d_in {d_in}, d_sae {d_sae}".format(**one["shape"]) for one in timed]
    lines = [
        [
            "A step of other architectures (`parity.py --time`): ours, over our TopK's, the peer's over ours",
            *shapes,
        ],
        ["---"] * (1 + len(timed)),
    ]
    for name in timed[0]["rows"]:
        library, what = name.split(maxsplit=1)
        cells = []
        for one in timed:
            row = one["rows"][name]
            over_topk = next(value for key, value in row.items() if key.startswith("of our"))
            cells.append(
                f"{row['seconds'] * 1e3:.0f} ms, {over_topk:.1f}, {row[PEERS_OVER_OURS]:.1f} (L0 {row['l0']:.0f})"
            )
        lines.append([f"{names[library]} {what}", *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def table() -> str:
    demo, parity, step, recipe, interpreted = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("demo", "curve_parity", "step_cpu", "recipe", "interpreter_run")
    )
    model = demo["in_model"]
    rows = [
        (
            "The demo's SAE on held-out tokens: FVU",
            f"{demo['fvu']:.4f} at L0 {demo['l0']:.1f}",
            "`make demo`",
        ),
        (
            "The same inside the language model: loss recovered",
            f"{model['loss_recovered']:.1%} of zero ablation, {model['loss_recovered_mean']:.1%} of mean ablation",
            "`make demo`",
        ),
        *(
            row
            for name in ("plain", "reference")
            if name in parity
            for row in parity_rows(name, parity[name])
        ),
    ]
    for who in dict.fromkeys(run["who"] for run in recipe["runs"]):
        runs = [run for run in recipe["runs"] if run["who"] == who]
        best = min((run for run in runs if run["seed"] == 0), key=lambda run: run["fvu"])
        same = [
            run["fvu"] for run in runs if (run["lr"], run["batch_size"]) == (best["lr"], best["batch_size"])
        ]
        setting = f"{best['fvu']:.4f} (lr {best['lr']:g}, batch {best['batch_size']})"
        if len(same) > 1:
            setting += f"; over {len(same)} seeds {min(same):.4f} to {max(same):.4f}"
        rows.append(
            (f"Held-out FVU after {recipe['tokens']:,} tokens, best setting of {who}", setting, "`recipe.py`")
        )
    rows += [trainers_row(), sweep_row()]
    rows.append(
        (
            "Triton kernels in the interpreter beside the reference, {steps} steps on real activations: largest "
            "relative difference of the loss (and the one-ulp control's)".format(**interpreted["shape"]),
            f"{interpreted['loss_distance_all_steps']:.0e} ({interpreted['control_all_steps']:.0e})",
            "`interpreter_run.py`",
        )
    )
    machine = step["machine"]
    lines = ["| what | measured | command |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    others = json.loads((RESULTS / "sweep_cpu.json").read_text())["machine"]
    note = (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, no GPU; torch {step['versions']['torch']}, fp32. Ratios are "
        f"medians within interleaved rounds of one process, with the 10th and 90th percentile. The last two tables, the 12 recipes and "
        f"the sweep: {others['cpu']}, {others['threads']} threads. Scripts are in `benchmarks/`, their results in `benchmarks/results/`."
    )
    tables = [lines, step_table(step), architecture_table(), drop_in_table()]
    return "\n".join([line for rows in tables for line in [*rows, ""]] + [note])


def parity_rows(name: str, case: dict) -> list[tuple[str, str, str]]:
    """The two answers of curve_parity.py."""
    other = {"plain": "plain autograd + `torch.optim.Adam`", "reference": "the specification"}[name]
    forced, alone = case["from the same state"], case["left alone"]
    factor = max(forced["rms error of saefast over that of the other"].values())
    apart, fvu = dict(alone["apart"]), alone["heldout_fvu"]
    rows = {
        "ours": [apart.pop("saefast")],
        f"{len(apart) - 1} controls": [v for k, v in apart.items() if k != name],
    }
    texts = []
    for who, curves in rows.items():
        firsts = sorted(curve["first step apart"] or alone["steps"] + 1 for curve in curves)
        largest = sorted(list(curve["largest relative difference"].values())[-1] for curve in curves)
        if curves:
            texts.append(
                f"{who}: from step {' to '.join(map(str, dict.fromkeys((firsts[0], firsts[-1]))))}, "
                f"at most {' to '.join(dict.fromkeys((f'{largest[0]:.0e}', f'{largest[-1]:.0e}')))}"
            )
    states = f"{forced['states']} states ({forced['of them with AuxK']} with AuxK)"
    mine, theirs = forced["saefast"], forced[name]
    error, choices = "loss, largest relative error", "choices unlike fp64's: top-k, AuxK"
    what = f"A step beside {other}, from the same {states}, against fp64 with the same choices"
    found = (
        f"loss off by at most {mine[error]:.0e}, the other's {theirs[error]:.0e}; rms error of what it changes at most "
        f"{factor:.2f} times the other's; choices within rounding but unlike fp64's: {sum(mine[choices])}, the other's "
        f"{sum(theirs[choices])}"
    )
    left = f"Left alone for {alone['steps']} steps beside {other}: where the loss is more than 1e-6 off"
    end = f"held-out FVU {fvu['saefast']:.4f}, the other's {fvu[name]:.4f}"
    command = "`curve_parity.py`"
    return [(what, found, command), (left, "; ".join([*texts, end]), command)]


def step_table(step: dict) -> list[str]:
    """Times of the others over ours, with glibc's allocator and with one that keeps its buffers."""
    cases = [step[name] for name in ("demo", "residual", "mlp")]
    names = {
        "plain": "plain dense PyTorch", "stock": "the best stock PyTorch ops",
        "encoder product": "the encoder's product in fp32 alone",
    }  # fmt: skip
    both = [(case["contenders"]["native"], case["keeping allocator"]["native"]) for case in cases]

    def cell(ours: dict, other: str) -> str:
        found = ours.get(f"time of {other} / this")
        return "{:.2f} ({:.2f} to {:.2f})".format(*found) if found else "not installed"

    others = [name for name in cases[0]["contenders"] if name not in ("native", "reference")]
    shapes = ["B {B}, d_in {d_in}, d_sae {d_sae}, k {k}".format(**case["shape"]) for case in cases]
    rows = [
        ["A training step (`step_ratios.py`): ours; with an allocator that keeps its buffers", *shapes],
        ["---"] * (1 + len(cases)),
        ["saefast on the CPU", *(f"{one['seconds']:.3f} s; {kept['seconds']:.3f} s" for one, kept in both)],
        *(
            [f"{names.get(other, other)}, times as long", *("; ".join(cell(ours, other) for ours in pair) for pair in both)]
            for other in others
        ),
        ["peak memory of ours", *(f"{one['peak MiB']:.0f} MiB" for one, _ in both)],
    ]  # fmt: skip
    return [f"| {' | '.join(row)} |" for row in rows]


def drop_in() -> dict[str, str]:
    """Of each project: how many times faster its trainer's step is with our line in it."""
    texts = {}
    for project, row in json.loads((RESULTS / "cpu" / "drop_in.json").read_text())["projects"].items():
        kinds = [
            f"{kind} {case['stock over ours'][0]:.1f} ({case['seconds']:.2f} s)"
            for kind, case in row.items()
            if kind != "version"
        ]
        texts[project] = ", ".join(kinds)
    return texts


def drop_in_table() -> list[str]:
    found = json.loads((RESULTS / "cpu" / "drop_in.json").read_text())
    shape = "B {B}, d_in {d_in}, d_sae {d_sae}, k {k}".format(**found["shape"])
    what = f"A step of another project's trainer with one line of its user's changed (`drop_in.py`; {shape}): times as fast"
    names = {"pytorch": "plain PyTorch loop, torch", "sae_lens": "SAELens"}
    rows = [
        f"| [{names.get(project, project)} {found['projects'][project]['version']}](docs/drop-in/{project}.md) | {text} |"
        for project, text in drop_in().items()
    ]
    return [f"| {what} | and seconds of the step |", "| --- | --- |", *rows]


def pages() -> dict[Path, str]:
    """Each page that has figures, and what is to stand between its markers."""
    found = json.loads((RESULTS / "cpu" / "drop_in.json").read_text())
    shape, machine = "B {B}, d_in {d_in}, d_sae {d_sae}, k {k}".format(**found["shape"]), found["machine"]
    texts = {README: table()}
    for project, text in drop_in().items():
        version = found["projects"][project]["version"]
        texts[ROOT / "docs" / "drop-in" / f"{project}.md"] = (
            f"A step is so many times faster (in seconds): {text}. Both sides in one process, interleaved, medians; {shape};\n"
            f"{machine['cpu']}, {machine['threads']} threads, no GPU; version {version}. `benchmarks/drop_in.py`"
        )
    return texts


def filled(page: Path, figures: str) -> str:
    head, rest = page.read_text().split(BEGIN)
    return f"{head}{BEGIN}\n{figures}\n{END}{rest.split(END)[1]}"


def main() -> None:
    for page, figures in pages().items():
        wanted = filled(page, figures)
        if "--check" not in sys.argv:
            page.write_text(wanted)
        elif wanted != page.read_text():
            sys.exit(f"{page} does not say what benchmarks/results/ says: run report.py")


if __name__ == "__main__":
    main()
