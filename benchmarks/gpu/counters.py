"""`make gpu`: what Nsight Compute counts in the kernels that decide the step: the best data for work without a GPU.

    python -m benchmarks.gpu.counters A     what `ncu` runs: a step at A, op by op, its largest ops once more to be counted

Clocks are left alone. A machine without ncu, or one that does not let it count, gives `said` in place of figures. The
whole table of ncu is beside the results, counters-A.csv.
"""

import csv
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.common import CASES, DEVICE, Part, Report, Result, said
from benchmarks.gpu.stages import Chain

OPS = ("update", "decode", "select", "encode")  # those that may launch most come last
MOST = 16  # launches that are counted
SECONDS = 60
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "WarpStateStats")
FIGURES = {  # ours -> ncu's, in its base units
    "us": "gpu__time_duration.sum",
    "dram_gb": "dram__bytes.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "registers": "launch__registers_per_thread",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
}
UNITS = {"us": 1e-3, "dram_gb": 1e-9}  # of ns, of bytes


def binary() -> str | None:
    usual = Path("/usr/local/cuda/bin/ncu")
    return shutil.which("ncu") or (str(usual) if usual.exists() else None)


def figures(table: str) -> list[Result]:
    """The kernels of ncu's raw page: a row of names, a row of units, and a row for each launch, among lines of its own."""
    rows = list(csv.DictReader(line for line in table.splitlines() if line.startswith('"')))
    found = []
    for row in rows[1:]:
        kernel: Result = {"name": row["Kernel Name"][:60]}
        for name, theirs in FIGURES.items():
            if text := row.get(theirs, "").replace(",", ""):
                kernel[name] = round(float(text) * UNITS.get(name, 1), 4)
        found.append(kernel)
    return found


def counted(case: str, report: Report) -> Result:
    ncu = binary()
    if ncu is None:
        return {"said": "ncu is not installed"}
    folder = Path(os.environ.get("SAEFAST_RESULTS") or tempfile.gettempdir())
    table = folder / f"counters-{case}.csv"
    options = ["--clock-control", "none", "--profile-from-start", "off", "--launch-count", str(MOST)]
    options += [word for section in SECTIONS for word in ("--section", section)]
    options += ["--metrics", ",".join(FIGURES.values()), "--print-units", "base", "--csv", "--page", "raw"]
    options += ["--kernel-name", "regex:gemm|nvjet|finish|maxima|select|decode|update|chunk"]
    command = [ncu, *options, "--log-file", str(table), sys.executable, "-m", "benchmarks.gpu.counters", case]
    # from the outside: a profiler that hangs ends with its process, and what it wrote by then stays
    done = said(["timeout", "--kill-after", "5", str(SECONDS), *command])
    kernels = figures(table.read_text()) if table.exists() else []
    if not kernels:
        lines = (table.read_text() if table.exists() else "") + done.stdout + done.stderr
        return {"said": f"ncu counted nothing, exit code {done.returncode}: {lines[-600:]}"}
    return {"kernels": kernels}


def main(case: str) -> None:
    chain = Chain(CASES[case])
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for op in OPS:
        chain.calls[op]()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


COUNTERS = Part({case: partial(counted, case) for case in CASES}, item_seconds=SECONDS + 20)

if __name__ == "__main__":
    main(sys.argv[1])
