"""Row sums, the gradient of a weight matrix: groups (reference), index_add_, and Triton's where there is a GPU.

    pytest benchmarks/bench_sum_rows.py -k smoke

Each is compared with fp64 before it is timed. `index_add_` gets the contributions of all entries as one [B * K, D]
tensor, as sparsify builds them.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference
from saefast.reference_update import sum_rows as by_groups

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 64, 1024, 8), "demo": (1024, 576, 4608, 32)}  # B, D, F, K
Groups = tuple[Tensor, Tensor, Tensor]


def index_add(groups: Groups, per_pair: Tensor, rows: Tensor) -> Tensor:
    offsets, pairs, tokens = groups
    latents = torch.repeat_interleave(offsets.diff())
    contributions = per_pair.flatten()[pairs, None] * rows[tokens]
    return rows.new_zeros(len(offsets) - 1, rows.shape[1]).index_add_(0, latents, contributions)


def triton(groups: Groups, per_pair: Tensor, rows: Tensor) -> Tensor:
    from saefast.triton_kernels.sum_rows import sum_rows

    return sum_rows(groups, per_pair, rows)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sum_rows", [by_groups, index_add, triton], ids=["reference", "index_add", "triton"])
def bench_sum_rows(
    benchmark: BenchmarkFixture, sum_rows: Callable[..., Tensor], shape: tuple[int, int, int, int]
) -> None:
    if sum_rows is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, D, F, K = shape
    torch.manual_seed(0)
    indices = torch.rand(B, F, device=DEVICE).argsort(dim=1)[:, :K].to(torch.int32).contiguous()
    per_pair, rows = torch.rand(B, K, device=DEVICE), torch.randn(B, D, device=DEVICE)
    groups = reference.group_by_latent(per_pair + 1, indices, F)

    exact = by_groups(groups, per_pair.double(), rows.double())
    torch.testing.assert_close(sum_rows(groups, per_pair, rows).double(), exact, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        sum_rows(groups, per_pair, rows)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
