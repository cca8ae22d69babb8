"""States and codes for the tests of the C++ update, and how near it has to be to the specification in fp64."""

import torch
from torch import Tensor

import saefast
from saefast import reference
from saefast.engine.state import State
from saefast.reference import Aux, Given, Numbers
from saefast.storage import Vector, Weights, allocate
from tests.helpers.sparse_codes import fixed_code, ragged_code
from tests.helpers.steps import numbers_at, plan_of

CODES = {
    "fixed": lambda n: fixed_code(13, n, min(5, n)),
    "k = 1": lambda n: fixed_code(13, n, 1),
    "k = d_sae": lambda n: fixed_code(13, n, n),
    "one row": lambda n: fixed_code(1, n, min(3, n)),
    "no row": lambda n: fixed_code(0, n, 2),
    "ragged": lambda n: ragged_code([0, 3, n, 1, 0, 2], n),
    "nothing active": lambda n: (torch.zeros(9, 4), torch.zeros(9, 4, dtype=torch.int32), None),
    "a hot latent": lambda n: (torch.rand(90, 1) + 0.1, torch.full((90, 1), n - 1, dtype=torch.int32), None),
}


def rows_of(code) -> int:
    return len(code[0]) if code[2] is None else len(code[2]) - 1


def near(got: Tensor, want: Tensor, name: str = "") -> None:
    """Within fp32 rounding of sums of a few hundred terms, relative to the largest entry."""
    assert got.shape == want.shape and got.dtype == want.dtype, name
    if want.numel():
        error, largest = (got - want).abs().max().item(), want.abs().max().item()
        assert error <= 3e-6 * largest + 1e-12, f"{name}: {error:.2e} of {largest:.2e}"


def step_case(kind: str, D: int, with_aux: bool, l1: float = 0.0, n: int = 40):
    """A state two steps old and the arguments of a third."""
    torch.manual_seed(D)
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=n, k=1))
    sae.W_enc.data += 0.1 * torch.randn(n, D)
    state = State.fresh(sae.params)
    for part in state.weights:
        part.exp_avg.copy_(0.01 * torch.randn_like(part.exp_avg))
        part.exp_avg_sq.copy_(1e-4 * (0.1 + torch.rand_like(part.exp_avg_sq)))
    acts, indices, row_offsets = code = CODES[kind](n)
    B = rows_of(code)
    groups = reference.group_by_latent(acts, indices, n, row_offsets)
    aux = None
    if with_aux:
        slots = torch.full((n,), -1, dtype=torch.int32)
        slots[[2, 5, 30]] = torch.tensor([1, 0, 2], dtype=torch.int32)
        aux = Aux(slots, torch.randn(3, D), torch.randn(3), torch.randn(3, D), torch.randn(D))
    plan = plan_of(1, torch.float32, activation="relu", penalty="l1", betas=(0.9, 0.99))
    numbers = numbers_at(plan, 3, max(B, 1), lr=1e-2, input_scale=3.0, sparsity=l1 / 3)
    args = torch.randn(B, D), torch.randn(B, D), acts, indices, row_offsets, groups, torch.tensor(0.3), aux
    return state.weights, args, numbers


def copies(weights):
    matrices = [
        m._replace(
            weight=(w := m.weight.clone()),
            shadow=w,
            exp_avg=m.exp_avg.clone(),
            exp_avg_sq=m.exp_avg_sq.clone(),
        )
        for m in weights[:2]
    ]
    return type(weights)(*matrices, *(type(v)(*(t.clone() for t in v)) for v in weights[2:]))


def double(args):
    """Nested tuples of tensors in fp64."""
    if isinstance(args, tuple):
        out = [double(arg) for arg in args]
        return type(args)(*out) if hasattr(args, "_fields") else tuple(out)
    return args.double() if isinstance(args, Tensor) and args.dtype == torch.float32 else args


def assert_follows(got, before, args, numbers, made=None) -> float:
    """`got` is no further from the fp64 step than 2x the fp32 reference, or 5e-6 of the largest; the norm.

    Biases begin at 0 or near it, where 5e-6 of them is 1e-5 of a step, less than the two sums in the gradient of b_dec lose
    where they cancel: 2e-5 of a step are allowed, too.
    """
    want, exact = copies(before), double(copies(before))
    exact = exact._replace(
        enc=exact.enc._replace(shadow=exact.enc.weight), dec=exact.dec._replace(shadow=exact.dec.weight)
    )
    step = torch.tensor(3)
    reference.update_(want, *args, numbers, step, made)
    squared = reference.update_(exact, *double(args), numbers, step, double(made))
    for name, one, other, best in zip(want._fields, got, want, exact):
        for field in one._fields:
            if getattr(other, field) is not None:
                errors = [
                    (getattr(w, field).double() - getattr(best, field)).abs().max() for w in (one, other)
                ]
                bound = 2 * errors[1] + 5e-6 * getattr(best, field).abs().max()
                bound += 2e-5 * numbers[1] * (field == "value")
                assert errors[0] <= bound, f"{name}.{field}: {errors[0]:.2e}, torch's own {errors[1]:.2e}"
    return float(squared)


# unit, tied, D_in, D_out, L (blocks of `pull`), G (parts of the code)
FORMS = {
    "plain": (1, 1, 33, 33, 1, 1),
    "free rows": (0, 1, 16, 16, 1, 1),
    "untied": (1, 0, 48, 48, 3, 1),
    "free and untied, wider": (0, 0, 20, 51, 3, 1),
    "narrower": (1, 0, 66, 15, 1, 1),
    "in parts": (1, 1, 33, 33, 3, 3),
    "in parts, wider": (0, 0, 7, 66, 3, 3),
}


def numbers_of(unit: float, tied: float, l1: float = 0.7) -> Tensor:
    """Every rate is different, and l1 has no effect where grad_pre is given."""
    made = Numbers(
        1e-2,
        3e-2,
        1e-8,
        1e-7,
        0.9,
        0.1,
        0.99,
        0.01,
        1 / (1 - 0.9**3),
        1 / (1 - 0.99**3),
        l1,
        0.5,
        2e-2,
        5e-3,
        unit,
        tied,
    )
    return torch.tensor([*made, 99.0], dtype=torch.float64)  # numbers may follow that are not of the update


def weights_of(n: int, D_in: int, D_out: int) -> Weights:
    """Of a state some steps old; the rows of W_dec have unit norm."""
    W_enc, W_dec = torch.randn(n, D_in), reference.normalize_rows_(torch.randn(n, D_out))
    enc, dec = (allocate(W, "fp32", "fp32", torch.float32) for W in (W_enc, W_dec))
    vectors = [Vector(torch.randn(size), torch.empty(size), torch.empty(size)) for size in (n, D_out)]
    for part in (enc, dec, *vectors):
        part.exp_avg.copy_(0.01 * torch.randn_like(part.exp_avg))
        part.exp_avg_sq.copy_(1e-4 * (0.1 + torch.rand_like(part.exp_avg_sq)))
    return Weights(enc, dec, *vectors)


def given_for(acts: Tensor, centred: Tensor, n: int, L: int) -> Given:
    """Every third latent has no push and every other no pull; latents without entries have both too."""
    push, pull = torch.randn(n), torch.randn(n, L)
    push[::3], pull[1::2] = 0, 0
    return Given(torch.randn(acts.shape), torch.randn(n), push, centred.sum(dim=0), pull)


def in_parts(code: tuple, G: int) -> tuple:
    """The code of B tokens as that of G B rows, the entries of a token dealt out to its G rows in turn (ragged)."""
    acts, indices, row_offsets = code
    B = rows_of(code)
    starts = reference.row_starts(indices, row_offsets).tolist()
    acts, indices = acts.flatten(), indices.flatten()
    places = [list(range(starts[b] + g, starts[b + 1], G)) for g in range(G) for b in range(B)]
    order = torch.tensor([place for row in places for place in row], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, places)]).cumsum(0).to(torch.int32)
    return acts[order], indices[order], offsets


def case_of(code: tuple, form: tuple, n: int, with_given: bool = True, with_aux: bool = False):
    """Weights, the arguments of row_grads between them and numbers, numbers, and what is given."""
    unit, tied, D_in, D_out, L, G = form
    B = rows_of(code)
    acts, indices, row_offsets = code = in_parts(code, G) if G > 1 else code
    centred, error = torch.randn(B, D_in), torch.randn(G * B, D_out)
    # a band of entries with activation 0 is listed by a marker of its own, as JumpReLU's; others are left out
    marker = torch.where(torch.rand_like(acts) < 0.2, 0.0, 1.0)
    if with_given:
        acts = torch.where(torch.rand_like(acts) < 0.3, 0.0, acts)
    groups = reference.group_by_latent(marker, indices, n, row_offsets)
    aux = None
    if with_aux:
        slots = torch.full((n,), -1, dtype=torch.int32)
        slots[[0, n - 1]] = torch.tensor([1, 0], dtype=torch.int32)
        aux = Aux(slots, torch.randn(2, D_in), torch.randn(2), torch.randn(2, D_out), torch.randn(D_out))
    args = centred, error, acts, indices, row_offsets, groups, torch.tensor(0.3), aux
    made = given_for(acts, centred, n, L) if with_given else None
    return weights_of(n, D_in, D_out), args, numbers_of(unit, tied), made
