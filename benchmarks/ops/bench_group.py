"""Grouping by latent: which tokens each latent is active in; compared with the reference to the bit before it is timed.

    pytest benchmarks/ops/bench_group.py

Plain is one stable sort of the indices. In "hot" four latents are active in every token.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, SHAPES, Case, backends, equal_to, stage
from saefast import reference

N_HOT = {"hot": 4}
ALL_SHAPES = SHAPES | {"hot": list(SHAPES.values())[1]}


def plain(acts: Tensor, indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    ordered, pairs = torch.where(acts > 0, indices, d_sae).flatten().sort(stable=True)
    latents = torch.arange(d_sae + 1, dtype=torch.int32, device=acts.device)
    return torch.searchsorted(ordered, latents, out_int32=True), pairs.int(), (pairs // acts.shape[1]).int()


CONTENDERS = {"plain": plain, **backends("group_by_latent")}


@pytest.fixture(scope="module", params=ALL_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, K = ALL_SHAPES[request.param]
    n_hot = N_HOT.get(request.param, 0)
    torch.manual_seed(0)
    indices = torch.randint(n_hot, F, (B, K), dtype=torch.int32, device=DEVICE)
    indices[:, :n_hot] = torch.arange(n_hot, device=DEVICE)
    inputs = torch.ones(B, K, device=DEVICE), indices, F
    op = "group_by_latent" + (" hot" if n_hot else "")
    return Case(op, shape, inputs, equal_to(*reference.group_by_latent(*inputs)), [stage("group", shape)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_group(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
