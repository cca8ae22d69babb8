"""The Triton gradient of the activations against `saefast.reference.grad_top_acts`: on a GPU where there is one, else
in Triton's interpreter. Fresh memory is NaN (conftest.py), so what a kernel leaves unwritten cannot look like a result.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.grad_top_acts import grad_top_acts, grad_top_acts_config
from tests.helpers.kernels import DEVICE, dtypes
from tests.helpers.sparse_codes import Code, code_to, fixed_code, ragged_code


def rows(B: int, D: int, F: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """error and unit-norm W_dec."""
    rng = torch.Generator().manual_seed(1)
    W_dec = reference.normalize_rows_(torch.randn(F, D, generator=rng))
    return torch.randn(B, D, generator=rng).to(dtype).to(DEVICE), W_dec.to(dtype).to(DEVICE)


def check(code: Code, D: int, F: int, dtype: torch.dtype) -> None:
    """Products of 16-bit numbers are exact in fp32, so in every format only the sum in fp32 rounds."""
    acts, _, row_offsets = code = code_to(code, DEVICE)
    error, W_dec = rows(len(acts) if row_offsets is None else len(row_offsets) - 1, D, F, dtype)
    got = grad_top_acts(error, W_dec, *code)
    exact = reference.grad_top_acts(error.double(), W_dec.double(), *code)
    assert got.dtype == torch.float32 and got.shape == acts.shape
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=2e-6)
    assert not got[acts <= 0].any()
    if row_offsets is not None:
        assert not got[row_offsets[-1] :].any()


SHAPES = {  # B, D, F, K; on the right the tiles of grad_top_acts_config in fp32
    "576": (2, 576, 64, 10),  # 4 x 128, four and a half of them
    "2304": (2, 2304, 40, 5),
    "odd": (7, 130, 51, 7),
    "one column": (4, 1, 9, 3),
    "seven columns": (9, 7, 33, 4),
    "k 1": (6, 64, 17, 1),
    "k 3": (6, 64, 17, 3),
    "k 16": (2, 64, 17, 16),  # the four programs of a token take a tile each
    "k 17": (2, 64, 17, 17),  # and the first another
    "k all": (3, 48, 37, 37),
    "one token": (1, 96, 40, 8),
}
SHAPES |= {f"{D} columns": (2, D, 9, 4) for n in (128, 256) for D in (n - 1, n, n + 1)}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    B, D, F, K = shape
    check(fixed_code(B, F, K), D, F, dtype)


def test_16_bit_error_with_fp32_weights_and_16_bit_activations() -> None:
    acts, indices, _ = code_to(fixed_code(5, 20, 4), DEVICE)
    error, W_dec = rows(5, 40, 20, torch.float16)
    got = grad_top_acts(error, W_dec.float(), acts.half(), indices)
    torch.testing.assert_close(got, reference.grad_top_acts(error, W_dec.float(), acts, indices))


def test_inactive_entries_get_no_gradient() -> None:
    acts, indices, _ = fixed_code(6, 20, 5)
    acts[:, 3:] = 0
    acts[2] = -1
    check((acts, indices, None), 40, 20, torch.float32)


def test_rows_of_inactive_entries_are_not_read() -> None:
    acts, indices, _ = code_to(fixed_code(6, 20, 5), DEVICE)
    error, W_dec = rows(6, 40, 20, torch.float32)
    acts[indices == 7] = 0
    W_dec[7] = float("nan")
    assert grad_top_acts(error, W_dec, acts, indices).isfinite().all()


def test_latent_active_in_every_token() -> None:
    acts, indices, _ = fixed_code(20, 32, 4)
    indices[:, 1] = 31
    check((acts, indices, None), 64, 32, torch.float32)


COUNTS = {
    "typical": [3, 5, 1, 7, 2],
    "no entry": [0, 0, 0],
    "some without entries": [0, 4, 0, 9, 0],
    "one token": [6],
    "around the tiles": [3, 4, 5, 15, 16, 17],
    "all latents": [40, 0, 40],
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("unused", [0, 5], ids=["full", "with room"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_ragged(counts: list[int], unused: int, dtype: torch.dtype) -> None:
    check(ragged_code(counts, 40, unused), 130, 40, dtype)


def test_more_entries_found_than_there_is_room_for() -> None:
    acts, indices, row_offsets = code_to(ragged_code([4, 6, 5], 12, unused=0), DEVICE)
    error, W_dec = rows(3, 40, 12, torch.float32)
    got = grad_top_acts(error, W_dec, acts[:8], indices[:8], row_offsets)
    expected = reference.grad_top_acts(error, W_dec, acts[:8], indices[:8], row_offsets.clamp_max(8))
    torch.testing.assert_close(got, expected)


def test_no_tokens() -> None:
    acts, indices, _ = code_to(fixed_code(3, 20, 4), DEVICE)
    error, W_dec = rows(3, 40, 20, torch.float16)
    got = grad_top_acts(error[:0], W_dec, acts[:0], indices[:0])
    assert got.shape == (0, 4) and got.dtype == torch.float32


def test_same_bits_every_time() -> None:
    acts, indices, _ = code_to(fixed_code(5, 30, 9), DEVICE)
    error, W_dec = rows(5, 300, 30, torch.float32)
    first, second = (grad_top_acts(error, W_dec, acts, indices) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("K", [1, 3, 4, 5, 13, 64])
def test_config_gives_every_program_work(K: int, itemsize: int) -> None:
    config = grad_top_acts_config(K, 768, itemsize)
    assert (config.PROGRAMS - 1) * config.BLOCK_K < K
    assert config.BLOCK_D * itemsize == 32 * 16


def test_rejects_what_the_kernel_cannot_read() -> None:
    acts, indices, _ = fixed_code(4, 9, 3)
    error, W_dec = torch.randn(4, 8), torch.randn(9, 8)
    with pytest.raises(AssertionError, match="error: expected"):
        grad_top_acts(error[:, :4], W_dec, acts, indices)
    with pytest.raises(AssertionError, match="W_dec: expected contiguous"):
        grad_top_acts(error, W_dec.T.contiguous().T, acts, indices)
