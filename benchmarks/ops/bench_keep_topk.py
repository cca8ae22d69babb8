"""AuxK's selection: the k largest among the dead latents, as a dense matrix; compared with the reference to the bit.

    pytest benchmarks/ops/bench_keep_topk.py

A quarter of the latents is dead, and d_in / 2 of them are kept (Gao et al. 2024).
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, DTYPE, FEWER_SHAPES, Case, backends, equal_to
from benchmarks.roofline import Stage
from saefast import reference


def plain(pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
    dead = pre_acts[:, : int(count)]
    values, indices = dead.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre_acts).scatter_(1, indices, values.relu_())


CONTENDERS = {"plain": plain, **backends("keep_topk")}


@pytest.fixture(scope="module", params=FEWER_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    B, D, F, _ = FEWER_SHAPES[request.param]
    n_dead, k = F // 4, D // 2
    torch.manual_seed(0)
    values = torch.randn(B, n_dead, device=DEVICE).argsort(dim=1) - n_dead / 2  # no ties
    inputs = values.to(DTYPE if n_dead <= 256 else torch.float32), k, torch.tensor(n_dead, device=DEVICE)
    read_and_written = Stage("keep_topk", B * n_dead, 2 * inputs[0].itemsize * B * n_dead)
    want = reference.keep_topk(*inputs)
    return Case("keep_topk", (B, D, n_dead, k), inputs, lambda got: equal_to(want)([got]), [read_and_written])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_keep_topk(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
