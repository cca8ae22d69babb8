"""Everything above a threshold: nonzero (reference), and the Triton kernels, without and with the maxima of groups.

    pytest benchmarks/bench_threshold.py -k smoke

Each is compared with the reference before it is timed. The kernels are given room for what is found, so that unlike
the reference they wait for nothing; the maxima are not timed, as the encoder has them.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 1024), "demo": (1024, 4608)}  # B, F
SHARE = 0.007  # of the entries is above
Code = tuple[Tensor, Tensor, Tensor]


def nonzero(pre_acts: Tensor, threshold: Tensor, capacity: int, maxima: Tensor) -> Code:
    return reference.above_threshold(pre_acts, threshold)


def triton(pre_acts: Tensor, threshold: Tensor, capacity: int, maxima: Tensor | None = None) -> Code:
    from saefast.triton_kernels.threshold import above_threshold

    return above_threshold(pre_acts, threshold, capacity, maxima)


def triton_rows(pre_acts: Tensor, threshold: Tensor, capacity: int, maxima: Tensor) -> Code:
    return triton(pre_acts, threshold, capacity)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "above", [nonzero, triton_rows, triton], ids=["reference", "triton", "triton maxima"]
)
def bench_threshold(benchmark: BenchmarkFixture, above: Callable[..., Code], shape: tuple[int, int]) -> None:
    if above is not nonzero and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    torch.manual_seed(0)
    pre_acts = torch.randn(shape, device=DEVICE)
    threshold = pre_acts.flatten().kthvalue(int((1 - SHARE) * pre_acts.numel())).values
    expected = reference.above_threshold(pre_acts, threshold)
    inputs = pre_acts, threshold, len(expected[0]), pre_acts.view(len(pre_acts), -1, 64).amax(2)
    for got, want in zip(above(*inputs), expected, strict=True):
        assert torch.equal(got, want)

    def timed() -> None:
        above(*inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
