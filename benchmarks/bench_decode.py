"""Decode and its error: K rows per token (reference), dense activations times W_dec, and Triton where there is a GPU.

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


def sparse(*inputs: Tensor) -> list[Tensor]:
    return (
        [reference.decode(*inputs)]
        if len(inputs) == 4
        else [*reference.decode_error(*inputs, inputs[0].dtype)]
    )


def dense(acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, *x: Tensor) -> list[Tensor]:
    x_hat = torch.addmm(b_dec, acts.new_zeros(len(acts), len(W_dec)).scatter_(1, indices.long(), acts), W_dec)
    return [x_hat - x[0], (x_hat - x[0]).square().sum(dim=1)] if x else [x_hat]


def triton(*inputs: Tensor) -> list[Tensor]:
    from saefast.triton_kernels.decode import decode, decode_error

    return [decode(*inputs)] if len(inputs) == 4 else [*decode_error(*inputs, inputs[0].dtype)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("with_error", [False, True], ids=["decode", "decode_error"])
@pytest.mark.parametrize("decode", [sparse, dense, triton], ids=["reference", "dense", "triton"])
def bench_decode(
    benchmark: BenchmarkFixture,
    decode: Callable[..., list[Tensor]],
    with_error: bool,
    shape: tuple[int, int, int, int],
) -> None:
    if decode is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, D, F, K = shape
    torch.manual_seed(0)
    W_dec = reference.normalize_rows_(torch.randn(F, D, device=DEVICE))
    inputs = *reference.topk(torch.randn(B, F, device=DEVICE), K), W_dec, torch.randn(D, device=DEVICE)
    if with_error:
        inputs = *inputs, torch.randn(B, D, device=DEVICE)

    exact = sparse(*(t.double() if t.is_floating_point() else t for t in inputs))
    for result, wanted in zip(decode(*inputs), exact, strict=True):
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        decode(*inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
