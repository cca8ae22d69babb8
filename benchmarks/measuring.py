"""What the measurements of this folder share: the machine in words, real rows, interleaved rounds, peak memory, results.

Seconds are compared within a round, in which every contender runs once: a noisy neighbour slows a whole round. A spread is
a median with the 10th and the 90th percentile.
"""

import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import checkout
from saefast import open_source

RESULTS = Path(__file__).resolve().parent / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGES = (
    "eai-sparsify",
    "dictionary-learning",
    "sae-lens",
    "llamascopium",
    "overcomplete",
    "numpy",
    "triton",
)
# glibc gives large buffers back to the kernel after every free; with this it keeps them
KEEP = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"


def machine() -> dict[str, Any]:
    """Device, threads, versions and commit: what has to stand beside every figure."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": found,
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def commit() -> str:
    """The commit of this checkout, with a "+" if files under version control have changed since."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(checkout.ROOT), *args], check=False, capture_output=True, text=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:
        return ""


def result_path(name: str) -> Path:
    """benchmarks/results/<device>/<name>.json: "cpu", or the name of the GPU."""
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower() if DEVICE == "cuda" else "cpu"
    return RESULTS / device / f"{name}.json"


def read_result(name: str) -> dict[str, Any]:
    """What `write_result` wrote on this device; empty if there is nothing."""
    path = result_path(name)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write_result(name: str, found: Mapping[str, Any]) -> Path:
    """Write the result as JSON, together with a description of the machine."""
    path = result_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine()} | dict(found), indent=1)
    numbers = re.compile(r"\[\s+(-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*)\s+\]")  # a list of them stays on its line
    path.write_text(numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n")
    return path


def rows_of(folder: str | None, shape: Sequence[int], n_batches: int = 10) -> Tensor:
    """[n, D] fp32 of a shard folder, at most n_batches * B; random without a folder. shape: B, D, ..."""
    B, D = shape[:2]
    if folder is None:
        return torch.randn(4 * B, D, generator=torch.Generator().manual_seed(0))
    found, n = [], 0
    for rows in open_source(folder).rows():
        found.append(rows.float())
        n += len(rows)
        if n >= n_batches * B:
            break
    return torch.cat(found)[: n_batches * B]


def batches(rows: Tensor, B: int) -> Iterator[Tensor]:
    """[B, D] drawn without replacement from rows, again and again, always in the same order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield rows[torch.randperm(len(rows), generator=generator)[:B]].contiguous()


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    steps: Mapping[str, Callable[[Tensor], object]], stream: Iterator[Tensor], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each step in each round: all of them once on the next batch, in rotating order."""
    names, seconds = list(steps), {name: list[float]() for name in steps}
    for i in range(rounds):
        x = next(stream)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(seconds_of(partial(steps[name], x)))
    return seconds


def spread(values: Sequence[float], digits: int = 3) -> list[float]:
    """Median, 10th and 90th percentile."""
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]]
    return [round(value, digits) for value in (statistics.median(values), deciles[0], deciles[-1])]


def ratio(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Spread of over / under, each taken within its round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def resident_mib(field: str = "VmRSS") -> float:
    """VmRSS now, or VmHWM at the peak since `reset_peak`."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def reset_peak() -> float:
    """MiB held now, after freed memory has gone back to the kernel; the peak counts from here on."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib()


def peak_mib(before: float) -> float:
    """MiB at the peak since `reset_peak`, which returned `before`, above that."""
    after = torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else resident_mib("VmHWM")
    return round(after - before, 1)


def module_of(script: str) -> str:
    """The name of a script as `python -m` takes it in the root of the repository."""
    return ".".join(Path(script).resolve().relative_to(checkout.ROOT).with_suffix("").parts)


def in_fresh_process(script: str, *args: str, env: Mapping[str, str] | None = None) -> Any:
    """The last line that a script prints, as JSON (the peers print, too)."""
    done = subprocess.run(
        [sys.executable, "-m", module_of(script), *args],
        cwd=checkout.ROOT,
        env=os.environ | dict(env or {}),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
