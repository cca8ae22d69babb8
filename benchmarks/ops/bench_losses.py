"""The numbers of a loss: plain is an op of torch for each of them.

    pytest benchmarks/ops/bench_losses.py

Compared with fp64 before anything is timed.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, SHAPES, Case, backends, close_to, exactly
from benchmarks.roofline import Stage
from saefast import reference


def plain(squares: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
    total, scale = squares.sum(), 1 / variance
    loss = scale * total
    return total, loss, 2 * scale + 0 * loss, total / variance


CONTENDERS = {"plain": plain, **backends("losses")}


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, *_ = SHAPES[request.param]
    torch.manual_seed(0)
    squares = torch.rand(B, device=DEVICE)
    inputs = squares, 2 * squares.sum()
    check = close_to(*exactly(reference.losses, *inputs))
    return Case("losses", shape, inputs, check, [Stage("losses", B, 4 * B)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_losses(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
