"""Grouping by latent: the reference, one stable sort of the indices, and the Triton kernels where there is a GPU.

    pytest benchmarks/bench_group.py -k smoke

Each is compared with the reference before it is timed. In `hot` some latents are active in every token.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {  # B, F, K, latents active in every token
    "smoke": (256, 1024, 8, 1),
    "demo": (1024, 4608, 32, 0),
    "large": (8192, 24576, 32, 0),
    "hot": (8192, 24576, 32, 4),
}
Groups = tuple[Tensor, Tensor, Tensor]


def sort(acts: Tensor, indices: Tensor, d_sae: int) -> Groups:
    latents = torch.where(acts > 0, indices, d_sae).flatten()
    ordered, pairs = latents.sort(stable=True)
    latents = torch.arange(d_sae + 1, dtype=torch.int32, device=acts.device)
    return torch.searchsorted(ordered, latents, out_int32=True), pairs.int(), (pairs // acts.shape[1]).int()


def triton(acts: Tensor, indices: Tensor, d_sae: int) -> Groups:
    from saefast.triton_kernels.group import group_by_latent

    return group_by_latent(acts, indices, d_sae)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "group", [reference.group_by_latent, sort, triton], ids=["reference", "sort", "triton"]
)
def bench_group(
    benchmark: BenchmarkFixture, group: Callable[..., Groups], shape: tuple[int, int, int, int]
) -> None:
    if group is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, F, K, n_hot = shape
    torch.manual_seed(0)
    indices = torch.randint(n_hot, F, (B, K), dtype=torch.int32, device=DEVICE)
    indices[:, :n_hot] = torch.arange(n_hot, device=DEVICE)
    acts = torch.ones(B, K, device=DEVICE)

    for result, expected in zip(
        group(acts, indices, F), reference.group_by_latent(acts, indices, F), strict=True
    ):
        assert torch.equal(result, expected)

    def timed() -> None:
        group(acts, indices, F)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
