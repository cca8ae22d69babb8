"""Centre: x - b_dec and the variance of the batch, compared with fp64 before it is timed.

pytest benchmarks/ops/bench_centre.py
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, DTYPE, SHAPES, Case, backends, close_to, compiled, exactly, stage
from saefast import reference


def plain(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (x - b_dec).to(dtype), (x - x.mean(dim=0)).square().sum()


CONTENDERS = {"plain": plain, "compiled": compiled(plain), **backends("centre")}


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, D, _, _ = SHAPES[request.param]
    torch.manual_seed(0)
    x, b_dec = torch.randn(B, D, device=DEVICE) + 3, torch.randn(D, device=DEVICE)
    exact = exactly(reference.centre, x, b_dec, torch.float64)
    return Case("centre", shape, (x, b_dec, DTYPE), close_to(*exact), [stage("centre", shape)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_centre(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
