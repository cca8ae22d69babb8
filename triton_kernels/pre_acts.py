"""Pre-activations: the encoder's product, with what the selection wants of it.

    pre_acts = round(centred @ W_enc.T + b_enc), then round(pre_acts * scale) with a scale
    maxima   = largest of each 64 consecutive latents of pre_acts, NaN as +inf

2 B F D FLOPs bound it (`gemm_flops`). There are two routes to the same results, up to rounding:

* "triton": one kernel. Sums begin with the bias, in fp32, and are rounded once; maxima and rounding happen on the
  accumulator. It writes pre_acts and maxima, B F (1 + 1/64) numbers.
* "cublas": one library product of the whole, rounded, and then `group_maxima`, which adds the bias as it reads. So z
  rounds twice, round(round(product) + bias), and once more with a scale. Beside the product's B F numbers it reads as
  many, and writes B F / 64: at case C 4.3 GB more than "triton", about 1 ms of an H200's memory (estimated). A selection
  can add the bias again where it looks (`products_and_maxima`); for everybody else it is written back, B F numbers more.

On the "triton" route a NaN stays one in pre_acts where maxima come with them, because every selection counts it as +inf;
without maxima it becomes +inf.
Spec: `saefast.reference.encode_topk` before its selection.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from saefast.triton_kernels.gemm import (
    NARROW,
    WIDE,
    GemmConfig,
    add_product,
    device_capability,
    gemm_config,
    halves,
    tile_offsets,
    tiled,
)
from saefast.triton_kernels.group_maxima import GROUP, assert_vectors, group_maxima

_GROUP = tl.constexpr(GROUP)


@triton.jit
def _larger_of_halves(z):
    """[M, G, N] -> [M, G, N / 2], NaN where one of the two is."""
    M: tl.constexpr = z.shape[0]
    G: tl.constexpr = z.shape[1]
    N: tl.constexpr = z.shape[2]
    left, right = tl.split(tl.permute(tl.reshape(z, (M, G, 2, N // 2)), (0, 1, 3, 2)))
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _biases(bias_ptr, tile, B, F, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """What the sums of a tile begin with: nothing is added afterwards, and no register is set to 0."""
    _, col = tile_offsets(tile, B, F, BLOCK_M, BLOCK_N, GROUP_M)
    f = col + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    return tl.broadcast_to(bias[None, :], (BLOCK_M, BLOCK_N))


@triton.jit
def _finish(
    z,  # half a tile of pre-activations in fp32, at (row, col)
    pre_acts,  # [B, F] out: a descriptor with TMA_OUT, else a pointer
    maxima_ptr,  # [B, F / GROUP] out, or None
    row,
    col,
    B,
    F,
    TMA_OUT: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,  # F is a multiple of GROUP
):
    BLOCK_B: tl.constexpr = z.shape[0]
    BLOCK_F: tl.constexpr = z.shape[1]
    dtype: tl.constexpr = pre_acts.dtype if TMA_OUT else pre_acts.dtype.element_ty
    b = row + tl.arange(0, BLOCK_B)
    b_wide = b.to(tl.int64)[:, None]  # B * F passes 2^31
    f = col + tl.arange(0, BLOCK_F)
    if maxima_ptr is None:
        z = tl.where(z != z, float("inf"), z)  # noqa: PLR0124
    if TMA_OUT:
        pre_acts.store([row, col], z.to(dtype))
    else:
        tl.store(pre_acts + b_wide * F + f[None, :], z.to(dtype), mask=(b < B)[:, None] & (f < F)[None, :])
    if maxima_ptr is not None:
        # Rounding is monotone: the rounded maximum is the maximum of the rounded.
        if not WHOLE_GROUPS:
            z = tl.where((f < F)[None, :], z, float("-inf"))
        z = tl.reshape(z, (BLOCK_B, BLOCK_F // _GROUP, _GROUP))
        # A thread holds 16 columns of each group: these halves are all its own, and keep NaN at no cost.
        z = _larger_of_halves(_larger_of_halves(_larger_of_halves(z)))
        maxima = tl.max(tl.where(z != z, float("inf"), z), axis=2)  # noqa: PLR0124
        g = col // _GROUP + tl.arange(0, BLOCK_F // _GROUP)
        inside = (b < B)[:, None] & (g * _GROUP < F)[None, :]
        tl.store(maxima_ptr + b_wide * tl.cdiv(F, _GROUP) + g[None, :], maxima.to(dtype), mask=inside)


@triton.jit
def _gemm_encode_kernel(
    centred,  # [B, D]
    W_enc,  # [F, D]
    bias_ptr,
    scale_ptr,
    pre_acts,
    maxima_ptr,
    B,
    F,
    D,
    TMA_OUT: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    # One loop over the k of all tiles, so that loads run ahead into the next tile. `tile` is the next one to load;
    # `done` is the one that is multiplied, known apart from the loads: these must not wait for its epilogue.
    n_tiles = tl.cdiv(B, BLOCK_M) * tl.cdiv(F, BLOCK_N)
    n_steps = tl.cdiv(D, BLOCK_K)
    step, tile, done = -1, tl.program_id(0), tl.program_id(0)
    row, col = tile_offsets(tile, B, F, BLOCK_M, BLOCK_N, GROUP_M)
    acc = _biases(bias_ptr, done, B, F, BLOCK_M, BLOCK_N, GROUP_M)
    for _ in range(n_steps * tl.cdiv(n_tiles - tile, tl.num_programs(0))):
        step = tl.where(step == n_steps - 1, 0, step + 1)
        if step == 0:
            row, col = tile_offsets(tile, B, F, BLOCK_M, BLOCK_N, GROUP_M)
            tile += tl.num_programs(0)
        k = step * BLOCK_K
        acc = add_product(
            acc, centred, W_enc, row, col, k, B, F, D, False, TMA, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
        )
        if step == n_steps - 1:
            top, left_col = tile_offsets(done, B, F, BLOCK_M, BLOCK_N, GROUP_M)
            right_col = left_col + BLOCK_N // 2
            z = acc
            if scale_ptr is not None:
                f = left_col + tl.arange(0, BLOCK_N)
                scale = tl.load(scale_ptr + f, mask=f < F, other=0.0).to(tl.float32)
                dtype: tl.constexpr = pre_acts.dtype if TMA_OUT else pre_acts.dtype.element_ty
                z = acc.to(dtype).to(tl.float32) * scale[None, :]
            left, right = halves(z)
            _finish(left, pre_acts, maxima_ptr, top, left_col, B, F, TMA_OUT, WHOLE_GROUPS)
            _finish(right, pre_acts, maxima_ptr, top, right_col, B, F, TMA_OUT, WHOLE_GROUPS)
            done += tl.num_programs(0)
            acc = _biases(bias_ptr, tl.minimum(done, n_tiles - 1), B, F, BLOCK_M, BLOCK_N, GROUP_M)


def encode_route(B: int, D: int, F: int, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """'triton' for 16-bit products; fp32 ones, which tensor cores do not multiply exactly, are the library's: 'cublas'."""
    return "cublas" if dtype == torch.float32 else "triton"


def _assert_operands(centred: Tensor, W_enc: Tensor, b_enc: Tensor, scale: Tensor | None) -> None:
    D, F = centred.shape[1], len(W_enc)
    assert W_enc.shape == (F, D), f"W_enc: expected {(F, D)}, got {tuple(W_enc.shape)}"
    assert W_enc.dtype == centred.dtype, f"W_enc: expected {centred.dtype}, got {W_enc.dtype}"
    assert_vectors(F, b_enc=b_enc, scale=scale)
    for name, matrix in {"centred": centred, "W_enc": W_enc}.items():
        assert matrix.is_contiguous(), f"{name}: expected contiguous memory, got strides {matrix.stride()}"


def products_and_maxima(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, scale: Tensor | None = None, *, write: bool = False
) -> tuple[Tensor, Tensor]:
    """The "cublas" route: products [B, F] without b_enc and scale, but the maxima with them; `write`: both with them."""
    _assert_operands(centred, W_enc, b_enc, scale)
    products = torch.empty(len(centred), len(W_enc), dtype=centred.dtype, device=centred.device)
    torch.mm(centred, W_enc.T, out=products)
    return products, group_maxima(products, bias=b_enc, scale=scale, write=write)


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
    B, F = len(centred), len(W_enc)
    route = route or encode_route(*centred.shape, F, centred.dtype, device_capability(centred.device))
    assert route in ("triton", "cublas"), f"route: expected 'triton' or 'cublas', got {route!r}"
    if route == "cublas":
        return products_and_maxima(centred, W_enc, b_enc, scale, write=True)
    maxima = torch.empty(B, triton.cdiv(F, GROUP), dtype=centred.dtype, device=centred.device)
    return fused_pre_acts(centred, W_enc, b_enc, scale, maxima, precision, config), maxima


def fused_pre_acts(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    scale: Tensor | None = None,
    maxima: Tensor | None = None,
    precision: str = "ieee",
    config: GemmConfig | None = None,
) -> Tensor:
    """The "triton" route -> pre_acts [B, F]; maxima [B, ceil(F / 64)] is written if given, else NaN becomes +inf."""
    _assert_operands(centred, W_enc, b_enc, scale)
    (B, D), F = centred.shape, len(W_enc)
    pre_acts = torch.empty(B, F, dtype=centred.dtype, device=centred.device)
    if B == 0:
        return pre_acts
    capability = device_capability(centred.device)
    config = config or gemm_config(B, F, D, centred.dtype, precision=precision, capability=capability)
    if scale is not None and config == NARROW and capability[0] == 9:
        config = WIDE  # with fp16 and a scale, NARROW is compiled to products that wait for each other
    run = tiled(centred, W_enc, b_enc, scale, pre_acts, maxima, config=config, precision=precision)
    constants = {name: value for name, value in run.constants.items() if name != "FLATTEN"}  # it always is
    by_tma = config.TMA and F * pre_acts.element_size() % 16 == 0
    half = [config.BLOCK_M, config.BLOCK_N // 2]
    _gemm_encode_kernel[run.grid](
        *run.operands,
        b_enc,
        scale,
        TensorDescriptor.from_tensor(pre_acts, half) if by_tma else pre_acts,
        maxima,
        *run.sizes,
        TMA_OUT=by_tma,
        WHOLE_GROUPS=F % GROUP == 0,
        **constants,
    )
    return pre_acts
