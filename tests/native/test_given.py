"""The C++ update with what an architecture with a penalty gives to it, and with free, untied or wider decoders; the two
ops that such an architecture uses to make it. All against the specification in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import native, reference
from saefast.reference import Aux, Given, Numbers
from saefast.storage import Vector, Weights, allocate
from tests.helpers.native_isa import isa  # noqa: F401 (a fixture)
from tests.helpers.sparse_codes import fixed_code, ragged_code
from tests.native.test_step import CODES, assert_follows, copies, double, near, rows_of

STEP = torch.tensor(3)
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
    made = Numbers(1e-2, 3e-2, 1e-8, 1e-7, 0.9, 0.1, 0.99, 0.01, 1 / (1 - 0.9**3), 1 / (1 - 0.99**3), l1, 0.5, 2e-2,
                   5e-3, unit, tied)  # fmt: skip
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


@pytest.mark.parametrize("with_aux", [False, True], ids=["", "auxk"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", CODES)
def test_update(isa: str, kind: str, form: tuple, with_aux: bool) -> None:  # noqa: F811
    torch.manual_seed(0)
    weights, args, numbers, made = case_of(CODES[kind](40), form, 40, with_aux=with_aux)
    before = copies(weights)
    squared = native.update_(weights, *args, numbers, STEP, made)
    want = assert_follows(weights, before, args, numbers, made)
    assert float(squared) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form[-1] == 1])
@pytest.mark.parametrize("kind", ["fixed", "ragged", "no row"])
def test_update_of_a_plain_reconstruction(isa: str, kind: str, form: tuple) -> None:  # noqa: F811
    """Nothing is given: free, untied and wider decoders alone."""
    torch.manual_seed(1)
    acts, indices, row_offsets = CODES[kind](40)
    weights, args, numbers, _ = case_of((acts, indices, row_offsets), form, 40, with_given=False)
    before = copies(weights)
    squared = native.update_(weights, *args, numbers, STEP)
    assert float(squared) == pytest.approx(assert_follows(weights, before, args, numbers), rel=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_split_form_is_the_fused_one(isa: str, form: tuple) -> None:  # noqa: F811
    torch.manual_seed(2)
    weights, args, numbers, made = case_of(fixed_code(13, 40, 7), form, 40, with_aux=True)
    split = copies(weights)
    grads, squared = native.row_grads(split, *args, numbers, made)
    want, want_squared = reference.row_grads(double(split), *double(args), numbers, double(made))
    for name, one, other in zip(("W_enc", "b_enc", "W_dec", "b_dec"), grads, want):
        near(one, other.float(), name)
    assert float(squared) == pytest.approx(float(want_squared), rel=1e-5)
    native.adam_rows_(split, grads, torch.tensor(1.0), numbers, STEP)
    assert float(native.update_(weights, *args, numbers, STEP, made)) == float(squared)
    for one, other in zip(weights, split):
        assert all(torch.equal(a, b) for a, b in zip(one, other) if a is not None)  # to the bit


def test_what_is_given_reaches_its_parameter_alone() -> None:
    """By the difference that each part makes. push flows on to b_dec where the input is tied, bias does not."""
    torch.manual_seed(3)
    for tied in (1, 0):
        form = (0, tied, 16, 16, 1, 1)
        weights, args, numbers, made = case_of(fixed_code(5, 40, 7), form, 40)
        base, _ = native.row_grads(weights, *args, numbers, made)
        for field, reached in (("bias", [1]), ("push", [0, 1, 3] if tied else [0, 1]), ("pull", [2])):
            changed = made._replace(**{field: getattr(made, field) + 1})
            grads, _ = native.row_grads(weights, *args, numbers, changed)
            assert [i for i in range(4) if not torch.equal(grads[i], base[i])] == reached, field


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_number_of_threads_does_not_change_a_bit(form: tuple) -> None:
    n, results, before = 900, [], torch.get_num_threads()
    code = fixed_code(300, n, 9)
    try:
        for threads in (1, 2, 3, 7):  # more than there are cores
            torch.manual_seed(4)
            torch.set_num_threads(threads)
            weights, args, numbers, made = case_of(code, form, n)
            native.update_(weights, *args, numbers, STEP, made)
            sums = native.sum_entries(args[5], made.grad_pre)
            grads = native.grad_top_acts(args[1], weights.dec.weight, *args[2:5])
            results.append([sums, grads, *(t for part in weights for t in part if t is not None)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fuzz_the_update(data: st.DataObject) -> None:
    """Any lengths, widths, blocks and parts."""
    n, D_in, L, G = (data.draw(st.integers(1, high)) for high in (70, 70, 4, 4))
    D_out = L * data.draw(st.integers(1, 40))
    tied = data.draw(st.booleans()) and D_in == D_out
    counts = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=20))
    form = (data.draw(st.integers(0, 1)), float(tied), D_in, D_out, L, G)
    weights, args, numbers, made = case_of(ragged_code(counts, n, unused=0), form, n)
    before = copies(weights)
    native.update_(weights, *args, numbers, STEP, made)
    assert_follows(weights, before, args, numbers, made)


@pytest.mark.parametrize("D", [1, 15, 16, 33, 200, 577])
@pytest.mark.parametrize("kind", CODES)
def test_grad_top_acts(isa: str, kind: str, D: int) -> None:  # noqa: F811
    acts, indices, row_offsets = code = CODES[kind](20)
    acts = torch.where(torch.rand_like(acts) < 0.3, 0.0, acts)
    error, W_dec = torch.randn(rows_of(code), D), torch.randn(20, D)
    got = native.grad_top_acts(error, W_dec, acts, indices, row_offsets)
    want = reference.grad_top_acts(error.double(), W_dec.double(), acts.double(), indices, row_offsets)
    near(got, want.float())
    assert torch.equal(got == 0, want == 0)  # what is not active, or not used


@pytest.mark.parametrize("kind", CODES)
def test_sum_entries(kind: str) -> None:
    acts, indices, row_offsets = CODES[kind](20)
    groups = native.group_by_latent(acts, indices, 20, row_offsets)
    values = torch.randn(acts.shape)
    near(native.sum_entries(groups, values), reference.sum_entries(groups, values.double()).float())


def test_other_formats_go_to_the_reference() -> None:
    acts, indices, _ = fixed_code(6, 20, 3)
    error, W_dec = torch.randn(6, 8, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    assert native.grad_top_acts(error, W_dec, acts.double(), indices).dtype == torch.float64
    groups = native.group_by_latent(acts, indices, 20)
    assert native.sum_entries(groups, acts.double()).dtype == torch.float64
