"""What `make gpu` runs: is it right on this GPU, and how fast? One JSON file per GPU model, a few minutes at a time.

    python -m benchmarks.gpu                    write benchmarks/results/<gpu>/gpu.json
    python -m benchmarks.gpu --only step peers  these parts only, in the order of PARTS
    python -m benchmarks.gpu --fresh            the same, doing again what that file already holds for these sources
    python -m benchmarks.gpu --part-list        what there is to run
    python -m benchmarks.gpu --rehearse         the same code on the CPU at toy sizes, into a temporary folder

A part is a list of items. They run one after another in a process of the part's own, and each result is saved when it is
there; an item that fails, hangs or spoils CUDA for its process costs itself and no other. What is most worth knowing
comes first, so a run that is cut off has answered that; the next run goes on with what is missing and then with what
failed. Nothing needs to be installed but torch, triton, pytest and the dependencies of saefast (see checkout.py). A time
is reported beside a comparison with higher precision or with the baseline's results, and as an error where that fails.

Results of other sources of the package, or of another version of the part, are done again. A checkout without its
history gets the commit from the environment: SAEFAST_COMMIT. flight.sh runs all this on a lent machine.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__" and "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import torch
import triton

from benchmarks.gpu import checks, curve, peers, predictions, profile, stages, step, stream, tune
from benchmarks.gpu.common import (
    DEVICE,
    REHEARSAL,
    ROOT,
    Part,
    Report,
    Result,
    free,
    synchronize,
    what_failed,
)
from benchmarks.measuring import commit

PARTS: dict[str, Part] = {
    "machine": checks.MACHINE,
    "compile": checks.COMPILED,
    "engine": checks.ENGINE,
    "step": step.STEP,
    "stages": stages.STAGES,
    "profile": profile.PROFILES,
    "predictions": predictions.PREDICTED,
    "tune": tune.TUNE,
    "curve": curve.CURVE,
    "peers": peers.PEER,
    "kernels": checks.KERNELS,
    "formats": step.FORMAT,
    "compiled": step.COMPILED,
    "stream": stream.STREAM,
    "sanitizer": checks.SANITIZERS,
}
ALSO_USED = {  # folders that the results of a module depend on, besides the sources of the package
    "benchmarks.gpu.checks": "tests",
    "benchmarks.gpu.peers": "benchmarks/peers",
    "benchmarks.gpu.step": "benchmarks/peers",
}
SECONDS = 540  # for everything; what is not begun by then is left to the next run
PATIENCE = 4 if REHEARSAL else 1  # times the limits: a machine without a GPU may be shared
STARTING = 60  # seconds for a process to load torch
SPOILT = 3  # exit code of a process that can no longer use the GPU
TEXTS = ("error", "missing", "out_of_memory", "said", "prediction")  # printed, besides numbers


def attempt(name: str, item: str, report: Report) -> Result:
    try:
        found = PARTS[name].items[item](report)
        return found | what_failed()
    except Exception as error:  # noqa: BLE001 what comes after it must run in any case
        what_failed()
        causes = (error, error.__cause__)
        if any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
            return {"out_of_memory": str(error).splitlines()[0][:300]}
        where = "".join(traceback.format_exception(error)[-4:])
        return {"error": f"{type(error).__name__}: {error}"[:3000], "where": where[-3000:]}


def append(log: Path, results: dict[str, Result]) -> None:
    with log.open("a") as lines:
        lines.write(json.dumps(results) + "\n")


def die_with(supervisor: int) -> None:
    """End this process group when nobody waits for its results any more: the GPU is wanted by the next run."""
    while os.getppid() == supervisor:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def work(name: str, path: Path, log: Path, items: list[str]) -> int:
    """The process of a part: a line of JSON for its start, and for each item."""
    report: Report = json.loads(path.read_text())["parts"]
    threading.Thread(target=die_with, args=[os.getppid()], daemon=True).start()
    append(log, {})  # it has started
    for item in items:
        result = attempt(name, item, report)
        report.setdefault(name, {})[item] = result
        append(log, {item: result})
        try:
            synchronize()
            free()
        except RuntimeError:  # a fault in a kernel, maybe of a benchmark that went before
            return SPOILT
    return 0


def supervise(
    name: str, items: list[str], path: Path, log: Path, deadline: float
) -> Iterator[tuple[str, Result]]:
    """Run `items` in a process and yield results as they come, until it ends or an item must be stopped."""
    log.write_text("")
    limit, left = STARTING, list(items)
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", name, str(path), str(log), *items]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)  # killed with what it started
    n_read, began = 0, time.monotonic()
    try:
        while True:
            running = process.poll() is None
            lines = log.read_text().rpartition("\n")[0].splitlines()
            for line in lines[n_read:]:
                results = json.loads(line)
                yield from results.items()
                left, limit = left[len(results) :], PATIENCE * PARTS[name].item_seconds
                n_read, began = n_read + 1, time.monotonic()
            if not running:
                if left and process.returncode not in (0, SPOILT):
                    yield left[0], {"error": f"its process ended with exit code {process.returncode}"}
                return
            if time.monotonic() > deadline:
                return
            if time.monotonic() - began > limit:
                yield left[0], {"error": f"stopped after {limit} s"}
                return
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_part(name: str, path: Path, full: Result, deadline: float, folder: Path) -> list[str]:
    """Run what is missing of a part and save each result. Returns the items that failed or were not reached."""
    part, found = PARTS[name], full["parts"].setdefault(name, {})
    modules = {getattr(item, "func", item).__module__ for item in part.items.values()}
    files = [*(module.replace(".", "/") for module in sorted(modules)), "benchmarks/gpu/common"]
    files += sorted({folder for module, folder in ALSO_USED.items() if module in modules})
    sources = f"{full['sources']} {digest('', files)}"
    if found.get("sources") != sources:
        found.clear()
    found |= {"sources": sources, "commit": full["commit"]}
    kept = [item for item in part.items if item in found and not {"error", "missing"} & found[item].keys()]
    pending = [item for item in part.items if item not in found] + [
        item for item in part.items if item in found and item not in kept
    ]
    if kept:
        print(f"{name}: {len(kept)} of {len(part.items)} done earlier, --fresh runs them again", flush=True)
    began, before = time.monotonic(), found.get("seconds", 0)
    deadline = min(deadline, began + PATIENCE * part.seconds)
    failed = []
    while pending and time.monotonic() < deadline:
        path.write_text(json.dumps(full, indent=1) + "\n")
        for item, result in supervise(name, pending, path, folder / "log", deadline):
            found[item] = result
            found["seconds"] = round(before + time.monotonic() - began, 1)
            path.write_text(json.dumps(full, indent=1) + "\n")
            pending = pending[pending.index(item) + 1 :]
            failed += [item] * ("error" in result)
            print(f"{name}: {item}: {one_line(result)}", flush=True)
    if pending:
        print(f"{name}: not reached in time: {', '.join(pending)}", flush=True)
    return failed + pending


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
        if key in ("p10_ms", "p90_ms", "samples", "reserved_gb"):
            continue
        if isinstance(value, dict):
            shown.append(one_line(value, f"{prefix}{key}."))
        elif isinstance(value, (bool, int, float, type(None))) or key in TEXTS:
            shown.append(f"{prefix}{key} {value if not isinstance(value, float) else round(value, 6)}"[:400])
    return ", ".join(filter(None, shown))


def digest(folder: str, names: list[str]) -> str:
    """A hash of modules in `folder`, or of whole folders of the repository: it tells states of the tree apart without git."""
    found = hashlib.sha256()
    for name in names:
        one = [ROOT / folder / f"{name}.py"]
        whole = (
            path for path in sorted((ROOT / name).rglob("*")) if path.suffix in {".py", ".cpp", ".h", ".cu"}
        )
        for path in one if one[0].exists() else whole:
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def header() -> Result:
    """What the figures are measured on."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu rehearsal",
        "commit": commit() or os.environ.get("SAEFAST_COMMIT", "unknown"),
        "sources": digest("", ["saefast", "triton_kernels", "csrc"]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="do again what was done earlier")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="run these parts")
    parser.add_argument("--part-list", action="store_true", help="print parts, items and limits, run nothing")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"for everything, default {SECONDS}")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default: benchmarks/results)")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:  # this is the process of a part
        name, path, log, *items = args.work
        return work(name, Path(path), Path(log), items)
    if args.part_list:
        for name, part in PARTS.items():
            print(f"{name} ({part.seconds} s, {part.item_seconds} s an item): {', '.join(part.items)}")
        return 0
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("make gpu: no CUDA GPU was found; --rehearse runs it on the CPU", file=sys.stderr)
        return 2

    deadline = time.monotonic() + args.seconds
    unfinished = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or (Path(temporary) if REHEARSAL else ROOT / "benchmarks" / "results")
        full = header() | {"parts": {}}
        path = folder / re.sub(r"[^a-z0-9]+", "-", full["device"].lower()) / "gpu.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            full["parts"] = json.loads(path.read_text())["parts"]
        for name in PARTS:
            if args.only and name not in args.only:
                continue
            if args.fresh:
                full["parts"].pop(name, None)
            unfinished[name] = run_part(name, path, full, deadline, Path(temporary))
        summary = [f"{name}: {item}" for name, items in unfinished.items() for item in items]
        print(*last_lines(full), sep="\n")
        print(f"failed or not reached: {'; '.join(summary)}" if summary else f"all done: {path}")
        print(f"{full['device']}: {time.monotonic() - deadline + args.seconds:.0f} s, {path}")
    return 1 if summary else 0


if __name__ == "__main__":
    sys.exit(main())
