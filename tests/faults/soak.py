"""Whole runs, sweeps and exports one after another in one process: memory, open files and threads stay where they are.

    python -m tests.faults.soak --seconds 60
    python -m tests.faults.soak --seconds 600 --write    benchmarks/results/cpu/soak.json

The first third warms up. Memory is the process' own after each round, without the pages of files that it has mapped (code that runs
for the first time is no leak); it is flat if the line of least squares through the rest rises by less than 4 MiB, or than 1 % of
it, over the whole time, and if there is at most one thread more than at first, which torch begins when it likes. (safetensors 0.8.0
leaks 56 bytes for each tensor that it reads: 8 KB a round. A minute has 80 rounds or more after the first third.)
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.scenarios import SCENARIOS, quiet

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "soak.json"
NAMES = [name for name in SCENARIOS if name != "curves"]  # matplotlib's memory is not ours


def measured() -> tuple[int, int, int]:
    """Resident bytes of its own, open files, threads."""
    resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (
        (resident - of_files) * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def rise(values: list[float]) -> float:
    """Of the line of least squares through the values, from the first to the last."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.linspace(-0.5, 0.5, len(y), dtype=torch.float64)
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def soak(seconds: float, names: list[str] = NAMES, leak: list | None = None) -> dict:
    """leak: for a test of this test: 4 MiB go in at each round."""
    quiet()
    started, found = time.perf_counter(), []
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        while time.perf_counter() - started < seconds or len(found) < 9:
            for name in names:
                SCENARIOS[name](Path(folder, "out"))
                shutil.rmtree(Path(folder, "out"))
            if leak is not None:
                leak.append(bytes(bytearray(os.urandom(1 << 12)) * 1024))
            gc.collect()
            found.append(measured())
    kept = found[len(found) // 3 :]
    memory, handles, threads = zip(*kept)
    up = rise(list(memory))
    flat = up < max(4 << 20, 0.01 * memory[0]) and len(set(handles)) == 1 and max(threads) <= threads[0] + 1
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "rounds": len(found),
        "runs": len(found) * len(names),
        "flat": flat,
        "memory_mib": {"first": memory[0] >> 20, "last": memory[-1] >> 20, "rise": round(up / 2**20, 2)},
        "open_files": sorted(set(handles)),
        "threads": sorted(set(threads)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULT.name}")
    args = parser.parse_args()
    found = soak(args.seconds)
    print(json.dumps(found, indent=2))
    if args.write:
        RESULT.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(not found["flat"])


if __name__ == "__main__":
    main()
