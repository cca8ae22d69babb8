"""`make gpu`, the parts that ask whether it is right: the device itself, the tests, compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gpu_common import REHEARSAL, ROOT, Part, Report, Result, ceilings

SHARDS = 1 if REHEARSAL else 4  # processes of a test file: a fault in a kernel spoils CUDA for one of them
SECONDS = 300 if REHEARSAL else 115  # for all tests; every kernel is compiled in every version that they use
NOT_HERE = {"test_triton_compile"}  # compiles for other GPUs
FOUND = 9  # exit code
TINY = ROOT / "benchmarks" / "gpu_tiny_run.py"
SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"


def measured_ceilings(report: Report) -> Result:
    return ceilings()


def run_pytest(path: Path, shard: int, deadline: float) -> tuple[str, float, str]:
    """-> what pytest said in its last line, seconds, and its whole output if a test failed or it did not end."""
    paths = [str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SAEFAST_SHARD": f"{shard}/{SHARDS}"}
    environment["OMP_NUM_THREADS"] = "2"  # there are many of these processes
    plugins = ["-p", "checkout", "-p", "gpu_shard", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "--tb=short", str(path)]
    began = time.perf_counter()
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            timeout=max(1, deadline - time.monotonic()),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout.decode(errors="replace") if error.stdout else ""
        return "stopped, out of time", time.perf_counter() - began, so_far + "\nout of time"
    last = (run.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    passed = run.returncode in (0, 5)  # 5: no test is in this shard
    return last, time.perf_counter() - began, "" if passed else run.stdout + run.stderr


def test_files() -> list[Path]:
    found = sorted((ROOT / "tests").glob("test_triton_*.py"))
    if REHEARSAL:  # `make test` has run them all
        return [path for path in found if path.stem == "test_triton_sum_rows"]
    ours = [ROOT / "tests" / f"{name}.py" for name in ("test_gpu", "test_gpu_stream")]
    return [*ours, *(path for path in found if path.stem not in NOT_HERE)]


def tests(report: Report) -> Result:
    """Every test of the kernels, and those that need a GPU, each file in processes of its own."""
    deadline = time.monotonic() + SECONDS
    jobs = [(path, shard) for path in test_files() for shard in range(SHARDS)]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        found = list(pool.map(lambda job: run_pytest(*job, deadline), jobs))
    result: Result = {}
    failed: list[str] = []
    for (path, _), (last, seconds, output) in zip(jobs, found, strict=True):
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
    run = subprocess.run([sys.executable, str(TINY)], cwd=ROOT, capture_output=True, text=True, check=False)
    result: Result = {"said": run.stdout.splitlines()}
    return result if run.returncode == 0 else result | {"error": run.stderr[-3000:]}


def sanitize(tool: str, report: Report) -> Result:
    """A few small training steps under compute-sanitizer, every tensor an allocation of its own."""
    binary = shutil.which("compute-sanitizer") or (SANITIZER if Path(SANITIZER).exists() else None)
    if binary is None:
        return {"said": "compute-sanitizer is not installed"}
    command = [binary, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, str(TINY)]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).strip().splitlines()
    result: Result = {"said": lines[-12:], "exit_code": run.returncode}
    if re.search(r"SUMMARY: [1-9]", "\n".join(lines)) or run.returncode == FOUND:
        result["error"] = "; ".join(line for line in lines if line.startswith("========= "))[:3000]
    return result  # another exit code and no summary: the tool does not work on this machine


MACHINE = Part({"ceilings": measured_ceilings}, seconds=30, item_seconds=30)
CORRECTNESS = Part({"tests": tests}, seconds=125, item_seconds=125)
SANITIZERS = Part(
    {"no tool": tiny_run} | {tool: partial(sanitize, tool) for tool in ("memcheck", "racecheck")},
    seconds=110,
    item_seconds=60,
)
