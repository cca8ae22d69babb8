"""Dense steps of a ReLU code, in which so many latents are active that every token multiplies by all of them.

    relu_encode      acts = relu(centred @ W_enc.T + b_enc); sum of acts; active tokens of each latent
    dense_error      error = acts @ W_dec - sign * target; squares of each row
    dense_grad_acts  grad = error @ W_dec.T + addend where acts > 0, else 0
    outer_sum        left.T @ right

Each is one product of 2 B F D FLOPs, which bound it (`gemm_flops`); the rest happens on its accumulator. Sums over tiles
are partial sums, added by torch in a fixed order. Specs: the functions of these names in `saefast.reference`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.gemm import (
    GemmConfig,
    device_capability,
    gemm_config,
    halves,
    product,
    tile_offsets,
    tiled,
    wide_product,
)


@triton.jit
def _finish_relu(acc, bias_ptr, acts_ptr, counts_ptr, sums_ptr, row, col, B, F, n_sums):
    BLOCK_B: tl.constexpr = acc.shape[0]
    BLOCK_F: tl.constexpr = acc.shape[1]
    b = row + tl.arange(0, BLOCK_B)
    f = col + tl.arange(0, BLOCK_F)
    inside = (b < B)[:, None] & (f < F)[None, :]
    z = acc + tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    z = tl.where((z < 0) | ~inside, 0.0, z)  # NaN stays
    acts = z.to(acts_ptr.dtype.element_ty)
    b_wide = b.to(tl.int64)  # B * F passes 2^31
    tl.store(acts_ptr + b_wide[:, None] * F + f[None, :], acts, mask=inside)
    acts = acts.to(tl.float32)
    counts = tl.sum((acts > 0).to(tl.int32), axis=0)
    tl.store(counts_ptr + (row // BLOCK_B).to(tl.int64) * F + f, counts, mask=f < F)
    tl.store(sums_ptr + b_wide * n_sums + col // BLOCK_F, tl.sum(acts, axis=1), mask=(b < B) & (col < F))


@triton.jit
def _gemm_relu_kernel(
    centred,  # [B, D]
    W_enc,  # [F, D]
    bias_ptr,  # [F]
    acts_ptr,  # [B, F] out
    counts_ptr,  # [row blocks, F] int32 out
    sums_ptr,  # [B, n_sums] fp32 out, of half a tile
    n_sums,
    B,
    F,
    D,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    n_tiles = tl.cdiv(B, BLOCK_M) * tl.cdiv(F, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=FLATTEN):
        row, col = tile_offsets(tile, B, F, BLOCK_M, BLOCK_N, GROUP_M)
        acc = product(centred, W_enc, row, col, B, F, D, False, TMA, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        left, right = halves(acc)
        _finish_relu(left, bias_ptr, acts_ptr, counts_ptr, sums_ptr, row, col, B, F, n_sums)
        _finish_relu(right, bias_ptr, acts_ptr, counts_ptr, sums_ptr, row, col + BLOCK_N // 2, B, F, n_sums)


@triton.jit
def _finish_error(acc, target_ptr, error_ptr, squares_ptr, sign, row, col, B, D, n_sums):
    BLOCK_B: tl.constexpr = acc.shape[0]
    BLOCK_D: tl.constexpr = acc.shape[1]
    b = row + tl.arange(0, BLOCK_B)
    d = col + tl.arange(0, BLOCK_D)
    inside = (b < B)[:, None] & (d < D)[None, :]
    b_wide = b.to(tl.int64)
    at = b_wide[:, None] * D + d[None, :]
    error = acc - sign * tl.load(target_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(error_ptr + at, error.to(error_ptr.dtype.element_ty), mask=inside)
    squares = tl.sum(error * error, axis=1)  # 0 beyond D, where both terms are
    tl.store(squares_ptr + b_wide * n_sums + col // BLOCK_D, squares, mask=(b < B) & (col < D))


@triton.jit
def _gemm_error_kernel(
    acts,  # [B, F]
    W_dec,  # [F, D]
    target_ptr,  # [B, D]
    error_ptr,  # [B, D] out
    squares_ptr,  # [B, n_sums] fp32 out, of half a tile
    sign,
    n_sums,
    B,
    D,
    F,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    n_tiles = tl.cdiv(B, BLOCK_M) * tl.cdiv(D, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=FLATTEN):
        row, col = tile_offsets(tile, B, D, BLOCK_M, BLOCK_N, GROUP_M)
        acc = product(acts, W_dec, row, col, B, D, F, True, TMA, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        left, right = halves(acc)
        _finish_error(left, target_ptr, error_ptr, squares_ptr, sign, row, col, B, D, n_sums)
        _finish_error(right, target_ptr, error_ptr, squares_ptr, sign, row, col + BLOCK_N // 2, B, D, n_sums)


@triton.jit
def _finish_grad(acc, acts_ptr, addend, grad_ptr, row, col, B, F):
    BLOCK_B: tl.constexpr = acc.shape[0]
    BLOCK_F: tl.constexpr = acc.shape[1]
    b = row + tl.arange(0, BLOCK_B)
    f = col + tl.arange(0, BLOCK_F)
    inside = (b < B)[:, None] & (f < F)[None, :]
    at = b.to(tl.int64)[:, None] * F + f[None, :]
    acts = tl.load(acts_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.where(acts > 0, acc + addend, 0.0)
    tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gemm_grad_acts_kernel(
    error,  # [B, D]
    W_dec,  # [F, D]
    acts_ptr,  # [B, F]
    addend_ptr,  # []
    grad_ptr,  # [B, F] out
    B,
    F,
    D,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    addend = tl.load(addend_ptr).to(tl.float32)
    n_tiles = tl.cdiv(B, BLOCK_M) * tl.cdiv(F, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=FLATTEN):
        row, col = tile_offsets(tile, B, F, BLOCK_M, BLOCK_N, GROUP_M)
        acc = product(error, W_dec, row, col, B, F, D, False, TMA, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        left, right = halves(acc)
        _finish_grad(left, acts_ptr, addend, grad_ptr, row, col, B, F)
        _finish_grad(right, acts_ptr, addend, grad_ptr, row, col + BLOCK_N // 2, B, F)


def assert_shapes(**tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in tensors.items():
        assert tensor.shape == shape, f"{name}: expected {shape}, got {tuple(tensor.shape)}"


def relu_encode(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    *,
    precision: str = "ieee",
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, D], [F, D], [F] -> acts [B, F] in centred's dtype, their sum [] fp32, active tokens of each latent [F] int32."""
    (B, D), F, device = centred.shape, len(W_enc), centred.device
    assert_shapes(W_enc=(W_enc, (F, D)), b_enc=(b_enc, (F,)))
    acts = torch.empty(B, F, dtype=centred.dtype, device=device)
    if B == 0:
        return acts, acts.sum(dtype=torch.float32), acts.sum(dim=0, dtype=torch.int32)
    capability = device_capability(device)
    config = config or gemm_config(B, F, D, centred.dtype, precision=precision, capability=capability)
    n_sums = triton.cdiv(F, config.BLOCK_N // 2)
    counts = torch.empty(triton.cdiv(B, config.BLOCK_M), F, dtype=torch.int32, device=device)
    sums = torch.empty(B, n_sums, dtype=torch.float32, device=device)
    arguments = b_enc, acts, counts, sums, n_sums
    run = tiled(centred, W_enc, *arguments, config=config, precision=precision)
    _gemm_relu_kernel[run.grid](*run.operands, *arguments, *run.sizes, **run.constants)
    return acts, sums.sum(), counts.sum(dim=0, dtype=torch.int32)


def dense_error(
    acts: Tensor,
    W_dec: Tensor,
    target: Tensor,
    sign: float = 1.0,
    *,
    precision: str = "ieee",
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """[B, F], [F, D], target [B, D] -> acts @ W_dec - sign * target in target's dtype; squares of rows [B] fp32."""
    (B, F), D, device = acts.shape, W_dec.shape[1], acts.device
    assert_shapes(W_dec=(W_dec, (F, D)), target=(target, (B, D)))
    error = torch.empty(B, D, dtype=target.dtype, device=device)
    if B == 0:
        return error, torch.empty(0, dtype=torch.float32, device=device)
    capability = device_capability(device)
    config = config or gemm_config(B, D, F, acts.dtype, True, precision, capability)
    n_sums = triton.cdiv(D, config.BLOCK_N // 2)
    squares = torch.empty(B, n_sums, dtype=torch.float32, device=device)
    arguments = target, error, squares, float(sign), n_sums
    run = tiled(acts, W_dec, *arguments, config=config, NN=True, precision=precision)
    _gemm_error_kernel[run.grid](*run.operands, *arguments, *run.sizes, **run.constants)
    return error, squares.sum(dim=1)


def dense_grad_acts(
    error: Tensor,
    W_dec: Tensor,
    acts: Tensor,
    addend: Tensor,
    *,
    precision: str = "ieee",
    config: GemmConfig | None = None,
) -> Tensor:
    """error [B, D], W_dec [F, D], acts [B, F], addend [] -> error @ W_dec.T + addend where active, 0 elsewhere."""
    (B, D), F = error.shape, len(W_dec)
    assert_shapes(W_dec=(W_dec, (F, D)), acts=(acts, (B, F)), addend=(addend, ()))
    grad = torch.empty_like(acts)
    if B == 0:
        return grad
    capability = device_capability(acts.device)
    config = config or gemm_config(B, F, D, error.dtype, precision=precision, capability=capability)
    run = tiled(error, W_dec, acts, addend, grad, config=config, precision=precision)
    _gemm_grad_acts_kernel[run.grid](*run.operands, acts, addend, grad, *run.sizes, **run.constants)
    return grad


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """left [B, F], right [B, D] -> left.T @ right [F, D] in fp32."""
    return wide_product(left.T, right)
