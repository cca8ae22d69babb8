"""Centre: the reference, and the Triton kernels where there is a GPU.

    pytest benchmarks/bench_centre.py -k smoke

Each is compared with fp64 before it is timed.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 64), "demo": (1024, 576), "large": (8192, 2304)}  # B, D


def triton(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from saefast.triton_kernels.centre import centre

    return centre(x, b_dec, dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("centre", [reference.centre, triton], ids=["reference", "triton"])
def bench_centre(
    benchmark: BenchmarkFixture, centre: Callable[..., tuple[Tensor, Tensor]], shape: tuple[int, int]
) -> None:
    if centre is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    torch.manual_seed(0)
    x, b_dec = torch.randn(shape, device=DEVICE) + 3, torch.randn(shape[1], device=DEVICE)

    centred, variance = centre(x, b_dec, torch.float32)
    exact, exact_variance = reference.centre(x.double(), b_dec.double(), torch.float64)
    torch.testing.assert_close(centred.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.double(), exact_variance, rtol=1e-5, atol=0)

    def timed() -> None:
        centre(x, b_dec, torch.float32)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
