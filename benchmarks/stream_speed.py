"""The streaming buffer against the drive, memcpy, and the other buffers, interleaved in one process.

    python benchmarks/stream_speed.py [--folder DIR] [--rounds N] [--smoke]

Rates are GB/s of rows in their format on disk. The batches of the two buffers of saefast are compared first.
dictionary_learning's ActivationBuffer fetches from a model; its shape (refill half, take random unread rows) is
timed on rows in memory. SAELens' mixing buffer runs if sae_lens is installed.
"""

import argparse
import importlib
import json
import mmap
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.buffer import ShuffleBuffer
from saefast.shards import ShardSource, ShardWriter
from saefast.sources import TensorSource
from saefast.stream import NativeBuffer

D_IN, B = 576, 4096


def timed(function: Callable[[], int]) -> float:
    """GB/s of function(), which returns the bytes that it moved."""
    begin = time.perf_counter()
    n = function()
    return n / (time.perf_counter() - begin) / 1e9


def read_files(folder: Path) -> int:
    """pread of every shard into the same 1 MiB, as dd does."""
    memory, n = bytearray(1 << 20), 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(memory):
                n += got
    return n


def read_drive(folder: Path) -> int:
    """The same around the page cache (O_DIRECT), 8 MiB at a time; dropping the cache would leave mapped pages in it."""
    memory, n = mmap.mmap(-1, 8 << 20), 0
    for path in sorted(folder.glob("*.safetensors")):
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        at = 0
        while got := os.preadv(file, [memory], at):
            at += got
        os.close(file)
        n += at
    return n


def drain(batches: Iterator[Tensor], n_batches: int, row_bytes: int) -> int:
    for _ in range(n_batches):
        next(batches)
    return n_batches * B * row_bytes


def mixing_buffer() -> Any:
    """SAELens' function, or None."""
    try:
        return importlib.import_module("sae_lens.training.mixing_buffer").mixing_buffer
    except ImportError:
        return None


def half_refill(rows: Tensor, capacity: int) -> Iterator[Tensor]:
    """The shape of dictionary_learning's ActivationBuffer: refill when half is read, take random unread rows."""
    held, read, at = torch.empty(0, rows.shape[1], dtype=rows.dtype), torch.empty(0, dtype=torch.bool), 0
    while True:
        if int((~read).sum()) < capacity // 2:
            held = held[~read]
            new = rows[at : at + capacity - len(held)]
            at = (at + len(new)) % len(rows)
            held = torch.cat([held, new])
            read = torch.zeros(len(held), dtype=torch.bool)
        unread = (~read).nonzero().squeeze(1)
        chosen = unread[torch.randperm(len(unread))[:B]]
        read[chosen] = True
        yield held[chosen]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    n, capacity, rounds = (40_960, 16_384, 1) if args.smoke else (524_288, 131_072, args.rounds)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        result = measure(folder / "acts", n, capacity, rounds)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=2))
    if not args.smoke:
        out = Path(__file__).parent / "results" / "stream_cpu.json"
        out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def measure(folder: Path, n: int, capacity: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    writer = ShardWriter(folder, D_IN, torch.float16, shard_tokens=65_536)
    for _ in range(n // 8192):
        writer.append(torch.randn(8192, D_IN, generator=generator).half())
    writer.close()
    source, row_bytes, per_pass = ShardSource(folder), 2 * D_IN, n // B
    rows = torch.cat([source.shard(i)["activations"].clone() for i in range(len(source.index["shards"]))])
    a, b = iter(ShuffleBuffer(source, B, capacity)), iter(NativeBuffer(source, B, capacity))
    for _ in range(per_pass + 3):
        assert torch.equal(next(a), next(b))

    memory = TensorSource(rows)
    peer = mixing_buffer()
    streams: dict[str, Iterator[Tensor]] = {
        "native, files": iter(NativeBuffer(source, B, capacity)),
        "native, files to fp32": iter(NativeBuffer(source, B, capacity, dtype=torch.float32)),
        "native, memory": iter(NativeBuffer(memory, B, capacity)),
        "pytorch, files": iter(ShuffleBuffer(ShardSource(folder), B, capacity)),
        "dictionary_learning shape, memory": half_refill(rows, capacity),
    }
    if peer is not None:
        endless = (chunk for _ in iter(int, 1) for chunk in rows.split(8192))
        streams["SAELens mixing_buffer, memory"] = peer(capacity, B, endless)
    for batches in streams.values():
        drain(batches, per_pass, row_bytes)  # the pass that verifies
    copy = torch.empty_like(rows)
    rates: dict[str, list[float]] = {name: [] for name in streams}
    rates |= {name: [] for name in ("memcpy", "page cache", "drive", "native O_DIRECT, drive, first pass",
              "native O_DIRECT, drive, later pass", "native, first pass, page cache")}  # fmt: skip
    direct = iter(NativeBuffer(source, B, capacity, direct=True))
    drain(direct, per_pass, row_bytes)
    for _ in range(rounds):
        rates["memcpy"].append(timed(lambda: copy.copy_(rows).nbytes))
        rates["page cache"].append(timed(lambda: read_files(folder)))
        for name, batches in streams.items():
            rates[name].append(timed(lambda s=batches: drain(s, per_pass, row_bytes)))  # type: ignore[misc]
        rates["native, first pass, page cache"].append(
            timed(lambda: drain(iter(NativeBuffer(source, B, capacity)), per_pass, row_bytes))
        )
        rates["drive"].append(timed(lambda: read_drive(folder)))
        rates["native O_DIRECT, drive, first pass"].append(
            timed(lambda: drain(iter(NativeBuffer(source, B, capacity, direct=True)), per_pass, row_bytes))
        )
        rates["native O_DIRECT, drive, later pass"].append(timed(lambda: drain(direct, per_pass, row_bytes)))
    median = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(name: str, over: str) -> float:
        return round(statistics.median(x / y for x, y in zip(rates[name], rates[over], strict=True)), 3)

    ratios = {
        "native, files / page cache": ratio("native, files", "page cache"),
        "native O_DIRECT, first pass / drive": ratio("native O_DIRECT, drive, first pass", "drive"),
        "native O_DIRECT / drive": ratio("native O_DIRECT, drive, later pass", "drive"),
        "native, memory / memcpy": ratio("native, memory", "memcpy"),
        "native / pytorch, files": ratio("native, files", "pytorch, files"),
    } | {
        f"native, memory / {name}": ratio("native, memory", name)
        for name in streams if not name.startswith(("native", "pytorch"))
    }  # fmt: skip
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {platform.platform()}",
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "shape": {"rows": n, "d_in": D_IN, "dtype": "float16", "batch": B, "capacity": capacity},
        "rounds": rounds, "sae_lens": "installed" if peer is not None else "not installed",
        "GB/s, medians": {name: round(value, 3) for name, value in median.items()},
        "ratios, medians": ratios,
    }  # fmt: skip


if __name__ == "__main__":
    main()
