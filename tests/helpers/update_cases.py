"""Inputs and comparisons for the tests of the Triton update."""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference, storage
from saefast.reference import Aux, Given, Numbers
from saefast.storage import Matrix, Vector, Weights
from saefast.triton_kernels.update import (
    UpdateConfig,
    update_,
)
from tests.helpers.kernels import DEVICE

FP32 = ("fp32", "fp32", torch.float32)
SMALL = UpdateConfig(num_warps=1, maxnreg=128, programs=3, R=2, chunk=4, stages=3)


class Case(NamedTuple):
    """The arguments after `weights`."""

    centred: Tensor
    error: Tensor
    acts: Tensor
    indices: Tensor
    row_offsets: Tensor | None
    groups: tuple[Tensor, Tensor, Tensor]
    grad_scale: Tensor
    aux: Aux | None
    numbers: Tensor


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def numbers_at(
    step: int, l1: float = 0.0, bias_norm: float = 1.0, unit: float = 1.0, tied: float = 1.0
) -> Tensor:
    """No two parameters have the same learning rate."""
    rates, corrections = (2e-2, 5e-2), (1 / (1 - 0.9**step), 1 / (1 - 0.99**step))
    return torch.tensor(
        Numbers(
            1e-2, 3e-2, 1e-6, 1e-5, 0.9, 0.1, 0.99, 0.01, *corrections, l1, bias_norm, *rates, unit, tied
        ),
        device=DEVICE,
    )


def step_of(n: int) -> Tensor:
    return torch.tensor(n, device=DEVICE)


def case_of(
    acts: Tensor,
    indices: Tensor,
    F: int,
    D: int,
    row_offsets: Tensor | None = None,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    aux: Aux | None = None,
    D_out: int | None = None,
    parts: int = 1,
    **numbers: float,
) -> Case:
    """A code of `parts` parts, each of as many rows as there are tokens."""
    rows = len(acts) if row_offsets is None else len(row_offsets) - 1
    groups = reference.group_by_latent(acts, indices, F, row_offsets)
    centred = random(rows // parts, D, seed=seed + 10).to(dtype)
    error = random(rows, D_out or D, seed=seed + 20).to(dtype)
    return Case(
        centred,
        error,
        acts,
        indices,
        row_offsets,
        groups,
        torch.tensor(0.3, device=DEVICE),
        aux,
        numbers_at(3, **numbers),
    )


def topk_case(B: int, D: int, F: int, K: int, **kwargs: object) -> Case:
    """About half of the entries are active."""
    pre_acts = random(B, F, seed=5) - 0.5
    return case_of(*reference.topk(pre_acts, K), F, D, **kwargs)


def given_of(case: Case, F: int, L: int = 1, seed: int = 60) -> Given:
    """Of both signs; every third latent is not pushed."""
    grad_pre = random(*case.acts.shape, seed=seed)
    bias, push, pull = (random(*size, seed=seed + i) for i, size in enumerate([(F,), (F,), (F, L)], 1))
    push[::3] = 0
    return Given(grad_pre, bias, push, case.centred.float().sum(dim=0), pull)


def weights_of(
    F: int, D: int, format: tuple[str, str, torch.dtype] = FP32, D_out: int | None = None
) -> Weights:
    """A state that two steps of the reference left."""
    D_out = D_out or D
    W_enc, W_dec = random(F, D, seed=1) / D**0.5, reference.normalize_rows_(random(F, D_out, seed=2))
    vectors = [Vector(random(n, seed=n), *torch.zeros(2, n, device=DEVICE)) for n in (F, D_out)]
    weights = Weights(storage.allocate(W_enc, *format), storage.allocate(W_dec, *format), *vectors)
    for step in (1, 2):
        case = topk_case(4 * F, D, F, min(F, 3), seed=30 * step, D_out=D_out)
        numbers = numbers_at(step, tied=float(D_out == D))
        reference.update_(weights, *case._replace(numbers=numbers), step_of(step))
    return weights


def clone(weights: Weights) -> Weights:
    def of_matrix(matrix: Matrix) -> Matrix:
        copy = Matrix(*(None if t is None else t.clone() for t in matrix))
        return copy._replace(shadow=copy.weight) if matrix.shadow is matrix.weight else copy

    vectors = [Vector(*(t.clone() for t in vector)) for vector in weights[2:]]
    return Weights(of_matrix(weights.enc), of_matrix(weights.dec), *vectors)


def tensors(weights: Weights) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, fields in zip(weights._fields, weights)
        for name, tensor in fields._asdict().items()
        if tensor is not None
    }


def assert_near(got: Tensor, want: Tensor, name: str = "", rtol: float = 1e-5) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, name
    error, largest = (got - want).abs().max().item(), want.abs().max().item()
    assert error <= rtol * largest, f"{name}: {error:.2e} of {largest:.2e}"  # NaN is not <= anything


def assert_same(got: Weights, want: Weights) -> None:
    low = want.enc.low
    split = low is not None
    rtol = 1e-5
    if low is None and want.enc.weight.dtype == torch.bfloat16:
        rtol = 1e-2
    elif low is not None and low.dtype == torch.int8:  # stochastically rounded to one of two neighbours
        rtol = 2**-15
    for name, one in tensors(got).items():
        other = tensors(want)[name]
        if one.dtype == torch.float32:
            assert_near(one, other, name)
        elif not (split and name.endswith(("weight", "low", "shadow"))):
            kept = (t.view(torch.int16) if t.is_floating_point() else t for t in (one, other))
            off = torch.sub(*(t.int() for t in kept)).abs()
            assert off.max() <= 1, f"{name}: {off.max()} off"
            assert off.sum() <= max(1, off.numel() // 50), f"{name}: {off.sum()} of {off.numel()} off"
    for part in ("enc", "dec"):
        one, other = (storage.load_weight(getattr(w, part)) for w in (got, want))
        assert_near(one, other, part, rtol=rtol)
        assert (getattr(got, part).shadow is getattr(got, part).weight) == (
            getattr(want, part).shadow is getattr(want, part).weight
        )


def check(
    case: Case, F: int, D: int, config: UpdateConfig = SMALL, steps: int = 2, given: Given | None = None
) -> Weights:
    """Steps on `case` in fp32 by both -> the weights."""
    got = weights_of(F, D, D_out=case.error.shape[1])
    want = clone(got)
    for step in range(3, 3 + steps):
        case = case._replace(numbers=torch.cat([numbers_at(step)[:10], case.numbers[10:]]))
        squared = update_(got, *case, step_of(step), given, config=config)
        assert_near(squared, reference.update_(want, *case, step_of(step), given), "squared norm")
        assert_same(got, want)
    return got
