"""The streaming buffer: one batch of each kind, and the rates of `stream_speed.py` on little data (smoke).

    pytest benchmarks/ops/bench_stream.py

Plain is the buffer in PyTorch; both give the same rows in the same order. The floor is to read and write a batch once.
The native buffer works between the calls, too, on threads of its own: its time is what a trainer waits, not what a batch costs.
"""

import pytest
import torch

from benchmarks.activations import stream_speed
from benchmarks.ops.contest import Case, equal_to
from benchmarks.roofline import Stage
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.sources import TensorSource

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
BUFFERS = {"plain": ShuffleBuffer, "native": NativeBuffer}
B, D, ROWS = 4096, 576, 32_768


@pytest.mark.parametrize("contender", BUFFERS)
def bench_batch(contest, contender: str) -> None:
    source = TensorSource(torch.randn(2 * ROWS, D, generator=torch.Generator().manual_seed(0)))
    batches = {name: iter(kind(source, B, ROWS)) for name, kind in BUFFERS.items()}
    first = next(iter(ShuffleBuffer(source, B, ROWS)))
    case = Case("batch", (B, D), (), lambda got: equal_to(first)([got]), [Stage("batch", 0, 8 * B * D)])
    contest(case, {name: rows.__next__ for name, rows in batches.items()}, contender)


def bench_stream_smoke(tmp_path) -> None:
    assert stream_speed.main(["--smoke", "--folder", str(tmp_path)])["rounds"] == 1
