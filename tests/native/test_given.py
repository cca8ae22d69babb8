"""The C++ update with what an architecture with a penalty gives to it, and with free, untied or wider decoders; the two
ops that such an architecture uses to make it. All against the specification in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import native, reference
from tests.helpers.native_cases import (
    CODES,
    FORMS,
    assert_follows,
    case_of,
    copies,
    double,
    near,
    rows_of,
)
from tests.helpers.native_isa import isa  # noqa: F401 (a fixture)
from tests.helpers.sparse_codes import fixed_code, ragged_code

STEP = torch.tensor(3)


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
