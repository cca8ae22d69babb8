"""The Triton update against `saefast.reference`: backward, Adam and unit norm, in every format of `saefast.storage`.

Both start from the same state. What is kept in fp32 agrees to 1e-5 of the largest entry, after several steps. What is
rounded is compared after one step, because both use the same random bits: it may be one bf16 or one code off where
sums that differ in the last bit of fp32 fall on two sides of a limit, in one place of fifty at most.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saefast import reference, storage
from saefast.reference import Aux
from saefast.storage import Vector, Weights
from saefast.triton_kernels.update import (
    UpdateConfig,
    adam_rows_,
    row_grads,
    update_,
    update_bytes,
    update_config,
)
from tests.helpers.update_cases import (
    DEVICE,
    FP32,
    SMALL,
    Case,
    assert_near,
    assert_same,
    case_of,
    check,
    clone,
    numbers_at,
    random,
    step_of,
    tensors,
    topk_case,
    weights_of,
)

SHAPES = {  # B, D, F, K; the pieces of a row at 1 warp on the right
    "24": (6, 24, 5, 2),  # 16 + 8
    "40": (6, 40, 4, 2),  # 32 + 8
    "100": (5, 100, 4, 2),  # 128, the last 28 padding
    "130": (5, 130, 5, 2),  # 128 + 2
    "300": (3, 300, 4, 2),  # 128 + 128 + 32 + 16, four of it padding
    "one column": (6, 1, 5, 2),
    "one latent": (6, 12, 1, 1),  # fewer latents than programs
    "k 1": (9, 20, 7, 1),
    "k all": (5, 20, 5, 5),
    "one token": (1, 20, 4, 2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int]) -> None:
    _, D, F, _ = shape
    check(topk_case(*shape), F, D)


@pytest.mark.parametrize("D", [576, 768, 2304, 4096])
def test_shipped_configurations(D: int) -> None:
    check(topk_case(4, D, 3, 2), 3, D, update_config(D, 4, torch.device(DEVICE)), steps=1)


@pytest.mark.parametrize("R,num_warps,stages", [(1, 2, 1), (4, 4, 2), (8, 1, 4)])
def test_other_tiles(R: int, num_warps: int, stages: int) -> None:
    """With the hints for the cache that are not the default."""
    config = UpdateConfig(num_warps, 128, 2, R, 4, stages, keep_gathered=False, pass_stored=True)
    check(topk_case(9, 200, 4, 3), 4, 200, config, steps=1)


FORMATS = {
    "fp32 with an fp16 copy": ("fp32", "fp32", torch.float16),
    "fp32 with a bf16 copy": ("fp32", "fp32", torch.bfloat16),
    "fp32, bf16 moments": ("fp32", "bf16", torch.float32),
    "fp32, int8 moments": ("fp32", "int8", torch.float32),
    "split": ("split", "fp32", torch.bfloat16),
    "split, int8 moments": ("split", "int8", torch.bfloat16),
    "24 bits": ("split24", "fp32", torch.bfloat16),
    "24 bits, bf16 moments": ("split24", "bf16", torch.bfloat16),
    "24 bits, int8 moments": ("split24", "int8", torch.bfloat16),
    "bf16": ("bf16", "fp32", torch.bfloat16),
    "bf16, bf16 moments": ("bf16", "bf16", torch.bfloat16),
    "bf16, int8 moments": ("bf16", "int8", torch.bfloat16),
}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_formats(format: tuple[str, str, torch.dtype]) -> None:
    F, D = 5, 50
    got, case = weights_of(F, D, format), topk_case(8, D, F, 2, dtype=format[2])
    want = clone(got)
    squared = update_(got, *case, step_of(3), config=SMALL)
    assert_near(squared, reference.update_(want, *case, step_of(3)), "squared norm")
    assert_same(got, want)


def masked_case(active: Tensor, D: int, **kwargs: object) -> Case:
    """Token b is active on the latents of active[b], [B, F] bool."""
    B, F = active.shape
    indices = torch.arange(F, dtype=torch.int32, device=DEVICE).repeat(B, 1)
    return case_of((random(B, F, seed=7).abs() + 0.1) * active.to(DEVICE), indices, F, D, **kwargs)


def test_hot_latents() -> None:
    """Counts around the chunk of 4, one latent active in every token, one in none."""
    counts, B, D = [3, 4, 5, 12, 13, 0, 1], 13, 36
    active = torch.stack(
        [torch.randperm(B, generator=torch.Generator().manual_seed(n)) < n for n in counts], 1
    )
    case = masked_case(active, D)
    assert case.groups[0].diff().tolist() == counts
    check(case, len(counts), D)


def test_dead_latents_decay() -> None:
    """Moments shrink, W_enc still moves by them, and the gradients are 0."""
    case, F, D = masked_case(torch.zeros(6, 3, dtype=torch.bool), 20), 3, 20
    before = weights_of(F, D)
    after = check(case, F, D, steps=1)
    torch.testing.assert_close(after.enc.exp_avg, 0.9 * before.enc.exp_avg)
    torch.testing.assert_close(after.dec.exp_avg_sq, 0.99 * before.dec.exp_avg_sq)
    (grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec), _ = row_grads(after, *case, config=SMALL)
    assert not grad_W_enc.any() and not grad_b_enc.any() and not grad_W_dec.any() and grad_b_dec.any()


def test_no_tokens() -> None:
    F, D = 3, 20
    got = weights_of(F, D)
    before = clone(got)
    empty, no_index = random(0, D), torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    groups = torch.zeros(F + 1, dtype=torch.int32, device=DEVICE), no_index.flatten(), no_index.flatten()
    case = Case(empty, empty, random(0, 2), no_index, None, groups, step_of(1) * 0.3, None, numbers_at(3))
    assert update_(got, *case, step_of(3), config=SMALL) == 0
    torch.testing.assert_close(got.b_dec.exp_avg, 0.9 * before.b_dec.exp_avg)
    torch.testing.assert_close(got.dec.exp_avg_sq, 0.99 * before.dec.exp_avg_sq)


def test_zero_row_of_W_dec_stays_zero() -> None:
    F, D = 3, 20
    got, case = weights_of(F, D), masked_case(torch.tensor([[True, False, True]] * 5), D)
    for tensor in (got.dec.weight, got.dec.exp_avg, got.dec.exp_avg_sq):
        tensor[1] = 0
    want = clone(got)
    update_(got, *case, step_of(3), config=SMALL)
    reference.update_(want, *case, step_of(3))
    assert_same(got, want)
    assert not got.dec.weight[1].any()


def aux_of(F: int, D: int, latents: list[int]) -> Aux:
    """Rows in another order than their latents; one row belongs to none."""
    C = len(latents) + 1
    slots = torch.full((F,), -1, dtype=torch.int32, device=DEVICE)
    slots[latents] = torch.arange(C - 1, 0, -1, dtype=torch.int32, device=DEVICE)
    return Aux(slots, random(C, D, seed=41), random(C, seed=42), random(C, D, seed=43), random(D, seed=44))


def test_aux_l1_and_bias_norm() -> None:
    """AuxK's gradients for a latent that fires, one that does not, and a hot one."""
    B, F, D = 9, 5, 40
    active = torch.zeros(B, F, dtype=torch.bool)
    active[:, 0] = active[::3, 2] = active[::2, 4] = True
    case = masked_case(active, D, aux=aux_of(F, D, [0, 1, 2]), l1=0.05, bias_norm=3.0)
    check(case, F, D)
    weights = weights_of(F, D)
    for one, other in zip((row_grads(weights, *case, config=SMALL)), reference.row_grads(weights, *case)):
        for got, want in zip(one, other) if isinstance(one, tuple) else [(one, other)]:
            assert_near(got, want)


def test_ragged_code() -> None:
    """With entries after the last token that must not be read."""
    B, F, D = 7, 6, 24
    acts, indices, row_offsets = reference.batch_topk(random(B, F, seed=3), 2)
    case = case_of(acts, indices, F, D, row_offsets)
    unused = acts.new_full((4,), math.nan), indices.new_full((4,), 9999)
    acts, indices = torch.cat([acts, unused[0]]), torch.cat([indices, unused[1]])
    pairs, tokens = (torch.cat([group, unused[1]]) for group in case.groups[1:])
    padded = case._replace(acts=acts, indices=indices, groups=(case.groups[0], pairs, tokens))
    got, want = weights_of(F, D), weights_of(F, D)
    reference.update_(want, *case, step_of(3))
    update_(got, *padded, step_of(3), config=SMALL)
    assert_same(got, want)


def run_update(weights: Weights, case: Case) -> Tensor:
    return update_(weights, *case, step_of(3), config=SMALL)


def run_adam_rows(weights: Weights, case: Case) -> Tensor:
    grads, _ = row_grads(weights, *case._replace(grad_scale=torch.ones((), device=DEVICE)), config=SMALL)
    adam_rows_(weights, grads, case.grad_scale, case.numbers, step_of(3), config=SMALL)
    return case.grad_scale


@pytest.mark.parametrize("run", [run_update, run_adam_rows])
def test_nan_changes_nothing(run: Callable[[Weights, Case], Tensor]) -> None:
    F, D = 4, 24
    weights = weights_of(F, D, ("fp32", "int8", torch.float16))
    case = topk_case(8, D, F, 2, aux=aux_of(F, D, [1]))._replace(
        grad_scale=torch.tensor(math.nan, device=DEVICE)
    )
    before = tensors(clone(weights))
    assert row_grads(weights, *case, config=SMALL)[0][3].isnan().all()
    assert run(weights, case).isnan()
    for name, tensor in tensors(weights).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("format", [FP32, ("bf16", "int8", torch.bfloat16)], ids=["fp32", "bf16, int8"])
def test_same_bits_every_time(format: tuple[str, str, torch.dtype]) -> None:
    F, D = 4, 40
    one, case = weights_of(F, D, format), topk_case(10, D, F, 3)
    other = clone(one)
    assert torch.equal(run_update(one, case), run_update(other, case))
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, tensors(other)[name]), name


def test_bytes() -> None:
    for format, pair in ((("fp32", "fp32", torch.bfloat16), 52), (("split", "int8", torch.bfloat16), 24)):
        matrix = storage.allocate(torch.zeros(8, 16), *format)
        vectors = [Vector(*torch.zeros(3, n)) for n in (8, 16)]
        assert update_bytes(Weights(matrix, matrix, *vectors), 0, 2) == 8 * 16 * pair + 8 * 24


def test_rejects_what_the_kernels_cannot_read() -> None:
    weights, case = weights_of(4, 24), topk_case(8, 24, 4, 2)
    with pytest.raises(AssertionError, match="centred: expected contiguous"):
        run_update(weights, case._replace(centred=case.centred.T.contiguous().T))
    with pytest.raises(AssertionError, match="error: expected"):
        run_update(weights, case._replace(error=case.error[:, :20].contiguous()))
    with pytest.raises(AssertionError, match="indices: expected 16 entries"):
        run_update(weights, case._replace(indices=case.indices[:, :1].contiguous()))
    with pytest.raises(AssertionError, match="offsets: expected"):
        run_update(weights, case._replace(groups=(case.groups[0][:-1], *case.groups[1:])))
