"""`make gpu`, the parts that ask whether it is right: the device itself, the tests, compute-sanitizer."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.common import REHEARSAL, ROOT, Part, Report, Result, ceilings, said

# For a group of tests; every kernel is compiled in every version that they use.
SECONDS = 300 if REHEARSAL else 110
FOUND = 9  # exit code
TINY = "-m", "benchmarks.gpu.tiny_run"
SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"


def measured_ceilings(report: Report) -> Result:
    return ceilings()


class Job(NamedTuple):
    """Some of the tests of a file. A fault in a kernel spoils CUDA for its process, so there are several."""

    path: Path
    only: str  # pytest's -k
    shard: str  # "i/n": the tests i, i + n, ...


def run_pytest(job: Job, deadline: float) -> tuple[str, float, str]:
    """-> what pytest said in its last line, seconds, and its whole output if a test failed or it did not end."""
    if time.monotonic() > deadline:
        return "not begun", 0.0, "not begun, out of time"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SAEFAST_SHARD": job.shard}
    environment |= {"OMP_NUM_THREADS": "2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # many processes, soon up
    plugins = [
        f"-p{name}" for name in ("benchmarks.checkout", "benchmarks.gpu.every_nth_test", "no:cacheprovider")
    ]
    if importlib.util.find_spec("pytest_timeout"):
        plugins.append("-ppytest_timeout")
    options = ["-q", "--tb=short", "-Wignore::pytest.PytestConfigWarning", f"-k={job.only}"]
    # -P: an installed saefast has its extensions beside it, the checkout has not
    command = [sys.executable, "-P", "-m", "pytest", *plugins, *options, str(job.path)]
    began, limit = time.perf_counter(), max(1, deadline - time.monotonic())
    try:
        run = said(command, env=environment, timeout=limit)
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout.decode(errors="replace") if error.stdout else ""
        return "stopped, out of time", time.perf_counter() - began, so_far + "\nout of time"
    last = (run.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    passed = run.returncode in (0, 5)  # 5: no test is in this shard
    return last, time.perf_counter() - began, "" if passed else run.stdout + run.stderr


def test_files(pattern: str) -> list[Path]:
    if REHEARSAL:  # `make test` has run them all
        pattern = "kernels/test_sum_rows"
    found = sorted((ROOT / "tests").glob(f"{pattern}.py"))
    # the longest first: they decide when all are done
    return sorted(found, key=lambda path: -path.stat().st_size)


def tests(pattern: str, only: str, shards: int, report: Report) -> Result:
    """The tests of these files, in processes of their own, as many at a time as there are cores."""
    deadline = time.monotonic() + SECONDS
    n = 1 if REHEARSAL else shards
    jobs = [Job(path, only, f"{i}/{n}") for path in test_files(pattern) for i in range(n)]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        found = list(pool.map(lambda job: run_pytest(job, deadline), jobs))
    result: Result = {}
    failed: list[str] = []
    for (path, *_), (last, seconds, output) in zip(jobs, found, strict=True):
        file = result.setdefault(path.stem, {"said": [], "seconds": 0.0})
        file["said"].append(last)
        file["seconds"] = round(max(file["seconds"], seconds), 1)
        if output:
            failed += re.findall(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE) or [f"{path.stem}: {last}"]
            file["output"] = file.get("output", "") + output[-4000:]
    if failed:
        result["error"] = f"{len(failed)} failed: " + "; ".join(failed)[:3000]
    return result


def tiny_run(report: Report) -> Result:
    """Without a tool: does it run at all? Its kernels are compiled then."""
    run = said([sys.executable, *TINY])
    result: Result = {"said": run.stdout.splitlines()}
    return result if run.returncode == 0 else result | {"error": run.stderr[-3000:]}


def sanitize(tool: str, report: Report) -> Result:
    """A few small training steps under compute-sanitizer, every tensor an allocation of its own."""
    binary = shutil.which("compute-sanitizer") or (SANITIZER if Path(SANITIZER).exists() else None)
    if binary is None:
        return {"said": "compute-sanitizer is not installed"}
    # Some calls of CUDA fail on purpose (torch asks what a pointer is): these are no finding.
    options = ["--report-api-errors", "no", "--error-exitcode", str(FOUND)]
    command = [binary, "--tool", tool, *options, sys.executable, *TINY]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = said(command, env=environment)
    lines = (run.stdout + run.stderr).strip().splitlines()
    result: Result = {"said": lines[-12:], "exit_code": run.returncode}
    if re.search(r"SUMMARY: [1-9]", "\n".join(lines)) or run.returncode == FOUND:
        result["error"] = "; ".join(line for line in lines if line.startswith("========= "))[:3000]
    return result  # another exit code and no summary: the tool does not work on this machine


MACHINE = Part({"ceilings": measured_ceilings}, item_seconds=40)
# Few processes, because each compiles what its tests use, one kernel after another; they share Triton's cache.
ENGINE = Part({"tests": partial(tests, "engine/test_gpu", "", 4)}, item_seconds=SECONDS + 30)
KERNELS = Part(
    {
        "bf16": partial(tests, "kernels/test_*", "bf16", 1),  # the format of the products on a GPU
        "others": partial(tests, "kernels/test_*", "not bf16", 2),
    },
    item_seconds=SECONDS + 30,
)
SANITIZERS = Part(
    {"no tool": tiny_run} | {tool: partial(sanitize, tool) for tool in ("memcheck", "racecheck")},
    item_seconds=180,
)
