"""The streaming buffer against the drive, the page cache, memcpy and the other buffers, interleaved in one process.

    python -m benchmarks.activations.stream_speed [--folder DIR] [--rounds N] [--smoke]

Rates are GB/s of rows in their format on disk, and ratios are taken within a round. The batches of the two buffers of
saefast are compared first, and the copying kernel with torch's indexing. `stream_peers.py` says which peers run.
"""

import argparse
import ctypes
import importlib
import json
import mmap
import os
import platform
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.activations import stream_peers
from saefast.activations.buffer import ShuffleBuffer, draw
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.activations.sources import TensorSource

D_IN, B = 576, 4096
ROW = 2 * D_IN
THREADS = 2  # of memcpy and of the kernel; also the buffer's readers and mixers


def timed(function: Callable[[], int]) -> float:
    """GB/s of function(), which returns the bytes that it moved."""
    begin = time.perf_counter()
    n = function()
    return n / (time.perf_counter() - begin) / 1e9


def huge(n: int) -> np.ndarray:
    """n bytes in huge pages, as the buffer's own memory is."""
    memory = mmap.mmap(-1, n + (4 << 20))
    memory.madvise(mmap.MADV_HUGEPAGE)
    out = np.frombuffer(memory, np.uint8)
    out = out[-out.ctypes.data % (2 << 20) :][:n]
    out.fill(0)
    return out


def memcpy(out: np.ndarray, rows: np.ndarray) -> int:
    """glibc's, a part for each thread."""
    part = -(-rows.nbytes // THREADS)

    def copy(i: int) -> None:
        begin = i * part
        ctypes.memmove(
            out.ctypes.data + begin, rows.ctypes.data + begin, min(part, rows.nbytes - begin)
        )  # without the GIL

    threads = [threading.Thread(target=copy, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows.nbytes


def read_files(folder: Path, memory: Any) -> int:
    """pread of every shard, 1 MiB at a time, as dd does: into the same 1 MiB, or one after another into large memory."""
    view, n, at = memoryview(memory), 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(view[at : at + (1 << 20)]):
                n += got
                at = at + got if len(view) > 1 << 20 else 0
    return n


def read_drive(folder: Path) -> int:
    """The same around the page cache (O_DIRECT), 8 MiB at a time."""
    memory, n = mmap.mmap(-1, 8 << 20), 0
    for path in sorted(folder.glob("*.safetensors")):
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        at = 0
        while got := os.preadv(file, [memory], at):
            at += got
        os.close(file)
        n += at
    return n


def drain(batches: Iterator[Tensor], n_batches: int) -> int:
    for _ in range(n_batches):
        next(batches)
    return n_batches * B * ROW


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results" / "cpu" / "stream.json"
    )
    args = parser.parse_args(argv)
    n, capacity, rounds = (40_960, 16_384, 1) if args.smoke else (524_288, 131_072, args.rounds)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        result = measure(folder / "acts", n, capacity, rounds)
    finally:
        shutil.rmtree(folder)
    text = re.sub(
        r"\[\s+([\d.]+),\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2, \3]", json.dumps(result, indent=2)
    )
    print(text)
    if not args.smoke:
        args.out.write_text(text + "\n")
    return result


def write(folder: Path, n: int) -> ShardSource:
    generator = torch.Generator().manual_seed(0)
    writer = ShardWriter(folder, D_IN, torch.float16, shard_tokens=65_536)
    for _ in range(n // 8192):
        writer.append(torch.randn(8192, D_IN, generator=generator).half())
    writer.close()
    return ShardSource(folder)


def measure(folder: Path, n: int, capacity: int, rounds: int) -> dict[str, Any]:
    source, per_pass = write(folder, n), n // B
    rows = torch.cat([source.shard(i)["activations"].clone() for i in range(len(source.index["shards"]))])
    a, b = iter(ShuffleBuffer(source, B, capacity)), iter(NativeBuffer(source, B, capacity))
    for _ in range(per_pass + 3):
        assert torch.equal(next(a), next(b))

    # the kernel: rows of a buffer of `capacity`, in the order of its batches, in as much memory as memcpy moves
    stream = importlib.import_module("saefast._C").stream
    flat, out = rows.view(torch.uint8).numpy(), huge(n * ROW)
    pool = huge(capacity * ROW).reshape(capacity, ROW)
    pool[:] = flat[:capacity]
    index = torch.cat([draw(0, i, capacity, B) for i in range(per_pass)])
    kernel = {"d_in": D_IN, "dtype": "float16", "threads": THREADS}

    def gather() -> int:
        stream.gather(pool, index.numpy(), out.reshape(n, ROW), **kernel)
        return out.nbytes

    gather()
    assert torch.equal(torch.from_numpy(out).view(n, ROW), torch.from_numpy(pool)[index])
    large, small = huge(n * ROW + (n // 65_536 + 2 << 20)), bytearray(1 << 20)
    copied = huge(n * ROW)
    copied[:] = flat.ravel()

    def through(buffer: NativeBuffer) -> int:
        return int(buffer._native.read_through()) * ROW

    files, memory = NativeBuffer(source, B, capacity), TensorSource(rows)
    streams: dict[str, Iterator[Tensor]] = {
        "batches, files": iter(files),
        "batches, files to fp32": iter(NativeBuffer(source, B, capacity, dtype=torch.float32)),
        "batches, memory": iter(NativeBuffer(memory, B, capacity)),
        "pytorch, files": iter(ShuffleBuffer(ShardSource(folder), B, capacity)),
        "pytorch, memory": iter(ShuffleBuffer(memory, B, capacity)),
    }
    peers, versions = stream_peers.buffers(rows, capacity, B)
    streams |= peers
    for batches in streams.values():
        drain(batches, per_pass)  # the pass that verifies

    def new(direct: bool) -> NativeBuffer:
        return NativeBuffer(source, B, capacity, direct=direct)

    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        cached, direct, verifying = new(False), new(True), iter(new(True))
        cases: dict[str, Callable[[], int]] = {
            "memcpy": lambda: memcpy(out, copied),
            "gather kernel": gather,
            "page cache into 1 MiB": lambda: read_files(folder, small),
            "page cache into large memory": lambda: read_files(folder, large),
            "reading and verifying, page cache": lambda c=cached: through(c),  # type: ignore[misc]
            "reading, page cache": lambda c=cached: through(c),  # type: ignore[misc]
        }
        cases |= {name: lambda s=s: drain(s, per_pass) for name, s in streams.items()}  # type: ignore[misc]
        cases |= {
            "batches, first pass, page cache": lambda: drain(iter(new(False)), per_pass),
            "drive": lambda: read_drive(folder),
            "reading and verifying, drive": lambda c=direct: through(c),  # type: ignore[misc]
            "reading, drive": lambda c=direct: through(c),  # type: ignore[misc]
            "drive again": lambda: read_drive(folder),
            "batches, first pass, drive": lambda v=verifying: drain(v, per_pass),  # type: ignore[misc]
            "batches, drive": lambda v=verifying: drain(v, per_pass),  # type: ignore[misc]
        }
        for name, case in cases.items():
            rates.setdefault(name, []).append(timed(case))

    def spread(values: list[float]) -> list[float]:
        return [round(x, 3) for x in (statistics.median(values), min(values), max(values))]

    pairs = [
        ("gather kernel", "memcpy"), ("batches, memory", "memcpy"), ("batches, files", "memcpy"),
        ("reading, page cache", "page cache into 1 MiB"),
        ("reading, page cache", "page cache into large memory"),
        ("batches, files", "page cache into 1 MiB"), ("batches, files", "page cache into large memory"),
        ("reading and verifying, drive", "drive"), ("reading, drive", "drive"),
        ("batches, first pass, drive", "drive again"), ("batches, drive", "drive again"),
        ("batches, files", "pytorch, files"), ("batches, memory", "pytorch, memory"),
        *(("batches, memory", name) for name in peers),
    ]  # fmt: skip
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | versions,
        "threads": {"memcpy, gather kernel": THREADS, "torch": torch.get_num_threads(), "readers": 2, "mixers": 2},
        "shape": {"rows": n, "d_in": D_IN, "dtype": "float16", "batch": B, "capacity": capacity},
        "rounds": rounds,
        "GB/s: median, min, max": {name: spread(values) for name, values in rates.items()},
        "ratios within a round: median, min, max": {
            f"{x} / {y}": spread([p / q for p, q in zip(rates[x], rates[y], strict=True)]) for x, y in pairs
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
