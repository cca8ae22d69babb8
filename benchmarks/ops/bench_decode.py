"""Decode, and its error: plain multiplies dense activations by W_dec, the others read the K rows of a token.

    pytest benchmarks/ops/bench_decode.py

The reference is the best formulation in stock ops, torch's embedding_bag. Compared with fp64 before anything is timed.
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
    compiled,
    exactly,
    random_code,
    stage,
    unit_rows,
)
from saefast import reference


def plain_decode(acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    dense = W_dec.new_zeros(len(acts), len(W_dec)).scatter_(1, indices.long(), acts.to(W_dec.dtype))
    return torch.addmm(b_dec.to(W_dec.dtype), dense, W_dec)


def plain_error(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    *code_and_weights, x, dtype = inputs
    error = plain_decode(*code_and_weights) - x
    return error.to(dtype), error.square().sum(dim=1)


CONTENDERS = {
    "decode": {"plain": plain_decode, "compiled": "a product alone", **backends("decode")},
    "decode_error": {"plain": plain_error, "compiled": compiled(plain_error), **backends("decode_error")},
}
EVERY = [(op, shape) for op in CONTENDERS for shape in FEWER_SHAPES]


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    op, name = request.param
    shape = B, D, F, _ = FEWER_SHAPES[name]
    torch.manual_seed(0)
    inputs = *random_code(shape), unit_rows(F, D), torch.randn(D, device=DEVICE)
    if op == "decode":
        check = close_to(exactly(reference.decode, *inputs))
    else:
        inputs = *inputs, torch.randn(B, D, device=DEVICE)
        check = close_to(*exactly(reference.decode_error, *inputs, torch.float64))
        inputs = *inputs, DTYPE
    return Case(op, shape, inputs, check, [stage("decode", shape)])


@pytest.mark.parametrize("contender", CONTENDERS["decode"])
def bench_decode(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS[case.op], contender)
