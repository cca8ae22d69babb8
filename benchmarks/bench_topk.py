"""Top-k with ReLU on the CPU: torch.topk (ties in any order, no ReLU), the reference and the C++ extension.

The reference and the extension also fix the order of ties, which torch.topk leaves open.
"""

import importlib

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
native = importlib.import_module("saefast.native")

SHAPES = {"small": (256, 1024, 8), "gpt2": (1024, 4608, 32), "smollm": (4096, 9216, 32)}  # B, F, K


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> tuple[Tensor, int]:
    """Pre-activations and k, after a check that what is timed agrees."""
    B, F, K = SHAPES[request.param]
    benchmark.group = f"topk {request.param} B={B} F={F} K={K} threads={torch.get_num_threads()}"
    pre_acts = torch.randn(B, F, generator=torch.Generator().manual_seed(0))
    want, got = reference.topk(pre_acts, K), native.topk(pre_acts, K)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(pre_acts.topk(K, dim=1).values.relu(), want[0])
    return pre_acts, K


def bench_torch_topk(benchmark: BenchmarkFixture, case: tuple[Tensor, int]) -> None:
    benchmark(torch.topk, *case, dim=1)


def bench_reference_topk(benchmark: BenchmarkFixture, case: tuple[Tensor, int]) -> None:
    benchmark(reference.topk, *case)


def bench_native_topk(benchmark: BenchmarkFixture, case: tuple[Tensor, int]) -> None:
    benchmark(native.topk, *case)
