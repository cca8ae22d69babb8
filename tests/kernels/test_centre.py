"""The Triton centring against `saefast.reference.centre`: on a GPU where there is one, else in Triton's interpreter.

Fresh memory is NaN (conftest.py), so what a kernel leaves unwritten cannot look like a result.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.centre import centre, centre_config
from tests.helpers.kernels import DEVICE, DTYPES


def random_case(B: int, D: int, mean: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around `mean` with a spread of about 1 that differs by column."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.rand(D, generator=rng) + 0.5
    x = torch.randn(B, D, generator=rng) * spread + mean * torch.randn(D, generator=rng).sign()
    return x.to(DEVICE), x.mean(dim=0).to(DEVICE)


def check(x: Tensor, b_dec: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """centred exactly; the variance to fp32 precision of that in fp64."""
    centred, variance = centre(x, b_dec, dtype)
    expected, _ = reference.centre(x, b_dec, dtype)
    assert centred.dtype == dtype and variance.dtype == b_dec.dtype and variance.shape == ()
    assert torch.equal(centred, expected)
    exact = reference.total_variance(x.double())
    torch.testing.assert_close(variance.double(), exact, rtol=2e-6, atol=0)


SHAPES = {  # B, D
    "576": (40, 576),  # 5 x 128, the last half padding; two row blocks
    "768": (33, 768),  # 3 x 256
    "2304": (5, 2304),  # 5 x 512, the last half padding
    "odd": (37, 130),
    "one column": (50, 1),
    "seven columns": (9, 7),
    "two tokens": (2, 96),
}
SHAPES |= {f"{B} tokens": (B, 24) for B in (3, 8, 9, 31, 32, 33, 65)}
SHAPES |= {f"{D} columns": (6, D) for n in (128, 256, 512) for D in (n - 1, n, n + 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int]) -> None:
    check(*random_case(*shape))


@pytest.mark.each_value
@pytest.mark.parametrize("out", DTYPES.values(), ids=[f"to {name}" for name in DTYPES])
@pytest.mark.parametrize("of_x", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("D", [24, 576])
def test_formats(D: int, of_x: torch.dtype, out: torch.dtype) -> None:
    x, b_dec = random_case(20, D)
    check(x.to(of_x), b_dec, out)


@pytest.mark.parametrize("mean", [100.0, 1e4])
def test_mean_far_from_zero(mean: float) -> None:
    """Where sum x^2 - B mean^2 has lost the variance."""
    x, b_dec = random_case(200, 48, mean)
    check(x, b_dec)
    naive = x.square().sum() - len(x) * x.mean(dim=0).square().sum()
    assert abs(naive / reference.total_variance(x.double()) - 1) > 1e-4


def test_first_row_far_from_the_others() -> None:
    """Differences are taken from the first row, which in language models is often the outlier."""
    x, b_dec = random_case(200, 48)
    x[0] += 3000
    check(x, b_dec)
    x[0] -= 1e6
    check(x, b_dec)


def test_subtracts_before_it_rounds() -> None:
    x = torch.full((4, 40), 1000.25, device=DEVICE)
    centred, _ = centre(x, torch.full((40,), 1000.0, device=DEVICE), torch.float16)
    assert (centred == 0.25).all()


@pytest.mark.parametrize("B", [1, 3, 100])
def test_equal_rows_have_no_variance(B: int) -> None:
    x, b_dec = random_case(1, 70)
    centred, variance = centre(x.expand(B, 70).contiguous(), b_dec, torch.float32)
    assert variance == B * 70
    assert torch.equal(centred, (x - b_dec).expand(B, 70))


@pytest.mark.parametrize("row", [0, 5])
def test_nan_stays_nan(row: int) -> None:
    x, b_dec = random_case(9, 20)
    x[row, 3] = float("nan")
    centred, variance = centre(x, b_dec, torch.float32)
    assert variance.isnan() and centred.isnan().sum() == 1


def test_no_tokens() -> None:
    x, b_dec = random_case(3, 20)
    centred, variance = centre(x[:0], b_dec, torch.float16)
    assert centred.shape == (0, 20) and centred.dtype == torch.float16
    assert torch.equal(variance, reference.centre(x[:0], b_dec, torch.float16)[1])


def test_same_bits_every_time() -> None:
    x, b_dec = random_case(100, 70)
    assert torch.equal(centre(x, b_dec, torch.float32)[1], centre(x, b_dec, torch.float32)[1])


@pytest.mark.parametrize("itemsizes", [(2, 2), (4, 2), (2, 4), (4, 4)])
@pytest.mark.parametrize("D", [1, 7, 64, 130, 576, 768, 2304, 4096, 5000])
@pytest.mark.parametrize("B", [1, 5, 1024])
def test_config_fits_the_threads(B: int, D: int, itemsizes: tuple[int, int]) -> None:
    config = centre_config(B, D, *itemsizes)
    assert config.ROWS % config.BLOCK_B == 0
    assert config.BLOCK_B * config.BLOCK_D * itemsizes[0] <= config.num_warps * 32 * 16 * 8


def test_rejects_what_the_kernel_cannot_read() -> None:
    x, b_dec = random_case(4, 24)
    with pytest.raises(AssertionError, match="x: expected contiguous"):
        centre(x.T.contiguous().T, b_dec, torch.float32)
    with pytest.raises(AssertionError, match="b_dec: expected"):
        centre(x, b_dec[:3], torch.float32)
