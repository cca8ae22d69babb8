"""Backward of the weights, Adam and unit norm: in one (`update_`), and the two halves that global-norm clipping needs.

    pytest benchmarks/ops/bench_update.py

Plain has dense activations and gradients, as autograd has them, and torch's fused Adam; the reference is the best formulation
in stock ops: embedding_bag over the entries sorted by latent, fused Adam. Everything that changes is compared with fp64
before anything is timed.
"""

from collections.abc import Callable
from typing import Any

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
from benchmarks.roofline import Stage, update_bytes
from saefast import reference, storage
from saefast.reference import Grads, Numbers
from saefast.storage import Vector, Weights

# the first step; a long one, so that an error of the update is one of the weights
NUMBERS = Numbers(0.1, 0.1, 1e-3, 1e-3, 0.9, 0.1, 0.999, 1e-3, 10, 1000, 0, 1, 0.1, 0.1, 1, 1)


def fresh(params: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> Weights:
    W_enc, W_dec, *biases = (p.to(dtype, copy=True) for p in params)
    matrices = (
        storage.allocate(W, "fp32", "fp32", DTYPE if dtype == torch.float32 else dtype)
        for W in (W_enc, W_dec)
    )
    return Weights(*matrices, *(Vector(b, *b.new_zeros(2, len(b))) for b in biases))


def values(weights: Weights) -> tuple[Tensor, ...]:
    return weights.enc.weight, weights.b_enc.value, weights.dec.weight, weights.b_dec.value


def plain_grads(weights: Weights, *inputs: Any) -> Grads:
    centred, error, acts, indices, _, _, scale, *_ = inputs
    W_dec = weights.dec.shadow
    dense = W_dec.new_zeros(len(acts), len(W_dec)).scatter_(1, indices.long(), acts.to(W_dec.dtype))
    grad_pre = error @ W_dec.T * (dense > 0)
    grad_W_enc, grad_b_enc = (
        scale * (grad_pre.T @ centred).float(),
        scale * grad_pre.sum(dim=0, dtype=torch.float32),
    )
    grad_W_dec = scale * (dense.T @ error).float()
    grad_W_dec = grad_W_dec - (grad_W_dec * weights.dec.weight).sum(dim=1, keepdim=True) * weights.dec.weight
    grad_b_dec = scale * error.sum(dim=0, dtype=torch.float32) - grad_b_enc @ weights.enc.weight
    return grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec


class PlainAdam:
    def __init__(self, weights: Weights) -> None:
        self.weights, (beta1, beta2) = weights, (NUMBERS.beta1, NUMBERS.beta2)
        self.adam = torch.optim.Adam(values(weights), NUMBERS.lr, (beta1, beta2), NUMBERS.eps, fused=True)

    def __call__(self, grads: Grads, *_: Any) -> tuple[Tensor, ...]:
        for param, grad in zip(values(self.weights), grads, strict=True):
            param.grad = grad
        self.adam.step()
        self.weights.dec.weight.div_(self.weights.dec.weight.norm(dim=1, keepdim=True))
        return values(self.weights)


class PlainUpdate(PlainAdam):
    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        return super().__call__(plain_grads(self.weights, *inputs))


def adam_formula(params: Grads, grads: Grads, exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor]) -> None:
    """What there is to fuse: Adam's few lines for each parameter."""
    n = NUMBERS
    for param, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        m.lerp_(grad, n.beta1_rest)
        v.mul_(n.beta2).addcmul_(grad, grad, value=n.beta2_rest)
        param -= n.lr * n.correction1 * m / ((v * n.correction2).sqrt() + n.eps)


def changing(op: Callable[..., Any]) -> Callable[[Weights], Callable[..., tuple[Tensor, ...]]]:
    """A contender around weights of its own, which gives what it changed."""

    def on(weights: Weights) -> Callable[..., tuple[Tensor, ...]]:
        def run(*inputs: Any) -> tuple[Tensor, ...]:
            op(weights, *inputs)
            return values(weights)

        return run

    return on


def grads_of(op: Callable[..., Any]) -> Callable[[Weights], Callable[..., Grads]]:
    return lambda weights: lambda *inputs: op(weights, *inputs)[0]


def of_backends(op: str, around: Callable[..., Any]) -> dict[str, Any]:
    return {name: run if isinstance(run, str) else around(run) for name, run in backends(op).items()}


FUSED = compiled(adam_formula)


def compiled_adam(weights: Weights) -> Callable[..., tuple[Tensor, ...]]:
    params, (enc, dec, b_enc, b_dec) = values(weights), weights
    moments = [
        [getattr(part, name) for part in (enc, b_enc, dec, b_dec)] for name in ("exp_avg", "exp_avg_sq")
    ]

    def run(grads: Grads, *_: Any) -> tuple[Tensor, ...]:
        FUSED(params, grads, *moments)
        # apart: inductor raises KeyError when it fuses the norm with the step (pytorch/pytorch#196570, torch 2.13)
        params[2].div_(params[2].norm(dim=1, keepdim=True))
        return params

    return run


CONTENDERS = {
    "update": {"plain": PlainUpdate, **of_backends("update_", changing)},
    "row_grads": {
        "plain": lambda weights: lambda *inputs: plain_grads(weights, *inputs),
        **of_backends("row_grads", grads_of),
    },
    "adam_rows": {
        "plain": PlainAdam,
        **of_backends("adam_rows_", changing),
        "compiled": FUSED if isinstance(FUSED, str) else compiled_adam,
    },
}
EVERY = [(op, shape) for op in CONTENDERS for shape in FEWER_SHAPES]
Start = tuple[Case, tuple[Tensor, ...]]


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def start(request: pytest.FixtureRequest) -> Start:
    """The case, and the parameters that every contender gets a copy of."""
    op, name = request.param
    shape = B, D, F, K = FEWER_SHAPES[name]
    torch.manual_seed(0)
    code = random_code(shape)
    params = *(unit_rows(F, D).float() for _ in range(2)), *(torch.randn(n, device=DEVICE) for n in (F, D))
    centred, error = (torch.randn(B, D, device=DEVICE).to(DTYPE) for _ in range(2))
    groups, scale = reference.group_by_latent(*code, F), torch.tensor(1e-4, device=DEVICE)
    numbers, step = torch.tensor(NUMBERS, device=DEVICE), torch.ones((), dtype=torch.int64, device=DEVICE)
    inputs = centred, error, *code, None, groups, scale, None, numbers
    exact, (grads, _) = (
        fresh(params, torch.float64),
        exactly(reference.row_grads, fresh(params, torch.float64), *inputs),
    )
    moved, touched = 4 * F * D, stage("update", shape)
    work = {
        "update": touched,
        "row_grads": Stage(
            "", 6 * B * K * D, touched.bytes - update_bytes(D, F, DTYPE.itemsize, "fp32", "fp32") + 3 * moved
        ),
        "adam_rows": Stage("", 32 * F * D, update_bytes(D, F, DTYPE.itemsize, "fp32", "fp32") + 2 * moved),
    }
    if op == "row_grads":
        return Case(op, shape, inputs, close_to(*grads), [work[op]]), params
    exactly(reference.update_, exact, *inputs, step)
    if op == "adam_rows":
        inputs = tuple(grad.float() for grad in grads), torch.ones((), device=DEVICE), numbers, step
    else:
        inputs = *inputs, step
    return Case(op, shape, inputs, close_to(*values(exact)), [work[op]]), params


@pytest.mark.parametrize("contender", CONTENDERS["adam_rows"])
def bench_update(contest, start: Start, contender: str) -> None:
    case, params = start
    makers = CONTENDERS[case.op] | (
        {} if case.op == "adam_rows" else {"compiled": "gathers: nothing to fuse"}
    )
    made = {
        name: make if isinstance(make := makers[name], str) else make(fresh(params))
        for name in dict.fromkeys(("plain", contender))
    }
    contest(case, made, contender)
