"""The tiles of `saefast.triton_kernels.gemm` under each epilogue, with small tiles, so that small matrices have many.

Most operands are small integers: every product and sum is exact in fp32 and fp16, whatever the order, and the results
must be equal bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.reference import rounded_pre_acts
from saefast.triton_kernels import gemm
from saefast.triton_kernels.dense import dense_error, dense_grad_acts, relu_encode
from saefast.triton_kernels.gemm import GemmConfig, gemm_config, wide_product
from saefast.triton_kernels.pre_acts import fused_pre_acts, pre_acts_and_maxima
from tests.helpers.kernels import DEVICE, dtypes, needs_gpu

TINY = GemmConfig(16, 128, 16, 4, 2, TMA=False, FLATTEN=False, GROUP_M=3)
by_tma = pytest.mark.parametrize("TMA", [True, False], ids=["tma", "pointers"])
SHAPES = {  # B, D, F; tiles of 16 x 128, 16 at a time in D; F and D swap places in dense_error
    "one tile": (16, 16, 128),
    "just under": (15, 8, 120),
    "just over": (17, 24, 136),
    "many tiles": (50, 40, 392),  # 4 x 4, the last group of rows not full
    "one token": (1, 16, 264),
    "half a tile empty": (16, 16, 200),
}
ODD = {"odd": (18, 17, 131), "ones": (3, 1, 1)}  # not for TMA


def integers(*size: int, dtype: torch.dtype, limit: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, size, generator=rng).to(dtype).to(DEVICE)


def encode(B: int, D: int, F: int, dtype: torch.dtype, config: GemmConfig) -> None:
    centred, W_enc = integers(B, D, dtype=dtype), integers(F, D, dtype=dtype, seed=1)
    b_enc = integers(F, dtype=torch.float32, seed=2)
    pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, b_enc, None, "triton", config=config)
    expected = rounded_pre_acts(centred, W_enc, b_enc)
    assert torch.equal(pre_acts, expected) and pre_acts.dtype == dtype
    padded = torch.nn.functional.pad(expected, (0, -F % 64), value=-torch.inf)
    assert torch.equal(maxima, padded.view(B, -1, 64).amax(dim=2))


def scaled_encode(B: int, D: int, F: int, dtype: torch.dtype, config: GemmConfig) -> None:
    """A bias in 1024ths and scales in thirds: fp16 rounds before and after scaling, exactly as the reference does."""
    centred, W_enc = integers(B, D, dtype=dtype), integers(F, D, dtype=dtype, seed=1)
    b_enc = integers(F, dtype=torch.float32, limit=3000, seed=2) / 1024
    scale = integers(F, dtype=torch.float32, seed=3).abs() / 3
    pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, b_enc, scale, "triton", config=config)
    expected = (rounded_pre_acts(centred, W_enc, b_enc) * scale).to(dtype)
    assert torch.equal(pre_acts, expected)
    padded = torch.nn.functional.pad(expected, (0, -F % 64), value=-torch.inf)
    assert torch.equal(maxima, padded.view(B, -1, 64).amax(dim=2))


def relu(B: int, D: int, F: int, dtype: torch.dtype, config: GemmConfig) -> None:
    centred, W_enc = integers(B, D, dtype=dtype), integers(F, D, dtype=dtype, seed=1)
    b_enc = integers(F, dtype=torch.float32, seed=2)
    for got, expected in zip(
        relu_encode(centred, W_enc, b_enc, config=config),
        reference.relu_encode(centred, W_enc, b_enc),
        strict=True,
    ):
        assert torch.equal(got, expected) and got.dtype == expected.dtype


def error(B: int, D: int, F: int, dtype: torch.dtype, config: GemmConfig) -> None:
    acts, W_dec = integers(B, F, dtype=dtype, limit=1), integers(F, D, dtype=dtype, limit=1, seed=1)
    target = integers(B, D, dtype=torch.float32, seed=2)
    for sign in (1.0, -1.0):
        for got, expected in zip(
            dense_error(acts, W_dec, target, sign, config=config),
            reference.dense_error(acts, W_dec, target, sign),
            strict=True,
        ):
            assert torch.equal(got, expected) and got.dtype == expected.dtype


def grad(B: int, D: int, F: int, dtype: torch.dtype, config: GemmConfig) -> None:
    error, W_dec = integers(B, D, dtype=dtype), integers(F, D, dtype=dtype, seed=1)
    acts, addend = integers(B, F, dtype=dtype, seed=2).relu(), torch.full((), 3.0, device=DEVICE)
    got = dense_grad_acts(error, W_dec, acts, addend, config=config)
    assert torch.equal(got, reference.dense_grad_acts(error, W_dec, acts, addend)) and got.dtype == dtype


epilogues = pytest.mark.parametrize("check", [encode, scaled_encode, relu, error, grad])
Check = Callable[[int, int, int, torch.dtype, GemmConfig], None]


@pytest.mark.each_value
@by_tma
@epilogues
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_epilogue(shape: tuple[int, int, int], check: Check, TMA: bool) -> None:
    check(*shape, torch.float16, replace(TINY, TMA=TMA))


@pytest.mark.each_value
@epilogues
@pytest.mark.parametrize("shape", ODD.values(), ids=ODD.keys())
def test_rows_that_tma_cannot_read(shape: tuple[int, int, int], check: Check) -> None:
    check(*shape, torch.float16, TINY)


@pytest.mark.each_value
@dtypes
@epilogues
def test_dtypes_with_the_config_of_the_shape(check: Check, dtype: torch.dtype) -> None:
    B, D, F = 130, 72, 264
    N, K = (D, F) if check is error else (F, D)
    check(B, D, F, dtype, gemm_config(B, N, K, dtype, NN=check is error))


@pytest.mark.each_value
@by_tma
@epilogues
def test_flattened_loop_with_more_tiles_than_programs(
    check: Check, TMA: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "multiprocessors", lambda device: 3)
    check(50, 40, 392, torch.float16, replace(TINY, TMA=TMA, FLATTEN=True))


def test_two_blocks_on_a_multiprocessor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "multiprocessors", lambda device: 3)
    centred, W_enc = integers(50, 40, dtype=torch.float16), integers(392, 40, dtype=torch.float16)
    grids = [gemm.tiled(centred, W_enc, config=replace(TINY, blocks=n)).grid for n in (1, 2, 9)]
    assert grids == [(3,), (6,), (16,)]  # 4 x 4 tiles
    encode(50, 40, 392, torch.float16, replace(TINY, blocks=2))


def test_infinite_rows_do_not_mark_the_columns_beyond_the_last_latent() -> None:
    """There infinity meets weights of 0, which is NaN."""
    centred, W_enc = (
        integers(3, 16, dtype=torch.float16),
        torch.ones(200, 16, dtype=torch.float16, device=DEVICE),
    )
    centred[1, 2] = -torch.inf
    _, maxima = pre_acts_and_maxima(
        centred, W_enc, torch.zeros(200, device=DEVICE), None, "triton", config=TINY
    )
    assert (maxima[1] == -torch.inf).all()


def test_result_does_not_depend_on_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    centred, W_enc, b_enc = (
        torch.randn(size, generator=rng).to(DEVICE) for size in ((40, 33), (260, 33), (260,))
    )
    first = pre_acts_and_maxima(centred, W_enc, b_enc, None, "triton", config=TINY)
    monkeypatch.setattr(gemm, "multiprocessors", lambda device: 2)
    second = pre_acts_and_maxima(centred, W_enc, b_enc, None, "triton", config=replace(TINY, GROUP_M=1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@dtypes
def test_tf32_is_as_good_as_its_mantissa(dtype: torch.dtype) -> None:
    """16-bit operands do not notice it."""
    rng = torch.Generator().manual_seed(0)
    centred, W_enc, b_enc = (
        torch.randn(size, generator=rng).to(DEVICE) for size in ((20, 64), (130, 64), (130,))
    )
    centred, W_enc = centred.to(dtype), W_enc.to(dtype)
    got = pre_acts_and_maxima(centred, W_enc, b_enc, None, "triton", precision="tf32")[0]
    exact = rounded_pre_acts(centred.double(), W_enc.double(), b_enc.double())
    bound = 2**-10 * (centred.double().abs() @ W_enc.double().abs().T + b_enc.abs())
    assert ((got.double() - exact).abs() <= bound + torch.finfo(dtype).eps * exact.abs()).all()


def test_nan_is_plus_infinity_in_maxima_and_without_them_and_stays_in_relu() -> None:
    centred, W_enc = integers(5, 16, dtype=torch.float16), integers(200, 16, dtype=torch.float16)
    W_enc[70, 3] = torch.nan
    b_enc = torch.zeros(200, device=DEVICE)
    pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, b_enc, None, "triton", config=TINY)
    assert pre_acts[:, 70].isnan().all() and torch.isfinite(pre_acts[:, :70]).all()
    alone = fused_pre_acts(centred, W_enc, b_enc, config=TINY)
    assert (alone[:, 70] == torch.inf).all() and torch.equal(alone[:, :70], pre_acts[:, :70])
    assert (maxima[:, 1] == torch.inf).all() and torch.isfinite(maxima[:, [0, 2, 3]]).all()
    acts, total, counts = relu_encode(centred, W_enc, b_enc, config=TINY)
    assert acts[:, 70].isnan().all() and total.isnan() and counts[70] == 0


def test_nan_outside_the_active_ones_is_not_in_the_gradient() -> None:
    error, W_dec = integers(4, 16, dtype=torch.float32), integers(130, 16, dtype=torch.float32)
    W_dec[7] = torch.nan
    acts = torch.ones(4, 130, device=DEVICE)
    acts[:, 7] = 0
    assert (dense_grad_acts(error, W_dec, acts, torch.zeros((), device=DEVICE), config=TINY)[:, 7] == 0).all()


@dtypes
def test_wide_product_keeps_fp32(dtype: torch.dtype) -> None:
    left, right = integers(3, 2000, dtype=dtype, limit=9), integers(2000, 5, dtype=dtype, limit=9, seed=1)
    assert torch.equal(wide_product(left, right), (left.double() @ right.double()).float())


@needs_gpu
def test_addresses_beyond_int32() -> None:
    """B * F = 2^31 + 2^16; the first row as bait for a wrapped address."""
    B, D, F = 32769, 16, 65536
    centred = torch.zeros(B, D, dtype=torch.bfloat16, device=DEVICE)
    W_enc = torch.ones(F, D, dtype=torch.bfloat16, device=DEVICE)
    centred[-1] = 1
    pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, torch.zeros(F, device=DEVICE), None, "triton")
    assert (pre_acts[-1] == 16).all() and (maxima[-1] == 16).all() and (pre_acts[0] == 0).all()


CONFIGS = {  # M, N, K, dtype, NN, precision, capability -> config
    "A": ((8192, 24576, 768, torch.bfloat16), gemm.WIDE),
    "C": ((8192, 262144, 4096, torch.bfloat16), gemm.WIDE),
    "small": (
        (1024, 4608, 576, torch.bfloat16),
        gemm.NARROW,
    ),  # one round of WIDE would leave half the GPU idle
    "one round": ((1024, 4096, 4096, torch.bfloat16), gemm.WIDE),
    "A, decoder": ((8192, 768, 24576, torch.bfloat16, True), gemm.NARROW),
    "unaligned": ((8192, 24576, 767, torch.bfloat16), gemm.NARROW_POINTERS),
    "unaligned, decoder": ((8192, 767, 24576, torch.bfloat16, True), gemm.NARROW_POINTERS),
    "sm_80": ((8192, 24576, 768, torch.bfloat16, False, "ieee", (8, 0)), gemm.NARROW_POINTERS),
    "sm_100": ((8192, 24576, 768, torch.bfloat16, False, "ieee", (10, 0)), gemm.NARROW),
    "sm_120": ((8192, 24576, 768, torch.bfloat16, False, "ieee", (12, 0)), gemm.NARROW_POINTERS),
    "fp32": ((8192, 24576, 768, torch.float32), gemm.IEEE),
    "tf32": ((8192, 24576, 768, torch.float32, False, "tf32"), gemm.TF32),
    "tf32 sm_80": ((8192, 24576, 768, torch.float32, False, "tf32", (8, 0)), gemm.TF32_POINTERS),
}


@pytest.mark.parametrize(("arguments", "expected"), CONFIGS.values(), ids=CONFIGS.keys())
def test_config(arguments: tuple[object, ...], expected: GemmConfig) -> None:
    assert gemm_config(*arguments) == expected  # type: ignore[arg-type]


def test_rejects_what_the_kernel_cannot_read() -> None:
    acts, W_dec = torch.zeros(3, 8, device=DEVICE), torch.zeros(8, 4, device=DEVICE)
    target = torch.zeros(3, 4, device=DEVICE)
    with pytest.raises(AssertionError, match="right: expected contiguous"):
        dense_error(acts, W_dec.T.contiguous().T, target)
    with pytest.raises(AssertionError, match=r"right: expected torch.float32"):
        dense_error(acts, W_dec.half(), target)
    with pytest.raises(AssertionError, match="target: expected"):
        dense_error(acts, W_dec, target[:2])
