"""BatchTopK: sort of the flat batch (reference), torch.topk of it, and the Triton kernels where there is a GPU.

    pytest benchmarks/bench_batch_topk.py -k smoke

Each is compared with the reference before it is timed. torch.topk leaves the order of ties open and does not say which
token an entry belongs to: the sort of its positions, the row offsets and the ReLU are timed with it.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 1024, 8), "demo": (1024, 4608, 32)}  # B, F, K
Code = tuple[Tensor, Tensor, Tensor]


def flat_topk(pre_acts: Tensor, k: int) -> Code:
    B, F = pre_acts.shape
    chosen = pre_acts.flatten().topk(B * k, sorted=False).indices.sort().values
    row_offsets = torch.searchsorted(chosen, torch.arange(B + 1, device=DEVICE) * F, out_int32=True)
    return pre_acts.flatten()[chosen].relu(), (chosen % F).to(torch.int32), row_offsets


def triton(pre_acts: Tensor, k: int) -> Code:
    from saefast.triton_kernels.batch_topk import batch_topk

    return batch_topk(pre_acts, k)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "batch_topk", [reference.batch_topk, flat_topk, triton], ids=["reference", "torch.topk", "triton"]
)
def bench_batch_topk(
    benchmark: BenchmarkFixture, batch_topk: Callable[..., Code], shape: tuple[int, int, int]
) -> None:
    if batch_topk is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, F, k = shape
    torch.manual_seed(0)
    values = torch.linspace(-3, 3, B * F, device=DEVICE)  # no ties
    pre_acts = values[torch.randperm(B * F, device=DEVICE)].view(B, F)

    for got, want in zip(batch_topk(pre_acts, k), reference.batch_topk(pre_acts, k), strict=True):
        assert torch.equal(got, want)

    def timed() -> None:
        batch_topk(pre_acts, k)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
