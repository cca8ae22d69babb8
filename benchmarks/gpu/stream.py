"""`make gpu`: the streaming buffer in GPU memory. What its kernel and its copies reach, and a run that is fed by it.

Rehearsed where there is no GPU, it runs over the fake CUDA runtime of tests/helpers/fake_device.py, whose times say nothing.
"""

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.checks import tests
from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    REHEARSAL,
    Item,
    Part,
    Report,
    Result,
    expect,
    kernel_ms,
    make_sae,
    synchronize,
    train_config,
)
from saefast import Trainer
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.activations.sources import TensorSource

D_IN = 24 if REHEARSAL else 768
N_ROWS, BATCH, CAPACITY = (400, 8, 64) if REHEARSAL else (524_288, 4096, 131_072)
N_BATCHES = 20 if REHEARSAL else 300
READERS = {"readers": 2, "mixers": 2} if REHEARSAL else {"readers": 6, "mixers": 4}


def missing() -> str | None:
    """Why there is nothing to measure here."""
    if REHEARSAL:
        return None if shutil.which("g++") else "no g++ for the fake CUDA runtime"
    try:
        from saefast.activations.device_buffer import load_module

        return load_module().unusable(torch.cuda.current_device()) or None
    except ImportError as error:
        return f"saefast._cuda is not built ({error}): `pip install -e .` where nvcc is"


def device_buffer(*sizes: Any, **options: Any) -> NativeBuffer:
    if not REHEARSAL:
        from saefast.activations.device_buffer import DeviceBuffer

        return DeviceBuffer(*sizes, **READERS, **options)
    from saefast.activations import device_buffer as wrapper
    from tests.helpers import fake_device

    wrapper.load_module = lambda: fake_device.build()[0]
    return fake_device.FakeDeviceBuffer(*sizes, **READERS, **options)


@functools.cache
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    some = torch.randn(min(N_ROWS, 16_384), D_IN, generator=generator).half()
    return some.repeat(-(-N_ROWS // len(some)), 1)[:N_ROWS]


@contextmanager
def shards() -> Iterator[ShardSource]:
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder) / "acts", D_IN, torch.float16, shard_tokens=max(1, N_ROWS // 8))
        writer.append(rows())
        writer.close()
        yield ShardSource(Path(folder) / "acts")


def compare(source: Any, **options: Any) -> None:
    """Compare its batches with those of the buffer in PyTorch, before any time is taken."""
    sizes = source, BATCH, CAPACITY
    with closing(device_buffer(*sizes, **options)) as ours:
        for i, (got, want) in enumerate(zip(ours, ShuffleBuffer(*sizes), strict=False)):
            expect(torch.equal(got.cpu(), want.to(got.dtype)), f"batch {i} differs")
            if i == 3:
                return


def nothing(x: Tensor) -> None:
    """What is done with a batch where only the buffer is measured."""


def pace(
    batches: Iterator[Tensor], n: int = N_BATCHES, warm: int = 5, use: Callable[[Tensor], object] = nothing
) -> Result:
    """The rate of n batches that are used in turn, and the share of the time in which the host waited in `next`."""
    for _ in range(warm):
        use(next(batches))
    synchronize()
    waited, began = 0.0, time.perf_counter()
    for _ in range(n):
        asked = time.perf_counter()
        x = next(batches)
        waited += time.perf_counter() - asked
        use(x)
    synchronize()
    seconds = time.perf_counter() - began
    tokens = n * BATCH / seconds
    return {
        "tokens_per_s": round(tokens),
        "gb_per_s": round(2 * D_IN * tokens / 1e9, 6),
        "waiting_share": round(waited / seconds, 4),
    }


def copies(report: Report) -> Result:
    """What the link gives: host to device, pinned and not, in pieces of a batch."""
    host = rows()[:BATCH].clone()
    target, found = torch.empty_like(host, device=DEVICE), {}
    for name, source in (("pinned", host if REHEARSAL else host.pin_memory()), ("pageable", host)):
        timing = kernel_ms(lambda s=source: target.copy_(s, non_blocking=True))
        found[name] = timing | {"gb_per_s": round(host.nbytes / 1e6 / timing["median_ms"], 6)}
    return found


def from_memory(report: Report) -> Result:
    """Rows in host memory: the mixer, the copies and the kernel, with batches in fp32 and as they are."""
    source, found = TensorSource(rows()), {}
    for dtype in (torch.float16, torch.float32):
        compare(source, dtype=dtype)
        with closing(device_buffer(source, BATCH, CAPACITY, dtype=dtype)) as buffer:
            found[str(dtype)[6:]] = pace(iter(buffer))
    pinned = report.get("stream", {}).get("copies", {}).get("pinned", {}).get("gb_per_s")
    if pinned:
        found["of_pinned_copies"] = round(found["float16"]["gb_per_s"] / pinned, 4)
    return found


def gather(report: Report) -> Result:
    """The kernel alone, under torch's profiler: bytes moved are 3 reads or writes of a row in fp16, one in fp32."""
    if REHEARSAL:
        return {"said": "there is no kernel to profile over the fake runtime"}
    from torch.profiler import ProfilerActivity, profile

    with closing(device_buffer(TensorSource(rows()), BATCH, CAPACITY, dtype=torch.float32)) as buffer:
        batches = iter(buffer)
        pace(batches, 20)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            pace(batches, 100)
    kernels = [event for event in seen.events() if "take_kernel" in event.name]
    uploads = [event for event in seen.events() if "Memcpy HtoD" in event.name]
    if not kernels:
        return {"said": "the profiler saw no kernel of another CUDA runtime than torch's"}
    us = sorted(event.device_time for event in kernels)[len(kernels) // 2]
    moved = BATCH * D_IN * (3 * 2 + 4)
    found: Result = {"kernel_us": us, "gb_per_s": round(moved / us / 1e3, 3), "kernels": len(kernels)}
    if uploads:
        up = sorted(event.device_time for event in uploads)[len(uploads) // 2]
        found |= {"upload_us": up, "upload_gb_per_s": round(2 * BATCH * D_IN / up / 1e3, 3)}
    return found


def from_shards(report: Report) -> Result:
    """Verified shards on a drive (in the page cache): the buffer on the GPU, and the one on the host with a copy."""
    with shards() as source:
        compare(source, dtype=torch.float32)
        found: Result = {}
        sizes = source, BATCH, CAPACITY
        for name, buffer in (
            ("on the GPU", device_buffer(*sizes, dtype=torch.float32)),
            ("on the host", NativeBuffer(*sizes, dtype=torch.float32, **READERS)),
        ):
            with closing(buffer):
                batches = (x.to(DEVICE) for x in buffer)
                for _ in range(N_ROWS // BATCH):  # the first pass verifies
                    next(batches)
                found[name] = pace(batches)
        return found


def training(report: Report) -> Result:
    """Steps of case A fed by each buffer, in turn, against the same steps on one batch that stays where it is."""
    shape = CASES["A"]._replace(B=BATCH, D=D_IN)
    trainer, found = Trainer(make_sae(shape), train_config(shape)), {}
    n, warm = (1, 0) if REHEARSAL else (200, 5)
    with shards() as source:
        sizes = source, BATCH, CAPACITY
        makers = {
            "on the GPU": lambda: device_buffer(*sizes, dtype=torch.float32),
            "on the host": lambda: NativeBuffer(*sizes, dtype=torch.float32, **READERS),
        }
        still = rows()[:BATCH].float().to(DEVICE)
        for name in ("one batch", *makers):
            buffer = makers[name]() if name in makers else None
            batches = iter(buffer) if buffer else repeat(still)
            found[name] = pace(batches, n, warm, lambda x: trainer.step(x.to(DEVICE)))
            if buffer:
                buffer.close()
    speeds = {name: entry["tokens_per_s"] for name, entry in found.items()}
    found["of_one_batch"] = {name: round(speeds[name] / speeds["one batch"], 4) for name in makers}
    return found


def where_possible(item: Item, report: Report) -> Result:
    return {"missing": why} if (why := missing()) else item(report)


ITEMS = {
    "tests": partial(tests, "activations/test_gpu_stream", "", 4),
    "copies": partial(where_possible, copies),
    "rows in memory": partial(where_possible, from_memory),
    "gather": partial(where_possible, gather),
    "shards": partial(where_possible, from_shards),
    "training": partial(where_possible, training),
}
STREAM = Part(ITEMS, item_seconds=140)
