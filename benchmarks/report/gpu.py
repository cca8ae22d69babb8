"""Tables of what `make gpu` measured: benchmarks/results/<gpu>/gpu.json, of each GPU.

python -m benchmarks.report.gpu runs/gpu/nvidia-h200/gpu.json    print them, of any such file
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report.peers import RESULTS, markdown
from benchmarks.shapes import SHAPES

Report = dict[str, Any]
CONTENDERS = {
    "triton": "saefast",
    "eager": "saefast without a CUDA graph",
    "plain": "plain PyTorch, bf16 autocast, fused Adam",
    "compiled": "the same, torch.compile",
    "sparsify": "sparsify, Adam",
    "sparsify-signum": "sparsify, signum",
    "openai": "openai/sparse_autoencoder",
    "dictionary_learning": "dictionary_learning",
    "sae_lens": "SAELens",
}
STAGES = ("centre", "encode", "select", "decode", "group", "update")


def reports() -> list[Report]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/gpu.json"))]


def items(report: Report, part: str) -> dict[str, Report]:
    """The results of a part, without what is said of all of it."""
    return {name: one for name, one in report["parts"].get(part, {}).items() if isinstance(one, dict)}


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
    return found


def step_table(report: Report) -> str:
    found = steps(report)
    cases = [case for case in SHAPES if any(one == case for _, one in found)]
    head = [f"A training step on {report['device']} (`make gpu`), ms"]
    head += [
        f"{case}: B {shape.B}, d_in {shape.D}, d_sae {shape.F}, k {shape.K}"
        for case, shape in SHAPES.items()
        if case in cases
    ]
    rows = [head]
    for contender, label in CONTENDERS.items():
        cells = []
        for case in cases:
            figures, ours = found.get((contender, case)), found.get(("triton", case))
            if figures is None:
                cells.append("")
                continue
            text = f"{figures['median_ms']:.3g} ms, {figures['peak_gb']:.1f} GB"
            if contender == "triton" and "share_of_floor" in figures:
                text += f", {figures['share_of_floor']:.0%} of the floor"
            elif ours and contender != "triton":
                text += f", {figures['median_ms'] / ours['median_ms']:.1f} times"
            cells.append(text)
        if any(cells):
            rows.append([label, *cells])
    return markdown(rows) if len(rows) > 1 else "No step was measured."


def stage_table(report: Report) -> str:
    rows = [["Op, ms (floor)", *items(report, "stages")]]
    for stage in STAGES:
        cells = [one.get(stage) for one in items(report, "stages").values()]
        rows.append([stage, *(f"{c['median_ms']:.3g} ({c['floor_ms']:.3g})" if c else "" for c in cells)])
    return markdown(rows)


def profile_table(report: Report) -> str:
    rows = [["Case", "step", "kernels run", "gaps", "launches", "longest kernels, us"]]
    for case, one in items(report, "profile").items():
        if "busy_ms" in one:
            longest = "; ".join(f"{k['name'][:40]} {k['us']:.0f}" for k in one["kernels"][:6])
            rows.append(
                [case, f"{one['step_ms']:.3g} ms", f"{one['busy_ms']:.3g} ms", f"{one['gaps_ms']:.3g} ms",
                 f"{one['launches']:.0f}", longest]
            )  # fmt: skip
    return markdown(rows)


def prediction_table(report: Report) -> str:
    rows = [["Measurement", "predicted", "measured", "within"]]
    for name, one in items(report, "predictions").items():
        if one.get("measured") is not None:
            low, high = one["prediction"]
            rows.append(
                [name, f"{low:.3g} to {high:.3g} {one['unit']}", f"{one['measured']:.3g}", str(one["within"])]
            )
    return markdown(rows)


def tune_table(report: Report) -> str:
    rows = [["Op and case", "in use", "best", "saved", "which"]]
    for name, one in items(report, "tune").items():
        if "best_ms" in one:
            rows.append(
                [
                    name,
                    f"{one['default_ms']:.3g} ms",
                    f"{one['best_ms']:.3g} ms",
                    f"{one['saved']:.1%}",
                    one["said"],
                ]
            )
    return markdown(rows)


def format_table(report: Report) -> str:
    rows = [["Formats (weights-moments)", "ms", "GB", "tokens/s"]]
    for name, one in items(report, "formats").items():
        if "median_ms" in one:
            label = f"largest: d_sae {one['d_sae']:,}, d_in 4096" if "d_sae" in one else name
            rows.append(
                [label, f"{one['median_ms']:.3g}", f"{one['peak_gb']:.1f}", f"{one['tokens_per_s']:,}"]
            )
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
    for one in items(report, "curve").values():
        if "triton" in one:
            lines.append(
                f"- {one['steps']} steps on {one['data']}: held-out FVU {one['triton']['heldout_fvu']:.4f}, fp32 PyTorch"
                f" {one['reference']['heldout_fvu']:.4f}, that with W_enc one ulp larger {one['control']['heldout_fvu']:.4f}"
            )
    for name, one in items(report, "stream").items():
        rates = [
            f"{key} {value['tokens_per_s']:,} tokens/s, waiting {value['waiting_share']:.1%}"
            for key, value in one.items()
            if isinstance(value, dict) and "waiting_share" in value
        ]
        lines += [f"- stream, {name}: {'; '.join(rates)}"] if rates else []
    for part in report["parts"]:
        for name, one in items(report, part).items():
            lines += [f"- **{part}, {name}**: {one['error'][:160]}"] if "error" in one else []
    return "\n".join(lines)


def section(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    commits = sorted({part["commit"] for part in report["parts"].values() if "commit" in part})
    titles = {
        "Steps": step_table, "Ops of a step, L2 cold": stage_table, "Kernels of a step, as the profiler sees them": profile_table,
        "Predictions": prediction_table, "Launch configurations": tune_table, "Formats": format_table, "Checks": other_lines,
    }  # fmt: skip
    found = [f"## On {report['device']}\n\n{versions}; commit {', '.join(commits)}."]
    return "\n\n".join(found + [f"### {title}\n\n{table(report)}" for title, table in titles.items()])


if __name__ == "__main__":
    print(section(json.loads(Path(sys.argv[1]).read_text())))
