"""Pre-activations: the encoder's product, with what the selection wants of it.

    pre_acts = round(centred @ W_enc.T + b_enc), then round(pre_acts * scale) with a scale; NaN becomes +inf
    maxima   = largest of each 64 consecutive latents of pre_acts

The product is summed and the bias added in fp32, so pre_acts is rounded once. 2 B F D FLOPs bound it (`gemm_flops`).
There are two routes to the same results, up to the order of the sums:

* "triton": one kernel; maxima and rounding happen on the accumulator.
* "cublas": a library product of as many latents at a time as stay in the L2 cache in fp32, each followed by a kernel
  that reads it from there: 4 bytes of L2 per entry and a launch, about 10 us for every 8192 x 1024 entries, whose
  product takes 0.02 us times D. So 20% more at D = 2304 and 12% at 4096 (estimated, not measured). A 16-bit library
  product would halve the read, but it rounds the bias and, into a slice of rows, writes it in a pass of its own.

Spec: `saefast.reference.encode_topk` before its selection.
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
    has_tma,
    product,
    tile_offsets,
    tiled,
    wide_product,
)
from saefast.triton_kernels.topk import GROUP

MAX_FUSED_D = 1536  # beyond it cuBLAS is expected to win by more than the second kernel costs
L2_BYTES = 2**25  # of a 50 or 60 MB cache: fp32 products of one round
_GROUP = tl.constexpr(GROUP)


@triton.jit
def _finish(
    acc,  # a tile of the product at (row, col)
    bias_ptr,  # [F]
    scale_ptr,  # [F] or None
    pre_acts_ptr,  # [B, F] out
    maxima_ptr,  # [B, F / GROUP] out
    row,
    col,
    B,
    end,  # columns of the product end here
    F,
):
    BLOCK_B: tl.constexpr = acc.shape[0]
    BLOCK_F: tl.constexpr = acc.shape[1]
    b = row + tl.arange(0, BLOCK_B)
    f = col + tl.arange(0, BLOCK_F)
    dtype: tl.constexpr = pre_acts_ptr.dtype.element_ty
    z = acc + tl.load(bias_ptr + f, mask=f < end, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + f, mask=f < end, other=0.0).to(tl.float32)
        z = z.to(dtype).to(tl.float32) * scale[None, :]
    z = tl.where(z != z, float("inf"), z)  # noqa: PLR0124  (a NaN is selected, so that it reaches the loss)
    b_wide = b.to(tl.int64)[:, None]  # B * F passes 2^31
    tl.store(pre_acts_ptr + b_wide * F + f[None, :], z.to(dtype), mask=(b < B)[:, None] & (f < end)[None, :])

    # Rounding is monotone: the rounded maximum is the maximum of the rounded.
    z = tl.where((f < end)[None, :], z, float("-inf"))
    maxima = tl.max(tl.reshape(z, (BLOCK_B, BLOCK_F // _GROUP, _GROUP)), axis=2)
    g = col // _GROUP + tl.arange(0, BLOCK_F // _GROUP)
    inside = (b < B)[:, None] & (g * _GROUP < end)[None, :]
    tl.store(maxima_ptr + b_wide * tl.cdiv(F, _GROUP) + g[None, :], maxima.to(dtype), mask=inside)


@triton.jit
def _gemm_encode_kernel(
    centred,  # [B, D]
    W_enc,  # [F, D]
    bias_ptr,
    scale_ptr,
    pre_acts_ptr,
    maxima_ptr,
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
        _finish(left, bias_ptr, scale_ptr, pre_acts_ptr, maxima_ptr, row, col, B, F, F)
        _finish(right, bias_ptr, scale_ptr, pre_acts_ptr, maxima_ptr, row, col + BLOCK_N // 2, B, F, F)


@triton.jit
def _finish_kernel(
    sums_ptr,  # [B, end - first]
    bias_ptr,
    scale_ptr,
    pre_acts_ptr,
    maxima_ptr,
    B,
    first,
    end,
    F,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_B
    col = tl.program_id(1) * BLOCK_F
    b = (row + tl.arange(0, BLOCK_B))[:, None]
    f = (col + tl.arange(0, BLOCK_F))[None, :]
    width = end - first
    sums = tl.load(sums_ptr + b.to(tl.int64) * width + f, mask=(b < B) & (f < width), other=0.0)
    _finish(sums, bias_ptr, scale_ptr, pre_acts_ptr, maxima_ptr, row, first + col, B, end, F)


def encode_route(B: int, D: int, F: int, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """'triton' or 'cublas': the fused kernel where the product is short and tensor cores read their operands by TMA."""
    fused = dtype != torch.float32 and has_tma(capability) and D <= MAX_FUSED_D
    return "triton" if fused else "cublas"


def columns_per_round(B: int) -> int:
    """Latents of one library product on the "cublas" route, a multiple of 256."""
    return max(256, L2_BYTES // (4 * B) // 256 * 256)


def pre_acts_and_maxima(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    scale: Tensor | None = None,
    route: str | None = None,
    *,
    precision: str = "ieee",
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """centred [B, D], W_enc [F, D], b_enc [F], scale [F] -> pre_acts [B, F], maxima [B, ceil(F / 64)].

    Args:
        route: "triton" or "cublas"; None asks `encode_route`.
        precision: of fp32 operands on the "triton" route, "ieee" or "tf32". cuBLAS follows torch's own switch.
    """
    (B, D), F = centred.shape, len(W_enc)
    assert W_enc.shape == (F, D), f"W_enc: expected {(F, D)}, got {tuple(W_enc.shape)}"
    assert W_enc.dtype == centred.dtype, f"W_enc: expected {centred.dtype}, got {W_enc.dtype}"
    for name, vector in {"b_enc": b_enc, "scale": scale}.items():
        assert vector is None or vector.shape == (F,), f"{name}: expected {(F,)}, got {tuple(vector.shape)}"
        assert vector is None or vector.is_contiguous(), (
            f"{name}: expected contiguous memory, got {vector.stride()}"
        )
    for name, matrix in {"centred": centred, "W_enc": W_enc}.items():
        assert matrix.is_contiguous(), f"{name}: expected contiguous memory, got strides {matrix.stride()}"
    capability = device_capability(centred.device)
    route = route or encode_route(B, D, F, centred.dtype, capability)
    assert route in ("triton", "cublas"), f"route: expected 'triton' or 'cublas', got {route!r}"

    pre_acts = torch.empty(B, F, dtype=centred.dtype, device=centred.device)
    maxima = torch.empty(B, triton.cdiv(F, GROUP), dtype=centred.dtype, device=centred.device)
    if B == 0:
        return pre_acts, maxima
    if route == "triton":
        config = config or gemm_config(B, F, D, centred.dtype, precision=precision, capability=capability)
        arguments = b_enc, scale, pre_acts, maxima
        run = tiled(centred, W_enc, *arguments, config=config, precision=precision)
        _gemm_encode_kernel[run.grid](*run.operands, *arguments, *run.sizes, **run.constants)
        return pre_acts, maxima

    columns = min(columns_per_round(B), F)
    buffer = torch.empty(B * columns, dtype=torch.float32, device=centred.device)
    for first in range(0, F, columns):
        end = min(first + columns, F)
        sums = wide_product(centred, W_enc[first:end].T, out=buffer[: B * (end - first)].view(B, end - first))
        _finish_kernel[(triton.cdiv(B, 16), triton.cdiv(end - first, 256))](
            sums, b_enc, scale, pre_acts, maxima, B, first, end, F, BLOCK_B=16, BLOCK_F=256, num_warps=8
        )
    return pre_acts, maxima
