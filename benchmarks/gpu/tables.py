"""Tables of what `make gpu` measured: benchmarks/results/<gpu>/gpu.json, of each GPU. `python -m benchmarks.report` puts them on
its pages.

python -m benchmarks.gpu.tables runs/gpu/nvidia-h200/gpu.json    print those of any such file
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report.tables import RESULTS, markdown
from benchmarks.shapes import SHAPES

Report = dict[str, Any]
CONTENDERS = {
    "triton": "saefast",
    "split": "saefast, weights in two halves (split)",
    "heavy-tailed": "saefast, some latents in every token",
    "eager": "saefast without a CUDA graph",
    "plain": "plain PyTorch, bf16 autocast, fused Adam",
    "compiled": "the same, torch.compile",
    "sparsify": "sparsify, Adam",
    "sparsify-signum": "sparsify, signum",
    "openai": "openai/sparse_autoencoder",
    "bionemo": "NVIDIA BioNeMo",
    "dictionary_learning": "dictionary_learning",
    "sae_lens": "SAELens",
}
STAGES = ("centre", "encode", "encode after update", "select", "decode", "group", "update")
COUNTERS = {
    "us": "us",
    "dram_gb": "GB",
    "dram_percent": "DRAM, %",
    "sm_percent": "SM, %",
    "registers": "registers",
}
COUNTERS |= {"warps_percent": "warps, %", "l2_hit_percent": "L2 hits, %"}


def reports() -> list[Report]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/gpu.json"))]


def items(report: Report, part: str, needs: str | None = None) -> dict[str, Report]:
    """The results of a part that have the field `needs`, without what is said of all of the part."""
    found = {name: one for name, one in report["parts"].get(part, {}).items() if isinstance(one, dict)}
    return {name: one for name, one in found.items() if needs is None or one.get(needs) is not None}


def steps(report: Report) -> dict[tuple[str, str], Report]:
    """(contender, case) -> its figures; those that disagreed with the rest are left out."""
    found = {}
    for part in ("step", "compiled", "peers"):
        for name, one in items(report, part).items():
            first, second = name.split()
            case, contender = (second, first) if part == "peers" else (first, second)
            figures = one.get(contender, one)
            if "median_ms" in figures and "error" not in one:
                found[contender, case] = figures
    for (_, case), figures in found.items():
        if ours := found.get(("triton", case)):
            figures["times_ours"] = figures["median_ms"] / ours["median_ms"]
    return found


def step_table(report: Report, figure: str = "median_ms", title: str = "ms", form: str = "{:.3g}") -> str:
    """One figure of all contenders and cases."""
    found = {key: one[figure] for key, one in steps(report).items() if figure in one}
    cases = [case for case in SHAPES if any(one == case for _, one in found)]
    sizes = ("{}: B {}, d_in {}, d_sae {}, k {}".format(case, *SHAPES[case]) for case in cases)
    rows = [[f"A training step on {report['device']} (`make gpu`): {title}", *sizes]]
    for contender, label in CONTENDERS.items():
        numbers = [found.get((contender, case)) for case in cases]
        if any(number is not None for number in numbers):
            rows.append([label, *("" if number is None else form.format(number) for number in numbers)])
    return markdown(rows) if len(rows) > 1 else "No step was measured."


def step_tables(report: Report) -> str:
    figures = {
        "median_ms": ("ms", "{:.3g}"),
        "times_ours": ("times as long as saefast", "{:.1f}"),
        "peak_gb": ("peak GB", "{:.1f}"),
        "share_of_floor": ("share of the floor", "{:.0%}"),
    }
    return "\n\n".join(step_table(report, figure, *how) for figure, how in figures.items())


def stage_table(report: Report) -> str:
    """Each op at each shape; where the code is heavy-tailed, and the encoder after an update, without a floor."""
    stages = items(report, "stages")
    columns = [(name, key) for name, one in stages.items() for key in ("median_ms", "floor_ms")]
    measured = {name: [op for op in one.values() if isinstance(op, dict)] for name, one in stages.items()}
    columns = [(name, key) for name, key in columns if any(key in op for op in measured[name])]
    rows = [["op", *(f"{name}, {'floor, ' * (key == 'floor_ms')}ms" for name, key in columns)]]
    for stage in STAGES:
        found = [stages[name].get(stage, {}).get(key) for name, key in columns]
        rows.append([stage, *("" if number is None else f"{number:.3g}" for number in found)])
    return markdown(rows)


def published_table(report: Report) -> str:
    """Our steps beside the rates that others state: other hardware, another method, not measured by us."""
    rows = [
        ["shape", "saefast, rows/s", "ms", "goal, ms", "published, rows/s", "on", "how", "source", "times"]
    ]
    for name, one in items(report, "step", "triton").items():
        if published := one["triton"].get("published"):
            ours = f"{one['triton']['tokens_per_s']:,}", f"{one['triton']['median_ms']:.3g}"
            theirs = [published[key] for key in ("hardware", "method", "source")]
            rate, goal = f"{published['rows_per_s']:,}", f"{published['goal_ms']:g}"
            rows.append([name.split()[0], *ours, goal, rate, *theirs, f"{published['times_published']:.1f}"])
    return markdown(rows) if len(rows) > 1 else "None was measured."


def counter_table(report: Report) -> str:
    rows = [["case", "kernel", *COUNTERS.values()]]
    for case, one in items(report, "counters", "kernels").items():
        for kernel in one["kernels"]:
            numbers = (kernel.get(key) for key in COUNTERS)
            rows.append([case, kernel["name"][:40], *("" if n is None else f"{n:.3g}" for n in numbers)])
    return markdown(rows) if len(rows) > 1 else "Nothing was counted."


def profile_tables(report: Report) -> str:
    rows = [["case", "step, ms", "kernels run, ms", "gaps, ms", "launches"]]
    longest = [["case", "its longest kernels", "us"]]
    for case, one in items(report, "profile", "busy_ms").items():
        times = [f"{one[key]:.3g}" for key in ("step_ms", "busy_ms", "gaps_ms")]
        rows.append([case, *times, f"{one['launches']:.0f}"])
        longest += [[case, kernel["name"][:40], f"{kernel['us']:.0f}"] for kernel in one["kernels"][:6]]
    return f"{markdown(rows)}\n\n{markdown(longest)}"


def prediction_table(report: Report) -> str:
    rows = [["measurement", "predicted, from", "to", "measured", "unit", "within"]]
    for name, one in items(report, "predictions", "measured").items():
        numbers = [f"{number:.3g}" for number in (*one["prediction"], one["measured"])]
        rows.append([name, *numbers, one["unit"], "yes" if one["within"] else "no"])
    return markdown(rows)


def tune_table(report: Report) -> str:
    rows = [["op and case", "in use, ms", "best, ms", "saved", "which"]]
    for name, one in items(report, "tune", "best_ms").items():
        times = [f"{one[key]:.3g}" for key in ("default_ms", "best_ms")]
        rows.append([name, *times, f"{one['saved']:.1%}", one["said"]])
    for name, one in items(report, "update in CUDA", "triton").items():
        times = {which: found["median_ms"] for which, found in one.items() if isinstance(found, dict)}
        triton = times.pop("triton")
        best = min(times, key=lambda which: times[which])
        cells = f"{triton:.3g}", f"{times[best]:.3g}", f"{1 - times[best] / triton:.1%}", f"CUDA, {best}"
        rows.append([f"update {name}", *cells])
    return markdown(rows)


def format_table(report: Report) -> str:
    rows = [["formats (weights-moments)", "ms", "GB", "tokens/s"]]
    for name, one in items(report, "formats", "median_ms").items():
        label = f"{name}: d_sae {one['d_sae']:,}, d_in 4096" if "d_sae" in one else name
        rows.append([label, f"{one['median_ms']:.3g}", f"{one['peak_gb']:.1f}", f"{one['tokens_per_s']:,}"])
    return markdown(rows)


def other_lines(report: Report) -> str:
    """Correctness, the curve, the stream, and every error."""
    lines = []
    for part in ("engine", "kernels", "stream", "sanitizer"):
        for name, one in items(report, part).items():
            if part == "stream" and name != "tests":
                continue
            said = one["said"] if isinstance(one.get("said"), str) else "passed"
            lines.append(f"- {part}, {name}: {'failed' if 'error' in one else said}")
    for one in items(report, "curve", "triton").values():
        ours, plain, control = (one[who]["heldout_fvu"] for who in ("triton", "reference", "control"))
        lines.append(
            f"- {one['steps']} steps on {one['data']}: held-out FVU {ours:.4f}, with fp32 PyTorch {plain:.4f}, with "
            f"fp32 PyTorch and W_enc one ulp larger {control:.4f}"
        )
    for name, one in items(report, "stream").items():
        rates = [
            f"{key} {value['tokens_per_s']:,} tokens/s, waiting {value['waiting_share']:.1%}"
            for key, value in one.items()
            if isinstance(value, dict) and "waiting_share" in value
        ]
        lines += [f"- stream, {name}: {'; '.join(rates)}"] if rates else []
    for part in report["parts"]:
        for name, one in items(report, part, "error").items():
            lines.append(f"- **{part}, {name}**: {one['error'][:160]}")
    return "\n".join(lines)


def section(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    commits = sorted({part["commit"] for part in report["parts"].values() if "commit" in part})
    parts = {
        "Steps": step_tables,
        "Beside published rates": published_table,
        "Ops of a step, L2 cold": stage_table,
        "Kernels of a step, as the profiler sees them": profile_tables,
        "Counters of the largest kernels (Nsight Compute)": counter_table,
        "Predictions": prediction_table,
        "Launch configurations": tune_table,
        "Formats": format_table,
        "Checks": other_lines,
    }
    found = [f"## On {report['device']}\n\n{versions}; commit {', '.join(commits)}."]
    return "\n\n".join(found + [f"### {title}\n\n{render(report)}" for title, render in parts.items()])


if __name__ == "__main__":
    print(section(json.loads(Path(sys.argv[1]).read_text())))
