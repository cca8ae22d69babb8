"""Decode: K rows per token (reference), dense activations times W_dec, and the Triton kernel where there is a GPU.

    pytest benchmarks/bench_decode.py -k smoke

Each is compared with fp64 before it is timed.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 64, 1024, 8), "demo": (1024, 576, 4608, 32)}  # B, D, F, K


def dense(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    acts = top_acts.new_zeros(len(top_acts), len(W_dec)).scatter_(1, top_indices.long(), top_acts)
    return torch.addmm(b_dec, acts, W_dec)


def triton(*inputs: Tensor) -> Tensor:
    from saefast.triton_kernels import decode

    return decode(*inputs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("decode", [reference.decode, dense, triton], ids=["reference", "dense", "triton"])
def bench_decode(
    benchmark: BenchmarkFixture, decode: Callable[..., Tensor], shape: tuple[int, int, int, int]
) -> None:
    if decode is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, D, F, K = shape
    torch.manual_seed(0)
    pre_acts = torch.randn(B, F, device=DEVICE)
    W_dec = reference.normalize_rows_(torch.randn(F, D, device=DEVICE))
    inputs = *reference.topk(pre_acts, K), W_dec, torch.randn(D, device=DEVICE)

    exact = reference.decode(*(t.double() if t.is_floating_point() else t for t in inputs))
    torch.testing.assert_close(decode(*inputs).double(), exact, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        decode(*inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
