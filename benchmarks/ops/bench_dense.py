"""The products of a code kept as a matrix (ReLU, Gated, JumpReLU) and what is fused with them.

    pytest benchmarks/ops/bench_dense.py

Plain is in the format of the products, in 16 bits on a GPU. Compared with fp64 before anything is timed.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import (
    DEVICE,
    DTYPE,
    FEWER_SHAPES,
    TOLERANCE,
    Case,
    backends,
    close_to,
    compiled,
    exactly,
    unit_rows,
)
from benchmarks.roofline import Stage
from saefast import reference


def encode_dense(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    return torch.addmm(b_enc.to(centred.dtype), centred, W_enc.T)


def relu_encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acts = encode_dense(centred, W_enc, b_enc).relu_()
    return acts, acts.sum(dtype=torch.float32), (acts > 0).sum(dim=0, dtype=torch.int32)


def dense_error(acts: Tensor, W_dec: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    error = acts @ W_dec - target
    return error, error.square().sum(dim=1, dtype=torch.float32)


def dense_grad_acts(error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
    return (error @ W_dec.T + addend.to(error.dtype)) * (acts > 0)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    return (left.T @ right).float()


PLAIN = {run.__name__: run for run in (encode_dense, relu_encode, dense_error, dense_grad_acts, outer_sum)}
ALONE = {"encode_dense", "outer_sum"}  # a product and nothing to fuse with it
CONTENDERS = {
    op: {
        "plain": run,
        "compiled": "a product alone" if op in ALONE else compiled(run),
        **backends(op),
    }
    for op, run in PLAIN.items()
}
EVERY = [(op, shape) for op in PLAIN for shape in FEWER_SHAPES]


def relu_of(exact: Tensor) -> Callable[..., None]:
    """A check: what is within rounding of 0 may count as active or not."""
    slack = TOLERANCE * float(exact.abs().max())
    least, most = ((exact > bar).sum(dim=0) for bar in (slack, -slack))
    alike = close_to(exact.relu(), exact.relu().sum())

    def check(got: tuple[Tensor, Tensor, Tensor]) -> None:
        *acts_and_sum, counts = got
        alike(acts_and_sum)
        assert (least <= counts).all() and (counts <= most).all(), "active tokens of a latent"

    return check


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    op, name = request.param
    B, D, F, _ = FEWER_SHAPES[name]
    torch.manual_seed(0)
    x, W = torch.randn(B, D, device=DEVICE).to(DTYPE), unit_rows(F, D)
    acts = torch.randn(B, F, device=DEVICE).relu_().to(DTYPE)
    inputs = {
        "dense_error": (acts, W, x),
        "dense_grad_acts": (x, W, acts, torch.ones((), device=DEVICE)),
        "outer_sum": (acts, x),
    }.get(op, (x, W, torch.randn(F, device=DEVICE) / 10))
    exact = exactly(getattr(reference, op), *inputs)
    # both operands and the result once, and the activations as a mask
    n_bytes = DTYPE.itemsize * (B * D + F * D + (2 if op == "dense_grad_acts" else 1) * B * F)
    check = close_to(*((exact,) if torch.is_tensor(exact) else exact))
    if op == "relu_encode":
        check = relu_of(encode_dense(*(t.double() for t in inputs)))
    return Case(op, (B, D, F), inputs, check, [Stage(op, 2 * B * D * F, n_bytes)])


@pytest.mark.parametrize("contender", CONTENDERS["relu_encode"])
def bench_dense(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS[case.op], contender)
