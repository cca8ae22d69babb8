"""Encode: the product with W_enc and the selection from it, for TopK, BatchTopK, a threshold and groups.

    pytest benchmarks/ops/bench_encode.py

"best" is the best that stock PyTorch has for TopK: one output of the product that is used again and again, and values in no
order. Whatever is selected must score above the bar of the fp64 pre-activations, and what is not below it, up to rounding.
The floor is that of the product in the format of the operands plus the selection; the native encoder screens latents in
products of bytes, and may beat it. `bench_selection` has the native encode_topk in the place of plain: the times of the other
selections of as many entries (a threshold for each latent, as JumpReLU has it) over its own. On a GPU compare "triton" with
"cublas" over d_in, between which `encode_route` decides.
"""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.ops.bench_batch_topk import plain_batch_topk
from benchmarks.ops.bench_threshold import plain_threshold
from benchmarks.ops.contest import (
    DEVICE,
    DTYPE,
    FEWER_SHAPES,
    NO_GPU,
    ON_GPU,
    SHAPES,
    TOLERANCE,
    Case,
    backends,
    stage,
    unit_rows,
)

Code = tuple[Tensor, ...]


def pre_acts(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    return torch.addmm(b_enc.to(centred.dtype), centred, W_enc.T)


def topk(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    values, indices = pre_acts(centred, W_enc, b_enc).topk(k, dim=1)
    return values.relu(), indices


class BestTopk:
    memory: Tensor | None = None

    def __call__(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
        shape = len(centred), len(W_enc)
        if self.memory is None or self.memory.shape != shape:
            self.memory = centred.new_empty(shape)
        torch.addmm(b_enc.to(centred.dtype), centred, W_enc.T, out=self.memory)
        values, indices = self.memory.topk(k, dim=1, sorted=False)
        return values.relu_(), indices


def batch_topk(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    return plain_batch_topk(pre_acts(centred, W_enc, b_enc), k)


def threshold(centred: Tensor, W_enc: Tensor, b_enc: Tensor, bar: Tensor, _: int) -> Code:
    return plain_threshold(pre_acts(centred, W_enc, b_enc), bar)


def group_max(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    groups = pre_acts(centred, W_enc, b_enc).unflatten(1, (k, -1))
    values, places = groups.max(dim=2)
    return values.relu(), places + groups.shape[2] * torch.arange(k, device=DEVICE)


TOPK = backends("encode_topk")
ROUTES = {
    f"triton {route}": NO_GPU if isinstance(run := TOPK["triton"], str) else partial(run, route=route)
    for route in ("triton", "cublas")
}
NOT_HERE = dict.fromkeys(("best", *ROUTES), "for TopK only")
CONTENDERS = {
    "encode_topk": {"plain": topk, "best": BestTopk(), **TOPK, **ROUTES},
    "encode_batch_topk": {"plain": batch_topk, **backends("encode_batch_topk"), **NOT_HERE},
    "encode_threshold": {"plain": threshold, **backends("encode_threshold"), **NOT_HERE},
    "encode_group_max": {"plain": group_max, **backends("encode_group_max"), **NOT_HERE},
}
EVERY = [(op, shape) for op in CONTENDERS for shape in (SHAPES if op == "encode_topk" else FEWER_SHAPES)]


def above(bar: Tensor, exact: Tensor) -> Callable[[Code], None]:
    """bar [B, 1], [B, F] or [], exact [B, F] -> a check: the code is of what scores above the bar."""
    slack = TOLERANCE * float(exact.abs().max())

    def check(code: Code) -> None:
        acts, indices, *offsets = code
        each = offsets[0].diff() if offsets else indices.shape[1]
        tokens = torch.arange(len(exact), device=DEVICE).repeat_interleave(each)
        acts, latents = (t.flatten()[: len(tokens)] for t in (acts, indices.long()))
        chosen = torch.zeros_like(exact, dtype=torch.bool)
        chosen[tokens, latents] = True
        assert chosen.sum() == len(tokens), "a latent is listed twice"
        assert (acts.double() - exact[tokens, latents].relu()).abs().max() <= slack
        assert not (chosen & (exact < bar - slack)).any(), "selected below the bar"
        assert not (~chosen & (exact > bar + slack)).any(), "left out above the bar"

    return check


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    op, name = request.param
    shape = B, D, F, K = SHAPES[name]
    torch.manual_seed(0)
    centred, W_enc, b_enc = (
        torch.randn(B, D, device=DEVICE).to(DTYPE),
        unit_rows(F, D),
        torch.randn(F, device=DEVICE) / 10,
    )
    exact = pre_acts(centred.double(), W_enc.double(), b_enc.double())
    if op == "encode_topk":
        bar, last = exact.kthvalue(F - K + 1, dim=1, keepdim=True).values, [K]
    elif op == "encode_group_max":
        bar, last = exact.unflatten(1, (K, -1)).amax(dim=2).repeat_interleave(F // K, dim=1), [K]
    else:
        bar = exact.flatten().kthvalue(B * (F - K) + 1).values
        last = [K] if op == "encode_batch_topk" else [bar.float(), B * K + B]  # room for what rounding adds
    return Case(
        op,
        shape,
        (centred, W_enc, b_enc, *last),
        above(bar, exact),
        [stage("encode", shape), stage("select", shape)],
    )


@pytest.mark.parametrize("contender", CONTENDERS["encode_topk"])
def bench_encode(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS[case.op], contender)


@pytest.fixture(scope="module", params=[name for name in SHAPES if not ON_GPU])
def selection(request: pytest.FixtureRequest) -> Case:
    """The operands, k and thresholds [F] that as many entries pass; every result with the name of its op."""
    shape = B, D, F, K = SHAPES[request.param]
    torch.manual_seed(0)
    centred, W_enc, b_enc = torch.randn(B, D), unit_rows(F, D), torch.randn(F) / 10
    exact = pre_acts(centred.double(), W_enc.double(), b_enc.double())
    uneven = 0.8 + 0.4 * torch.rand(F, dtype=torch.float64)
    bounds = uneven * (exact / uneven).flatten().kthvalue(B * (F - K) + 1).values
    groups = exact.unflatten(1, (K, -1)).amax(dim=2).repeat_interleave(F // K, dim=1)
    checks = {
        "encode_topk": above(exact.kthvalue(F - K + 1, dim=1, keepdim=True).values, exact),
        "encode_batch_topk": above(exact.flatten().kthvalue(B * (F - K) + 1).values, exact),
        "encode_threshold": above(bounds, exact),
        "encode_group_max": above(groups, exact),
    }
    inputs = centred, W_enc, b_enc, K, bounds.float()
    costs = [stage("encode", shape), stage("select", shape)]
    return Case("selection", shape, inputs, lambda named: checks[named[0]](named[1]), costs)


def named(op: str, ops: Mapping[str, Callable[..., Code] | str]) -> Callable[..., tuple[str, Code]] | str:
    """The native op as a contender, with its name before its result."""
    run = ops["native"]
    if isinstance(run, str):
        return run
    which = 4 if op == "encode_threshold" else 3
    return lambda *inputs: (op, run(*inputs[:3], inputs[which]))


SELECTIONS = {op: named(op, ops) for op, ops in CONTENDERS.items()}


@pytest.mark.skipif(ON_GPU, reason="what is compared is the native encoder")
@pytest.mark.parametrize("contender", CONTENDERS)
def bench_selection(contest, selection: Case, contender: str) -> None:
    contest(selection, {"plain": SELECTIONS["encode_topk"], **SELECTIONS}, contender)
