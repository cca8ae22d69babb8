"""The streaming buffer: the rates of `stream_speed.py` on little data (smoke), and one batch of each buffer."""

import pytest
import stream_speed
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from saefast.buffer import ShuffleBuffer
from saefast.sources import TensorSource
from saefast.stream import NativeBuffer

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")


@pytest.mark.parametrize("kind", [NativeBuffer, ShuffleBuffer])
def bench_batch(benchmark: BenchmarkFixture, kind: type[ShuffleBuffer]) -> None:
    source = TensorSource(torch.randn(65_536, 576, generator=torch.Generator().manual_seed(0)))
    batches, others = iter(kind(source, 4096, 32_768)), iter(ShuffleBuffer(source, 4096, 32_768))
    benchmark.group = "a batch [4096, 576] fp32 from a buffer of 32768 rows"
    assert torch.equal(next(batches), next(others))
    benchmark(lambda: next(batches))


def bench_stream_smoke(tmp_path) -> None:
    assert stream_speed.main(["--smoke", "--folder", str(tmp_path)])["rounds"] == 1
