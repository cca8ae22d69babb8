"""Entry sums, the gradient of a bias: groups (reference), index_add_, and Triton's where there is a GPU.

    pytest benchmarks/bench_sum_entries.py -k smoke

Each is compared with fp64 before it is timed.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 1024, 8), "demo": (1024, 4608, 32)}  # B, F, K
Groups = tuple[Tensor, Tensor, Tensor]


def index_add(groups: Groups, per_pair: Tensor) -> Tensor:
    offsets, pairs, _ = groups
    latents = torch.repeat_interleave(offsets.diff())
    return per_pair.new_zeros(len(offsets) - 1).index_add_(0, latents, per_pair.flatten()[pairs])


def triton(groups: Groups, per_pair: Tensor) -> Tensor:
    from saefast.triton_kernels.sum_entries import sum_entries

    return sum_entries(groups, per_pair)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "sum_entries", [reference.sum_entries, index_add, triton], ids=["reference", "index_add", "triton"]
)
def bench_sum_entries(
    benchmark: BenchmarkFixture, sum_entries: Callable[..., Tensor], shape: tuple[int, int, int]
) -> None:
    if sum_entries is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, F, K = shape
    torch.manual_seed(0)
    indices = torch.rand(B, F, device=DEVICE).argsort(dim=1)[:, :K].to(torch.int32).contiguous()
    per_pair = torch.rand(B, K, device=DEVICE)
    groups = reference.group_by_latent(per_pair + 1, indices, F)

    exact = reference.sum_entries(groups, per_pair.double())
    torch.testing.assert_close(sum_entries(groups, per_pair).double(), exact, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        sum_entries(groups, per_pair)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
