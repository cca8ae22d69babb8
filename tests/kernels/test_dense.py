"""The dense Triton ops against `saefast.reference`, and the choice between dense and sparse steps.

Each epilogue with small tiles and exact operands: test_gemm.py.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.dense import (
    dense_error,
    dense_grad_acts,
    outer_sum,
    relu_encode,
)
from tests.helpers.kernels import DEVICE, assert_as_exact_as_torch, dtypes

SHAPES = {  # B, D, F; tiles of 128 x 128
    "one tile": (40, 72, 96),
    "over a tile": (129, 136, 130),
    "odd": (5, 31, 135),
    "one token": (1, 64, 257),
    "ones": (1, 1, 1),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def normals(*sizes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=rng).to(dtype).to(DEVICE) for size in sizes]


@pytest.mark.each_value
@dtypes
@shapes
def test_relu_encode(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, D, F = shape
    centred, W_enc = normals((B, D), (F, D), dtype=dtype)
    (b_enc,) = normals((F,), dtype=torch.float32, seed=1)
    acts, total, counts = relu_encode(centred, W_enc, b_enc)
    expected = reference.relu_encode(centred, W_enc, b_enc)
    exact = reference.relu_encode(centred.double(), W_enc.double(), b_enc.double())
    assert_as_exact_as_torch(acts, expected[0], exact[0])
    assert total.dtype == torch.float32 and counts.dtype == torch.int32
    torch.testing.assert_close(total, acts.sum(dtype=torch.float32), rtol=1e-5, atol=0)
    assert torch.equal(counts, (acts > 0).sum(dim=0, dtype=torch.int32))


@pytest.mark.each_value
@dtypes
@shapes
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["minus target", "plus target"])
def test_dense_error(shape: tuple[int, int, int], dtype: torch.dtype, sign: float) -> None:
    B, D, F = shape
    acts, W_dec = normals((B, F), (F, D), dtype=dtype)
    (target,) = normals((B, D), dtype=torch.float32, seed=1)
    error, squares = dense_error(acts, W_dec, target, sign)
    expected = reference.dense_error(acts, W_dec, target, sign)
    exact = reference.dense_error(acts.double(), W_dec.double(), target.double(), sign)
    assert_as_exact_as_torch(error, expected[0], exact[0])
    assert_as_exact_as_torch(squares, expected[1], exact[1])


def test_squares_are_of_the_error_before_it_is_rounded() -> None:
    acts, W_dec, target = normals((9, 40), (40, 64), (9, 64), dtype=torch.float16)
    error, squares = dense_error(acts, W_dec, target)
    exact = (acts.double() @ W_dec.double() - target.double()).square().sum(dim=1)
    assert error.dtype == torch.float16
    torch.testing.assert_close(squares.double(), exact, rtol=1e-6, atol=0)
    rounded = error.double().square().sum(dim=1)
    assert ((rounded - exact).abs() > 1e-6 * exact).any()  # so the line above can tell


@pytest.mark.each_value
@dtypes
@shapes
def test_dense_grad_acts(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, D, F = shape
    error, W_dec, acts = normals((B, D), (F, D), (B, F), dtype=dtype)
    acts.relu_()
    acts[:, ::3] = 1  # active in every token
    acts[:, 1::3] = 0  # active in none
    addend = torch.full((), -0.25, device=DEVICE)
    got = dense_grad_acts(error, W_dec, acts, addend)
    exact = reference.dense_grad_acts(error.double(), W_dec.double(), acts.double(), addend.double())
    assert_as_exact_as_torch(got, reference.dense_grad_acts(error, W_dec, acts, addend), exact)
    assert (got[acts == 0] == 0).all()


@dtypes
def test_latents_that_are_never_active(dtype: torch.dtype) -> None:
    centred, W_enc = normals((7, 16), (140, 16), dtype=dtype)
    acts, total, counts = relu_encode(centred, W_enc, torch.full((140,), -1e3, device=DEVICE))
    assert (acts == 0).all() and total == 0 and (counts == 0).all()
    error, squares = dense_error(acts, W_enc, centred)
    assert torch.equal(error, -centred)
    torch.testing.assert_close(squares, centred.float().square().sum(dim=1), rtol=1e-6, atol=0)


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    centred, W = normals((0, 16), (30, 16), dtype=dtype)
    acts, total, counts = relu_encode(centred, W, torch.zeros(30, device=DEVICE))
    assert acts.shape == (0, 30) and acts.dtype == dtype
    assert total == 0 and total.dtype == torch.float32
    assert torch.equal(counts, torch.zeros(30, dtype=torch.int32, device=DEVICE))
    error, squares = dense_error(acts, W, centred)
    assert error.shape == (0, 16) and squares.shape == (0,)
    assert dense_grad_acts(centred, W, acts, torch.zeros((), device=DEVICE)).shape == (0, 30)
    assert torch.equal(outer_sum(acts, centred), torch.zeros(30, 16, device=DEVICE))


@dtypes
def test_outer_sum(dtype: torch.dtype) -> None:
    left, right = normals((300, 20), (300, 12), dtype=dtype)
    got = outer_sum(left, right)
    assert_as_exact_as_torch(got, reference.outer_sum(left, right), left.double().T @ right.double())


def test_same_bits_every_time() -> None:
    centred, W_enc, b_enc = normals((130, 40), (140, 40), (140,), dtype=torch.float32)
    first, second = (relu_encode(centred, W_enc, b_enc) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first, second = (dense_error(first[0], W_enc, centred) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rejects_what_the_kernels_cannot_read() -> None:
    centred, W, acts = normals((3, 8), (10, 8), (3, 10), dtype=torch.float32)
    with pytest.raises(AssertionError, match="b_enc: expected"):
        relu_encode(centred, W, W[0])
    with pytest.raises(AssertionError, match="W_dec: expected"):
        dense_error(acts, W[:9], centred)
    with pytest.raises(AssertionError, match="addend: expected"):
        dense_grad_acts(centred, W, acts, W[0])
