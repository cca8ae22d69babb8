"""Gradient of the activations: the reference, the whole product with W_dec, and Triton where there is a GPU.

    pytest benchmarks/bench_backward.py -k smoke

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


def dense(error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor) -> Tensor:
    return (error @ W_dec.T).gather(1, indices.long()) * (acts > 0)


def triton(*inputs: Tensor) -> Tensor:
    from saefast.triton_kernels.backward import grad_top_acts

    return grad_top_acts(*inputs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "grad_top_acts", [reference.grad_top_acts, dense, triton], ids=["reference", "dense", "triton"]
)
def bench_backward(
    benchmark: BenchmarkFixture, grad_top_acts: Callable[..., Tensor], shape: tuple[int, int, int, int]
) -> None:
    if grad_top_acts is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, D, F, K = shape
    torch.manual_seed(0)
    W_dec = reference.normalize_rows_(torch.randn(F, D, device=DEVICE))
    code = reference.topk(torch.randn(B, F, device=DEVICE), K)
    inputs = torch.randn(B, D, device=DEVICE), W_dec, *code

    exact = reference.grad_top_acts(inputs[0].double(), W_dec.double(), *code)
    torch.testing.assert_close(grad_top_acts(*inputs).double(), exact, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        grad_top_acts(*inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
