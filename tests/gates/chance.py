"""Which tests hold by chance: runs them again and again with other seeds, in another order, with other numbers of threads and
instructions, and says which fail.

    python -m tests.gates.chance --runs 20 tests/activations tests/config
    python -m tests.gates.chance --runs 1 --first 7 PATH::TEST     the seventh of them again
    python -m tests.gates.chance --today FOLDER                    one, whose number is that of the day: what CI runs

`make test` draws the same numbers in every run (tests/conftest.py). What fails here shows a tolerance that fits one seed, a
test that asks the clock, or an error of the code. Run i has what `environment(i)` says; run 0 is as `make test`.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import defaultdict

FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)
# Instructions for torch's own loops, for its products (MKL), for oneDNN, and for the CPU engine.
CPUS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "SAEFAST_ISA": "plain",
    },
)


def environment(run: int) -> dict[str, str]:
    """What differs between the runs, for the processes that a test starts, too."""
    seeds = {"SEED_SHIFT": str(run), "PYTHONHASHSEED": str(run)}
    threads = {
        "OMP_NUM_THREADS": str(1 + run // 2 % 2),
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # waiting ones leave the cores to others
    return seeds | threads | CPUS[run % len(CPUS)]


def failures(run: int, arguments: list[str]) -> tuple[list[str], str]:
    """-> the tests that failed in this run, pytest's last line."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    if run:
        command.append(f"--hypothesis-seed={run}")
    done = subprocess.run(
        command, env=os.environ | environment(run), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        sys.exit(
            f"run {run}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return FAILED.findall(done.stdout), done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="number of the first run")
    parser.add_argument("--today", action="store_true", help="one run, whose number is that of the day")
    arguments, of_pytest = parser.parse_known_args()
    failed: dict[str, list[int]] = defaultdict(list)
    if arguments.today:
        arguments.first, arguments.runs = int(time.time() // 86_400), 1
    runs = range(arguments.first, arguments.first + arguments.runs)
    for run in runs:
        begun = time.perf_counter()
        names, said = failures(run, of_pytest)
        for name in names:
            failed[name].append(run)
        differs = " ".join(f"{name}={value}" for name, value in environment(run).items())
        print(
            f"run {run} ({differs}; {time.perf_counter() - begun:.0f} s): {said}",
            *names,
            sep="\n    ",
            flush=True,
        )
    for name, found in sorted(failed.items()):
        print(f"failed in {len(found)} of {len(runs)} runs: {name} (runs {', '.join(map(str, found))})")
        print(f"    again: python -m tests.gates.chance --runs 1 --first {found[0]} '{name}'")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
