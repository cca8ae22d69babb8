"""The streaming buffer: one batch of the buffer in PyTorch and of the native one.

    pytest benchmarks/ops/bench_stream.py

Plain is the buffer in PyTorch; both give the same rows in the same order. The floor is to read and write a batch once.
The native buffer works between the calls, too, on threads of its own: its time is what a trainer waits, not what a batch costs.
"""

import pytest
import torch

from benchmarks.ops.contest import Case, equal_to
from benchmarks.roofline import Stage
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.sources import TensorSource

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
BUFFERS = {"plain": ShuffleBuffer, "native": NativeBuffer}
SHAPES = {"smoke": (256, 64, 2048), "residual": (4096, 576, 32_768)}  # B, d_in, rows that the buffer holds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("contender", BUFFERS)
def bench_batch(contest, contender: str, shape: str) -> None:
    B, D, capacity = SHAPES[shape]
    source = TensorSource(torch.randn(2 * capacity, D, generator=torch.Generator().manual_seed(0)))
    batches = {name: iter(kind(source, B, capacity)) for name, kind in BUFFERS.items()}
    first = next(iter(ShuffleBuffer(source, B, capacity)))
    case = Case("batch", (B, D), (), lambda got: equal_to(first)([got]), [Stage("batch", 0, 8 * B * D)])
    contest(case, {name: rows.__next__ for name, rows in batches.items()}, contender)
