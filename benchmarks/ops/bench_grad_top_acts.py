"""Gradient of the activations: plain multiplies the error by all of W_dec and picks, the others read K rows a token.

    pytest benchmarks/ops/bench_grad_top_acts.py

The reference is the best formulation in stock ops, sampled_addmm. Compared with fp64 before anything is timed.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import (
    DEVICE,
    DTYPE,
    FEWER_SHAPES,
    Case,
    backends,
    close_to,
    exactly,
    random_code,
    stage,
    unit_rows,
)
from saefast import reference


def plain(error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor) -> Tensor:
    return (error @ W_dec.T).gather(1, indices.long()) * (acts > 0)


CONTENDERS = {"plain": plain, **backends("grad_top_acts")}


@pytest.fixture(scope="module", params=FEWER_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, D, F, _ = FEWER_SHAPES[request.param]
    torch.manual_seed(0)
    inputs = torch.randn(B, D, device=DEVICE).to(DTYPE), unit_rows(F, D), *random_code(shape)
    exact = exactly(reference.grad_top_acts, *inputs)
    # the rows of W_dec and of the error, the code, the result: what decode moves
    return Case("grad_top_acts", shape, inputs, close_to(exact), [stage("decode", shape)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_grad_top_acts(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
