"""What `make gpu` runs: is it right on this GPU, and how fast? One JSON file per GPU model.

    python -m benchmarks.gpu                    write benchmarks/results/<gpu>/gpu.json, however long it takes
    python -m benchmarks.gpu --only step peers  these parts only
    python -m benchmarks.gpu --items "A *"      the items with such a name only, here those of case A
    python -m benchmarks.gpu --plan first       what a first call on a lent machine is for, within its time: see plans.py
    python -m benchmarks.gpu --fresh            the same, doing again what that file already holds for these sources
    python -m benchmarks.gpu --dry-run          what there is to run, and how long a plan will take; runs nothing
    python -m benchmarks.gpu --rehearse         the same code on the CPU at toy sizes, into a temporary folder

A part is a list of items. Each result is saved when it is there; what is most worth knowing comes first, and the next run
goes on with what is missing and then with what failed. Nothing needs to be installed but torch, triton, pytest and the
dependencies of saefast (see checkout.py). A time is reported beside a comparison with higher precision or with the
baseline's results, and as an error where that fails.

Results of other sources of the package, or of another version of the part, are done again. A checkout without its
history gets the commit from the environment: SAEFAST_COMMIT. flight.sh runs all this on a lent machine.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

if __name__ == "__main__" and "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    if "--plan" in sys.argv:
        os.environ["SAEFAST_TOYS"] = "ABCDE"  # a plan names them

import torch
import triton

from benchmarks.gpu import plans
from benchmarks.gpu.common import DEVICE, REHEARSAL, ROOT, Result
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.running import Task, digest, run, work
from benchmarks.measuring import commit

TEXTS = ("error", "missing", "out_of_memory", "said", "prediction")  # printed, besides numbers
QUIET = ("p10_ms", "p90_ms", "mean_ms", "samples", "reserved_gb", "took_s")


def last_lines(full: Result) -> list[str]:
    """For somebody who sees the end of the output only: steps in ms, and how every error begins."""
    lines = []
    for key, row in full["parts"].get("step", {}).items():
        if isinstance(row, dict) and "median_ms" in (found := row.get(key.split()[-1], {})):
            share, over = found.get("share_of_floor"), found.get("triton_is_faster_by")
            line = f"{key:12} {found['median_ms']:9.3f} ms  {found['peak_gb']:6.1f} GB"
            line += f"  {share:.0%} of the floor" if share else ""
            lines.append(line + (f"  {over} times ours" if over else ""))
    for name, part in full["parts"].items():
        for item, result in part.items():
            if isinstance(result, dict) and "error" in result:
                lines.append(f"{name}: {item}: {result['error'][:200]}")
    return lines


def one_line(result: Result, prefix: str = "") -> str:
    """The figures of a result, without its lists, long texts and spreads."""
    shown = []
    for key, value in result.items():
        if key in QUIET:
            continue
        if isinstance(value, dict):
            shown.append(one_line(value, f"{prefix}{key}."))
        elif isinstance(value, (bool, int, float, type(None))) or key in TEXTS:
            shown.append(f"{prefix}{key} {value if not isinstance(value, float) else round(value, 6)}"[:400])
    return ", ".join(filter(None, shown))


def say(task: Task, result: Result) -> None:
    print(f"{task.name} ({result.get('took_s', '?')} s): {one_line(result)}"[:600], flush=True)


def header() -> Result:
    """What the figures are measured on."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu rehearsal",
        "commit": commit() or os.environ.get("SAEFAST_COMMIT", "unknown"),
        "sources": digest(["saefast", "triton_kernels", "csrc"]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


def chosen(args: argparse.Namespace) -> list[list[Task]]:
    """What to run, a list for each process: those of a plan, or a part each."""
    if args.plan:
        groups = [
            [Task(*entry[:2], entry.limit) for entry in group] for group in plans.PLANS[args.plan].processes
        ]
    else:
        groups = [[Task(name, item) for item in part.items] for name, part in PARTS.items()]

    def wanted(task: Task) -> bool:
        named = not args.items or any(fnmatch(task.item, pattern) for pattern in args.items)
        return named and (not args.only or task.part in args.only)

    return [some for group in groups if (some := [task for task in group if wanted(task)])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--plan", choices=plans.PLANS, help="what a call on a lent machine is for, in its order"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="run these parts")
    parser.add_argument(
        "--items", nargs="+", metavar="PATTERN", help="run items with such a name: 'A *' 'update?C'"
    )
    parser.add_argument("--fresh", action="store_true", help="do again what was done earlier")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, run nothing")
    parser.add_argument("--seconds", type=float, help="for everything (default: the plan's, or no limit)")
    parser.add_argument("--elapsed", type=float, default=0.0, help="seconds of it that are gone already")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default: benchmarks/results)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:  # this is a process of running.py
        path, log, names = args.work
        return work(Path(path), Path(log), json.loads(names))
    began = time.monotonic() - args.elapsed
    groups = chosen(args)
    plan = plans.PLANS.get(args.plan)
    if args.dry_run:
        unknown = [task.name for group in groups for task in group if task.item not in PARTS[task.part].items]
        lines = plans.table(plan) if plan else [f"{task.name}" for group in groups for task in group]
        print(*lines, *(f"not there: {name}" for name in unknown), sep="\n")
        return 1 if unknown else 0
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("make gpu: no CUDA GPU was found; --rehearse runs it on the CPU", file=sys.stderr)
        return 2

    seconds = args.seconds or (plan.limit - plans.CLOSING if plan and not REHEARSAL else float("inf"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or (Path(temporary) if REHEARSAL else ROOT / "benchmarks" / "results")
        full = header() | {"parts": {}}
        path = folder / re.sub(r"[^a-z0-9]+", "-", full["device"].lower()) / "gpu.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            full["parts"] = json.loads(path.read_text())["parts"]
        for task in [task for group in groups for task in group if args.fresh]:
            full["parts"].get(task.part, {}).pop(task.item, None)
        unfinished = run(groups, path, full, began + seconds, say)
        if plan:
            print(*plans.table(plan, full["parts"]), sep="\n")
        print(*last_lines(full), sep="\n")
        print(f"failed or not reached: {'; '.join(unfinished)}" if unfinished else f"all done: {path}")
        print(f"{full['device']}: {time.monotonic() - began:.0f} s, {path}")
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
