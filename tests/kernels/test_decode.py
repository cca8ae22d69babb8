"""The Triton decode and its error against `saefast.reference`: on a GPU where there is one, else in Triton's interpreter.

Fresh memory is NaN (conftest.py), so what a kernel leaves unwritten cannot look like a result.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.decode import decode, decode_config, decode_error
from tests.helpers.kernels import DEVICE, assert_as_exact_as_torch, dtypes, needs_gpu
from tests.helpers.sparse_codes import Code, code_to, fixed_code, ragged_code

Case = tuple[Tensor, Tensor, Tensor, Tensor]  # and row_offsets in the ragged layout


def weights(D: int, F: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Unit-norm rows and a bias, fp32."""
    rng = torch.Generator().manual_seed(seed)
    return reference.normalize_rows_(torch.randn(F, D, generator=rng)), torch.randn(D, generator=rng)


def random_case(B: int, D: int, F: int, K: int, dtype: torch.dtype) -> Case:
    acts, indices, _ = fixed_code(B, F, K)
    acts, W_dec, b_dec = (t.to(dtype).to(DEVICE) for t in (acts, *weights(D, F)))
    return acts, indices.to(DEVICE), W_dec, b_dec


def double(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def check(case: tuple[Tensor, ...]) -> None:
    assert_as_exact_as_torch(decode(*case), reference.decode(*case), reference.decode(*double(case)))


def check_error(code: Code, D: int, F: int, of_W: torch.dtype, of_x: torch.dtype, out: torch.dtype) -> None:
    """Against fp64: `error` rounded once from a sum in fp32, `sq_error` to fp32 precision whatever the formats."""
    acts, indices, row_offsets = code_to(code, DEVICE)
    W_dec, b_dec = (t.to(DEVICE) for t in weights(D, F))
    W_dec = W_dec.to(of_W)
    B = len(acts) if row_offsets is None else len(row_offsets) - 1
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(2)).to(DEVICE).to(of_x)
    error, sq_error = decode_error(acts, indices, W_dec, b_dec, x, out, row_offsets)
    exact, squares = reference.decode_error(
        *double((acts, indices, W_dec, b_dec, x)), torch.float64, row_offsets
    )
    assert error.dtype == out and error.shape == (B, D)
    assert sq_error.dtype == torch.float32 and sq_error.shape[0] == B
    ulp = max(2e-7, 0.5 * torch.finfo(out).eps)
    assert ((error.double() - exact).abs() <= ulp * exact.abs() + 2e-6).all()
    torch.testing.assert_close(sq_error.double().sum(dim=1), squares, rtol=2e-6, atol=1e-6)


SHAPES = {  # B, D, F, K; on the right the tiles of decode_config in fp32
    "576": (2, 576, 64, 17),  # 4 x 128, five of them, the last half padding
    "768": (2, 768, 100, 10),  # 4 x 256, three of them
    "2304": (2, 2304, 40, 5),  # 4 x 512, padded; one slot in the second round
    "odd": (7, 130, 51, 7),  # 4 x 128; all but two columns of the second are padding
    "one column": (4, 1, 9, 3),
    "seven columns": (9, 7, 33, 4),
    "eight columns": (9, 8, 32, 5),
    "k 1": (6, 64, 17, 1),
    "k all": (4, 48, 37, 37),  # 8 x 64
    "one token": (1, 96, 40, 8),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(random_case(*shape, dtype))


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_error_matches_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    B, D, F, K = shape
    check_error(fixed_code(B, F, K), D, F, dtype, torch.float32, dtype)


@pytest.mark.parametrize("D", [127, 128, 129, 255, 256, 257, 511, 512, 513])
def test_columns_around_the_tiles(D: int) -> None:
    check_error(fixed_code(2, 9, 3), D, 9, torch.float32, torch.float32, torch.float32)


@pytest.mark.each_value
@pytest.mark.parametrize("of_W", [torch.float32, torch.float16], ids=["W_dec fp32", "W_dec fp16"])
@pytest.mark.parametrize(
    "of_x", [torch.float32, torch.float16, torch.bfloat16], ids=["x fp32", "x fp16", "x bf16"]
)
@pytest.mark.parametrize("out", [torch.float32, torch.float16], ids=["to fp32", "to fp16"])
def test_error_in_other_formats(of_W: torch.dtype, of_x: torch.dtype, out: torch.dtype) -> None:
    check_error(fixed_code(4, 30, 6), 40, 30, of_W, of_x, out)


def test_error_is_not_rounded_before_the_end() -> None:
    """x_hat and x are 1000 apart from fp16's precision; the squares are below fp16's range."""
    acts, indices, _ = code_to(fixed_code(3, 8, 2), DEVICE)
    W_dec, b_dec = (
        torch.zeros(8, 40, dtype=torch.float16, device=DEVICE),
        torch.full((40,), 1000.0, device=DEVICE),
    )
    x = torch.full((3, 40), 1000.0 + 2**-12, device=DEVICE)
    error, sq_error = decode_error(acts, indices, W_dec, b_dec, x, torch.float16)
    assert (error == -(2**-12)).all()
    error, sq_error = decode_error(acts, indices, W_dec, b_dec * 2e-12, x * 1e-12, torch.float16)
    assert (error == 0).all()
    torch.testing.assert_close(
        sq_error.sum(dim=1), torch.full((3,), 40 * 1e-18, device=DEVICE), rtol=1e-5, atol=0
    )


COUNTS = {
    "typical": [3, 5, 1, 7, 2],
    "no entry": [0, 0, 0],
    "some without entries": [0, 4, 0, 9, 0],
    "one token": [6],
    "around a tile": [3, 4, 5, 8, 9],  # 4 x 128
    "all latents": [40, 0, 40],
}


@pytest.mark.each_value
@pytest.mark.parametrize("unused", [0, 5], ids=["full", "with room"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_ragged(counts: list[int], unused: int) -> None:
    acts, indices, row_offsets = code_to(ragged_code(counts, 40, unused), DEVICE)
    check((acts, indices, *(t.to(DEVICE) for t in weights(130, 40)), row_offsets))


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_ragged_error(counts: list[int], dtype: torch.dtype) -> None:
    check_error(ragged_code(counts, 40), 130, 40, dtype, torch.float32, dtype)


def test_more_entries_found_than_there_is_room_for() -> None:
    acts, indices, row_offsets = code_to(ragged_code([4, 6, 5], 12, unused=0), DEVICE)
    W_dec, b_dec = (t.to(DEVICE) for t in weights(20, 12))
    got = decode(acts[:8], indices[:8], W_dec, b_dec, row_offsets)
    torch.testing.assert_close(
        got, reference.decode(acts[:8], indices[:8], W_dec, b_dec, row_offsets.clamp_max(8))
    )


def test_negative_activations() -> None:
    """`reference.above_threshold` keeps them."""
    acts, indices, _ = fixed_code(5, 20, 4)
    acts[:, ::2] *= -1
    check_error((acts, indices, None), 40, 20, torch.float32, torch.float32, torch.float32)


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    acts, indices, W_dec, b_dec = random_case(3, 24, 16, 4, dtype)
    x_hat = decode(acts[:0], indices[:0], W_dec, b_dec)
    assert x_hat.shape == (0, 24) and x_hat.dtype == dtype
    error, sq_error = decode_error(acts[:0], indices[:0], W_dec, b_dec, x_hat, torch.float16)
    assert error.shape == (0, 24) and error.dtype == torch.float16
    assert sq_error.shape[0] == 0 and sq_error.dtype == torch.float32


@dtypes
def test_latent_active_in_every_token(dtype: torch.dtype) -> None:
    acts, indices, W_dec, b_dec = random_case(20, 64, 32, 4, dtype)
    indices[:, 1] = 31
    check((acts, indices, W_dec, b_dec))


@dtypes
def test_zero_activations(dtype: torch.dtype) -> None:
    """Some inactive slots; one token with none active, which is b_dec exactly."""
    acts, indices, W_dec, b_dec = random_case(6, 200, 32, 8, dtype)
    acts[:, 5:] = 0
    acts[2] = 0
    check((acts, indices, W_dec, b_dec))
    assert torch.equal(decode(acts, indices, W_dec, b_dec)[2], b_dec)


def test_same_bits_every_time() -> None:
    case = random_case(3, 300, 64, 12, torch.float32)
    assert torch.equal(decode(*case), decode(*case))
    x = torch.randn(3, 300, device=DEVICE)
    first, second = (decode_error(*case, x, torch.float32) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_wider_dtype_of_weights_and_bias() -> None:
    acts, indices, W_dec, b_dec = random_case(3, 40, 16, 4, torch.float16)
    x_hat = decode(acts.float(), indices, W_dec, b_dec.float())
    assert x_hat.dtype == torch.float32
    expected = reference.decode(acts.float(), indices, W_dec.float(), b_dec.float())
    torch.testing.assert_close(x_hat, expected)


@needs_gpu
def test_addresses_beyond_int32() -> None:
    """The last rows of a W_dec (4 GB) of more than 2^31 elements, with the first ones as bait for a wrapped address."""
    D, F = 4096, 2**19 + 8
    W_dec = torch.zeros(F, D, dtype=torch.bfloat16, device=DEVICE)
    W_dec[-4:] = torch.arange(1, 5, device=DEVICE)[:, None]
    indices = torch.arange(F - 4, F, dtype=torch.int32, device=DEVICE)[None]
    x_hat = decode(torch.ones(1, 4, device=DEVICE), indices, W_dec, torch.zeros(D, device=DEVICE))
    assert (x_hat == 10).all()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [1, 7, 64, 100, 130, 200, 576, 600, 768, 1000, 2304, 4096, 5000])
def test_config_covers_every_column_with_little_padding(D: int, itemsize: int) -> None:
    config = decode_config(32, D, itemsize)
    padded = -(-D // config.BLOCK_D) * config.BLOCK_D
    assert D <= padded <= max(D + D // 8, D + 127)
    assert config.BLOCK_K * config.BLOCK_D * itemsize <= config.num_warps * 32 * 16 * 4


def test_rejects_what_the_kernel_cannot_read() -> None:
    acts, indices, W_dec, b_dec = random_case(3, 24, 16, 4, torch.float32)
    with pytest.raises(AssertionError, match="W_dec: expected contiguous"):
        decode(acts, indices, W_dec.T.contiguous().T, b_dec)
    with pytest.raises(AssertionError, match="indices: expected"):
        decode(acts, indices[:, :3].contiguous(), W_dec, b_dec)
    with pytest.raises(AssertionError, match="row_offsets: expected contiguous"):
        decode(acts.flatten(), indices.flatten(), W_dec, b_dec, torch.arange(6, dtype=torch.int32)[::2])
    with pytest.raises(AssertionError, match="x: expected"):
        decode_error(acts, indices, W_dec, b_dec, b_dec, torch.float32)
