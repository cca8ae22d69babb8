"""The Triton update with what an architecture hands to it (`saefast.reference.Given`), with free, untied and
wider decoders, against `saefast.reference`. Tolerances are those of test_update.py."""

import math

import pytest
import torch
from torch import Tensor

from saefast import reference, storage
from saefast.reference import Aux
from saefast.storage import Vector, Weights
from saefast.triton_kernels.update import adam_rows_, row_grads, update_, update_bytes, update_config
from tests.helpers.update_cases import (
    DEVICE,
    SMALL,
    Case,
    assert_near,
    assert_same,
    case_of,
    check,
    clone,
    given_of,
    numbers_at,
    random,
    step_of,
    tensors,
    topk_case,
    weights_of,
)

SHAPES = {  # tokens, D, D_out, F, K, parts, blocks
    "one part": (6, 24, 24, 5, 2, 1, 1),
    "three parts": (5, 40, 40, 4, 2, 3, 1),
    "three blocks": (6, 24, 24, 5, 2, 1, 3),  # of 8, in pieces of 16 and 8
    "wider": (6, 20, 33, 5, 2, 1, 1),
    "narrower": (6, 130, 12, 5, 2, 2, 1),
    "everything": (4, 130, 300, 5, 2, 3, 3),  # blocks of 100, in pieces of 128, 128, 32 and 16
    "a block per column": (5, 9, 7, 4, 2, 2, 7),
    "one token": (1, 20, 20, 4, 2, 1, 1),
    "one token, three parts": (1, 20, 40, 4, 2, 3, 2),
    "one latent": (6, 12, 12, 1, 1, 1, 3),
}
free = pytest.mark.parametrize("unit", [1.0, 0.0], ids=["unit", "free"])


def parts_case(shape: tuple[int, ...], **kwargs: object) -> Case:
    B, D, D_out, F, K, parts, _ = shape
    return topk_case(parts * B, D, F, K, D_out=D_out, parts=parts, **kwargs)


def ties_of(shape: tuple[int, ...]) -> tuple[float, ...]:
    return (1.0, 0.0) if shape[1] == shape[2] else (0.0,)


@pytest.mark.each_value
@free
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, ...], unit: float) -> None:
    _, D, _, F, _, _, L = shape
    for tied in ties_of(shape):
        case = parts_case(shape, unit=unit, tied=tied, bias_norm=3.0, l1=7.0)  # l1 is in grad_pre, if at all
        case = case._replace(numbers=torch.cat([case.numbers, torch.full((4,), math.nan, device=DEVICE)]))
        check(case, F, D, given=given_of(case, F, L))


@pytest.mark.parametrize("D_out", [40, 57])
def test_plain_reconstruction(D_out: int) -> None:
    """Without Given, decoders of another width and untied ones; free ones need it."""
    for tied in ties_of((0, 40, D_out)):
        check(topk_case(8, 40, 5, 2, D_out=D_out, tied=tied, l1=0.02), 5, 40)


def test_free_rows_leave_the_sphere() -> None:
    case = topk_case(8, 24, 5, 2, unit=0.0)
    norms = check(case, 5, 24, given=given_of(case, 5, 1)).dec.weight.norm(dim=1)
    assert ((norms - 1).abs() > 1e-3).any()


@pytest.mark.parametrize("D,D_out", [(576, 576), (768, 1536), (2304, 2304), (1024, 4096)])
def test_shipped_configurations(D: int, D_out: int) -> None:
    case = parts_case((3, D, D_out, 3, 2, 2, 4), tied=float(D_out == D))
    config = update_config(max(D, D_out), 4, torch.device(DEVICE))
    check(case, 3, D, config, steps=1, given=given_of(case, 3, 4))


FORMATS = {
    "fp32 with an fp16 copy": ("fp32", "fp32", torch.float16),
    "split": ("split", "fp32", torch.bfloat16),
    "split, int8 moments": ("split", "int8", torch.bfloat16),
    "bf16, bf16 moments": ("bf16", "bf16", torch.bfloat16),
    "bf16, int8 moments": ("bf16", "int8", torch.bfloat16),
}


@pytest.mark.each_value
@free
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_formats(format: tuple[str, str, torch.dtype], unit: float) -> None:
    F, D, D_out = 5, 50, 80
    case = parts_case((8, D, D_out, F, 2, 2, 2), dtype=format[2], unit=unit, tied=0.0)
    given, got = given_of(case, F, 2), weights_of(F, D, format, D_out)
    want = clone(got)
    squared = update_(got, *case, step_of(3), given, config=SMALL)
    assert_near(squared, reference.update_(want, *case, step_of(3), given), "squared norm")
    assert_same(got, want)


def masked_case(active: Tensor, D: int, **kwargs: object) -> Case:
    """Row r is active on the latents of active[r], [parts * B, F] bool."""
    rows, F = active.shape
    indices = torch.arange(F, dtype=torch.int32, device=DEVICE).repeat(rows, 1)
    return case_of((random(rows, F, seed=7).abs() + 0.1) * active.to(DEVICE), indices, F, D, **kwargs)


def test_hot_latents() -> None:
    """Counts around the chunk of 4 in a code of three parts; one latent active in every row, one in none."""
    counts, rows, D = [3, 4, 5, 12, 15, 0, 1], 15, 36
    order = [torch.randperm(rows, generator=torch.Generator().manual_seed(n)) for n in counts]
    active = torch.stack([place < n for place, n in zip(order, counts)], 1)
    case = masked_case(active, D, D_out=52, parts=3, tied=0.0)
    assert case.groups[0].diff().tolist() == counts
    check(case, len(counts), D, given=given_of(case, len(counts), 2))


def test_entries_that_are_not_active() -> None:
    """Groups made with a marker of the caller's: an entry with an activation of 0 still has its grad_pre."""
    F, D = 5, 24
    case = topk_case(9, D, F, 3)
    marker = torch.where(random(9, 3, seed=9) > 0, 1.0, 0.0)
    case = case._replace(groups=reference.group_by_latent(marker, case.indices, F))
    listed, active = marker > 0, case.acts > 0
    assert (listed & ~active).any() and (~listed & active).any() and (listed & active).any()
    check(case, F, D, given=given_of(case, F))


def test_latents_without_entries() -> None:
    """They are pushed, pulled and biased all the same."""
    F, D, B = 4, 20, 6
    case = masked_case(torch.zeros(B, F, dtype=torch.bool), D, unit=0.0)
    given, weights = given_of(case, F, 2), weights_of(F, D)
    (grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec), _ = row_grads(weights, *case, given, config=SMALL)
    assert_near(grad_W_enc, torch.outer(given.push, given.push_row))
    assert_near(grad_b_enc, given.push * B + given.bias)
    assert_near(grad_W_dec, given.pull.repeat_interleave(D // 2, dim=1) * weights.dec.weight)
    assert_near(grad_b_dec, 0.3 * case.error.sum(dim=0) - B * given.push @ weights.enc.weight)
    check(case, F, D, given=given)


def test_with_aux() -> None:
    """AuxK's rows have the widths of W_enc and W_dec."""
    F, D, D_out = 5, 40, 24
    slots = torch.tensor([-1, 1, 0, -1, -1], dtype=torch.int32, device=DEVICE)
    aux = Aux(slots, random(3, D, seed=41), random(3, seed=42), random(3, D_out, seed=43), random(D_out))
    case = topk_case(8, D, F, 2, D_out=D_out, aux=aux, tied=0.0, bias_norm=2.0)
    check(case, F, D, given=given_of(case, F))
    check(case, F, D)


def test_ragged_code() -> None:
    """With entries after the last token that must not be read, given ones too."""
    B, F, D = 7, 6, 24
    acts, indices, row_offsets = reference.batch_topk(random(2 * B, F, seed=3), 2)
    case = case_of(acts, indices, F, D, row_offsets, parts=2)
    given = given_of(case, F)
    unused = acts.new_full((4,), math.nan), indices.new_full((4,), 9999)
    pairs, tokens = (torch.cat([group, unused[1]]) for group in case.groups[1:])
    padded = case._replace(
        acts=torch.cat([acts, unused[0]]),
        indices=torch.cat([indices, unused[1]]),
        groups=(case.groups[0], pairs, tokens),
    )
    wider = given._replace(grad_pre=torch.cat([given.grad_pre, unused[0]]))
    got, want = weights_of(F, D), weights_of(F, D)
    reference.update_(want, *case, step_of(3), given)
    update_(got, *padded, step_of(3), wider, config=SMALL)
    assert_same(got, want)


def test_no_tokens() -> None:
    F, D = 3, 20
    empty, no_index = random(0, D), torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    groups = torch.zeros(F + 1, dtype=torch.int32, device=DEVICE), no_index.flatten(), no_index.flatten()
    case = Case(empty, empty, random(0, 2), no_index, None, groups, step_of(1) * 0.3, None, numbers_at(3))
    check(case, F, D, given=given_of(case, F, 2))


@pytest.mark.parametrize("D_out", [40, 56])
def test_split_form(D_out: int) -> None:
    """`row_grads` and `adam_rows_` are `update_`, and with a factor of clipping they follow the reference."""
    F, D = 5, 40
    case = parts_case((8, D, D_out, F, 3, 2, 4), bias_norm=2.0, unit=0.0, tied=float(D_out == D))
    given, fused = given_of(case, F, 4), weights_of(F, D, D_out=D_out)
    apart, clipped, want = clone(fused), clone(fused), clone(fused)
    squared = update_(fused, *case, step_of(3), given, config=SMALL)
    grads, squared_apart = row_grads(apart, *case, given, config=SMALL)
    wanted_grads, wanted_squared = reference.row_grads(want, *case, given)
    for name, got, wanted in zip(("W_enc", "b_enc", "W_dec", "b_dec"), grads, wanted_grads):
        assert_near(got, wanted, name)
    assert squared == squared_apart
    assert_near(squared, wanted_squared)
    adam_rows_(apart, grads, torch.ones((), device=DEVICE), case.numbers, step_of(3), config=SMALL)
    assert_same(apart, fused)
    factor = torch.tensor(0.25, device=DEVICE)
    adam_rows_(clipped, grads, factor, case.numbers, step_of(3), config=SMALL)
    reference.adam_rows_(want, wanted_grads, factor, case.numbers, step_of(3))
    assert_same(clipped, want)


def test_nan_changes_nothing() -> None:
    F, D = 4, 24
    weights = weights_of(F, D, ("fp32", "int8", torch.float16))
    case = topk_case(8, D, F, 2)._replace(grad_scale=torch.tensor(math.nan, device=DEVICE))
    given, before = given_of(case, F, 2), tensors(clone(weights))
    assert update_(weights, *case, step_of(3), given, config=SMALL).isnan()
    assert row_grads(weights, *case, given, config=SMALL)[1].isnan()
    for name, tensor in tensors(weights).items():
        assert torch.equal(tensor, before[name]), name


def test_same_bits_every_time() -> None:
    F, D = 4, 40
    case = parts_case((5, D, 60, F, 3, 3, 3), tied=0.0)
    one, given = weights_of(F, D, ("bf16", "int8", torch.bfloat16), 60), given_of(case, F, 3)
    other = clone(one)
    squares = [update_(weights, *case, step_of(3), given, config=SMALL) for weights in (one, other)]
    assert torch.equal(*squares)
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, tensors(other)[name]), name


def test_bytes() -> None:
    """Two widths, and for Given 4 bytes an entry and for bias, push and each pull of a latent."""
    matrices = [storage.allocate(torch.zeros(8, D), "fp32", "fp32", torch.bfloat16) for D in (16, 32)]
    weights = Weights(*matrices, *(Vector(*torch.zeros(3, n)) for n in (8, 32)))
    state = 8 * (16 + 32) * 26 + 8 * 24
    assert update_bytes(weights, 0, 2) == state
    assert update_bytes(weights, 10, 2, pulls=3) == state + 10 * (48 * 2 + 12 + 4) + 8 * (8 + 12)


def test_rejects_what_the_kernels_cannot_read() -> None:
    case, weights = topk_case(8, 24, 4, 2), weights_of(4, 24)
    given = given_of(case, 4)
    wrong = {
        "grad_pre: expected 16 entries": given._replace(grad_pre=random(8, 3)),
        "pull: expected a number of columns that divides 24, got 5": given._replace(pull=random(4, 5)),
        r"push: expected \(4,\)": given._replace(push=random(5)),
        r"push_row: expected \(24,\)": given._replace(push_row=random(12)),
        "bias: expected float32": given._replace(bias=given.bias.half()),
        "pull: expected contiguous": given._replace(pull=random(2, 4).T),
    }
    for message, one in wrong.items():
        with pytest.raises(AssertionError, match=message):
            update_(weights, *case, step_of(3), one, config=SMALL)
    with pytest.raises(AssertionError, match=r"error: expected \(8, 24\)"):
        update_(weights, *case._replace(error=random(12, 24)), step_of(3), given, config=SMALL)
    with pytest.raises(AssertionError, match=r"error: expected \(8, 24\)"):
        update_(weights, *case._replace(error=random(16, 24)), step_of(3), config=SMALL)
