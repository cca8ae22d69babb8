"""Adam on given gradients, as clipping needs it: the update in two parts."""

import pytest
import torch

from saefast import reference
from saefast.triton_kernels.update import (
    adam_rows_,
    row_grads,
    update_,
)
from tests.helpers.update_cases import (
    DEVICE,
    FP32,
    SMALL,
    assert_near,
    assert_same,
    clone,
    numbers_at,
    random,
    step_of,
    topk_case,
    weights_of,
)


def test_split_form() -> None:
    """`row_grads` and `adam_rows_` are `update_`, and with a factor of clipping they follow the reference."""
    F, D = 5, 40
    case, fused = topk_case(8, D, F, 3, l1=0.01, bias_norm=2.0), weights_of(F, D)
    apart, clipped, want = clone(fused), clone(fused), clone(fused)
    squared = update_(fused, *case, step_of(3), config=SMALL)
    grads, squared_apart = row_grads(apart, *case, config=SMALL)
    wanted_grads, wanted_squared = reference.row_grads(want, *case)
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


@pytest.mark.parametrize("format", [FP32, ("split", "int8", torch.bfloat16)], ids=["fp32", "split, int8"])
def test_adam_rows_in_other_formats(format: tuple[str, str, torch.dtype]) -> None:
    F, D = 4, 50
    got, grads = weights_of(F, D, format), (random(4, 50), random(4), random(4, 50, seed=1), random(50))
    want, factor = clone(got), torch.tensor(0.5, device=DEVICE)
    adam_rows_(got, grads, factor, numbers_at(3), step_of(3), config=SMALL)
    reference.adam_rows_(want, grads, factor, numbers_at(3), step_of(3))
    assert_same(got, want)
