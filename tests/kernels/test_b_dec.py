"""The gradient of b_dec in the Triton update: what each program adds to it, and their sum. Against `saefast.reference`."""

import math

import pytest
import torch

from saefast import reference
from saefast.triton_kernels.adam_kernels import _b_dec_kernel
from saefast.triton_kernels.update import row_grads, update_
from tests.helpers.update_cases import (
    DEVICE,
    SMALL,
    assert_near,
    case_of,
    numbers_at,
    random,
    step_of,
    topk_case,
    weights_of,
)


def test_only_what_b_dec_needs_of_W_enc_is_read() -> None:
    """A latent without entries and an untied decoder add nothing to b_dec's gradient, whatever is in W_enc."""
    F, D = 3, 20
    acts, indices = random(5, 2).abs() + 0.1, torch.tensor([[0, 2]] * 5, dtype=torch.int32, device=DEVICE)
    for tied, row in ((1.0, 1), (0.0, 2)):
        weights, case = weights_of(F, D), case_of(acts, indices, F, D, tied=tied)
        want = reference.row_grads(weights, *case)[0][3]
        weights.enc.weight[row] = math.inf
        assert_near(row_grads(weights, *case, config=SMALL)[0][3], want)
        before = weights.b_dec.value.clone()
        update_(weights, *case, step_of(3), config=SMALL)
        assert weights.b_dec.value.isfinite().all() and not torch.equal(weights.b_dec.value, before)


@pytest.mark.parametrize("B", [1, 2, 3, 6, 7, 25])
def test_errors_are_summed_once(B: int) -> None:
    """By three programs, two rows at a time, also by those that have no latent of their own."""
    for F in (1, 4):
        case, weights = topk_case(B, 70, F, 1), weights_of(F, 70)
        got, want = row_grads(weights, *case, config=SMALL), reference.row_grads(weights, *case)
        assert_near(got[0][3], want[0][3])
        assert_near(got[1], want[1])


@pytest.mark.parametrize("P,D", [(1, 33), (256, 64), (257, 20), (600, 70)])
def test_parts_of_b_dec(P: int, D: int) -> None:
    """Of more programs than are added at once, for columns that do not fill a block; without Adam."""
    partial, aux, blocks = random(P, D), random(D, seed=1), -(-D // 32)
    squares, grad, scale = torch.zeros(P + blocks), torch.zeros(D), torch.tensor(0.3)
    squares, grad, scale = (tensor.to(DEVICE) for tensor in (squares, grad, scale))
    numbers = numbers_at(3, bias_norm=2.0)
    _b_dec_kernel[(blocks,)](
        None, None, None, partial, aux, grad, squares, scale, numbers, P, D, ROWS=256, COLS=32
    )
    want = partial.sum(dim=0) + aux
    assert_near(grad, want)
    assert not squares[:P].any()
    assert_near(squares[P:].sum(), (2 * want).square().sum())
