"""The Triton losses against `saefast.reference.losses`: on a GPU where there is one, else in Triton's interpreter."""

import math

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.losses import BLOCK, losses
from tests.helpers.kernels import DEVICE


def numbers(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, device=DEVICE) for value in values)


@pytest.mark.parametrize("of_mse", [True, False], ids=["mse", "fvu"])
@pytest.mark.parametrize("size", [(1,), (7, 3), (BLOCK,), (BLOCK - 1, 2), (2 * BLOCK + 5,)])
def test_matches_reference(size: tuple[int, ...], of_mse: bool) -> None:
    squares = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    variance, scale = numbers(12.5, 0.03)
    got = losses(squares, variance, scale if of_mse else None)
    want = reference.losses(squares.double(), variance.double(), scale.double() if of_mse else None)
    assert all(value.shape == () and value.dtype == torch.float32 for value in got)
    torch.testing.assert_close(torch.stack(got).double(), torch.stack(want), rtol=1e-6, atol=0)


def test_no_squares() -> None:
    (variance,) = numbers(4.0)
    got = losses(torch.empty(0, device=DEVICE), variance)
    assert [float(value) for value in got] == [0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["squares", "variance", "scale"])
def test_a_loss_that_is_not_finite_scales_nothing(where: str, broken: float) -> None:
    squares, (variance, scale) = torch.ones(5, device=DEVICE), numbers(2.0, 3.0)
    {"squares": squares[3:4], "variance": variance, "scale": scale}[where].fill_(broken)
    got = losses(squares, variance, scale if where == "scale" else None)
    want = reference.losses(squares, variance, scale if where == "scale" else None)
    torch.testing.assert_close(torch.stack(got), torch.stack(want), equal_nan=True)
    assert got[2].isnan() != (where == "variance" and math.isinf(broken))  # an infinite variance: a loss of 0


def test_same_bits_every_time() -> None:
    squares, (variance,) = torch.rand(3 * BLOCK + 1, device=DEVICE), numbers(2.0)
    assert torch.equal(torch.stack(losses(squares, variance)), torch.stack(losses(squares, variance)))


def test_rejects_what_the_kernel_cannot_read() -> None:
    with pytest.raises(AssertionError, match="squares: expected contiguous"):
        losses(torch.ones(4, 6, device=DEVICE)[:, ::2], *numbers(1.0))
