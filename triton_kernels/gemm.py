"""Dense products in tiles: what the kernels of `pre_acts` and `dense` share.

    acc = left [M, K] @ right [N, K].T, or @ right [K, N] with NN, in fp32

The epilogue works on the accumulator before anything is written. 2 M N K FLOPs bound the whole (`gemm_flops`). The grid
is persistent: each program takes tile after tile, and with TMA the loads of its next tile run under the epilogue of the
last. `GemmConfig.blocks` of them share a multiprocessor; with two, one multiplies while the other is in its epilogue. Every element is summed by one program in ascending k, so the result depends on neither the
grid nor the run. fp16 and bf16 operands are multiplied exactly; fp32 ones in fp32 with precision "ieee", rounded to 10
bits of mantissa with "tf32".

On sm_90 and sm_100 operands are read by TMA (descriptors made on the host, so a CUDA graph keeps them) where rows begin
on multiples of 16 bytes, as they do with d_in and d_sae multiples of 8; otherwise through pointers.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

N_SMS = 132  # multiprocessors of an H100 and an H200
OFFLINE_CAPABILITY = (9, 0)  # where no GPU runs the kernels; the compile gate sets what it compiles for


@triton.jit
def tile_offsets(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of a tile. Down GROUP_M tiles, then right: tiles in work at the same time share rows in L2."""
    n_down, n_right = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = tile // (GROUP_M * n_right) * GROUP_M
    height = min(n_down - first, GROUP_M)
    within = tile % (GROUP_M * n_right)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def add_product(
    acc,  # [BLOCK_M, BLOCK_N] fp32
    left,  # [M, K]: a descriptor with TMA, else a pointer
    right,  # [N, K], or [K, N] with NN
    row,
    col,
    start,
    M,
    N,
    K,
    NN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc and the part of its product from k = start to start + BLOCK_K, for the tile at (row, col)."""
    if TMA:
        a = left.load([row, start])
        b = right.load([start, col]) if NN else right.load([col, start]).T
    else:
        rows = (row + tl.arange(0, BLOCK_M))[:, None]
        cols = (col + tl.arange(0, BLOCK_N))[None, :]
        k = start + tl.arange(0, BLOCK_K)
        a_ptrs = left + rows.to(tl.int64) * K + k[None, :]
        a = tl.load(a_ptrs, mask=(rows < M) & (k < K)[None, :], other=0.0)
        if NN:
            b_ptrs = right + k[:, None].to(tl.int64) * N + cols
        else:
            b_ptrs = right + cols.to(tl.int64) * K + k[:, None]
        b = tl.load(b_ptrs, mask=(k < K)[:, None] & (cols < N), other=0.0)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def product(
    left,
    right,
    row,
    col,
    M,
    N,
    K,
    NN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tile [BLOCK_M, BLOCK_N] of the product at (row, col)."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        acc = add_product(
            acc, left, right, row, col, start, M, N, K, NN, TMA, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
        )
    return acc


@triton.jit
def halves(acc):
    """The left and the right half of a tile. The epilogue of a half needs half the registers, hence spills none."""
    M: tl.constexpr = acc.shape[0]
    N: tl.constexpr = acc.shape[1]
    return tl.split(tl.permute(tl.reshape(acc, (M, 2, N // 2)), (0, 2, 1)))


@dataclass(frozen=True)
class GemmConfig:
    """Launch configuration of a kernel made of `product` and an epilogue."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    TMA: bool
    FLATTEN: bool  # one loop over the k of all tiles, so that loads run ahead into the next tile
    GROUP_M: int = 8
    blocks: int = 1  # thread blocks on a multiprocessor


WIDE = GemmConfig(128, 256, 64, 8, 3, TMA=True, FLATTEN=True)
NARROW = GemmConfig(128, 128, 64, 8, 4, TMA=True, FLATTEN=True)
TF32 = GemmConfig(128, 128, 32, 8, 3, TMA=True, FLATTEN=True)
NARROW_POINTERS = GemmConfig(128, 128, 64, 8, 3, TMA=False, FLATTEN=False)
TF32_POINTERS = GemmConfig(128, 128, 32, 8, 3, TMA=False, FLATTEN=False)
# Without tensor cores; TMA or a third stage would spill.
IEEE = GemmConfig(128, 128, 16, 8, 2, TMA=False, FLATTEN=False)


def has_tma(capability: tuple[int, int]) -> bool:
    """And the shared memory for its tiles, which GPUs for desktops lack."""
    return capability[0] in (9, 10)


def gemm_config(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    NN: bool = False,
    precision: str = "ieee",
    capability: tuple[int, int] = (9, 0),
) -> GemmConfig:
    """Tiles without spills and within shared memory (99 KB on sm_86 and sm_120, 163 on sm_80, 227 on sm_90 and sm_100).

    On sm_90 the one of WIDE and NARROW that `gemm_cycles` says is done first: WIDE, except where its last round of tiles
    would leave too many multiprocessors idle.
    """
    aligned = K * dtype.itemsize % 16 == 0 and (not NN or N * dtype.itemsize % 16 == 0)
    by_pointers = not has_tma(capability) or not aligned
    if dtype == torch.float32 and precision == "ieee":
        return IEEE
    if dtype == torch.float32:
        return TF32_POINTERS if by_pointers else TF32
    if by_pointers:
        return NARROW_POINTERS
    if capability[0] != 9:
        return NARROW
    return min((WIDE, NARROW), key=lambda config: gemm_cycles(config, M, N, K))


def gemm_cycles(config: GemmConfig, M: int, N: int, K: int) -> float:
    """Cycles that a 16-bit product takes on an H100 or H200: an estimate, of which nothing was measured.

    A tile takes BLOCK_M BLOCK_N K / 2048 cycles of the tensor cores, or, if that is more, the (BLOCK_M + BLOCK_N) K
    operands 2 bytes each through a multiprocessor's share of the L2 cache, about 40 bytes per cycle (a guess: 9 TB/s in
    all). Its epilogue comes on top where nothing else runs meanwhile, which is where a multiprocessor has one block: the
    machine code of `pre_acts` for WIDE has about 610 instructions in it, of which 4 of its 8 warps issue one in each
    cycle, so 1230 cycles for 128 x 256 elements. Every round takes that long, also the last one, which is not full.
    """
    tiles = triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, config.BLOCK_N)
    rounds = triton.cdiv(tiles, N_SMS * config.blocks)
    products = config.BLOCK_M * config.BLOCK_N * K / 2048
    loads = (config.BLOCK_M + config.BLOCK_N) * K * 2 / 40
    epilogue = config.BLOCK_M * config.BLOCK_N * 1230 / 2**15 if config.blocks == 1 else 0
    return rounds * (config.blocks * max(products, loads) + epilogue)


def gemm_flops(M: int, N: int, K: int) -> int:
    """Floating-point operations of one product."""
    return 2 * M * N * K


def device_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else OFFLINE_CAPABILITY


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else N_SMS


class Tiled(NamedTuple):
    """What a kernel is launched with to run over all tiles of a product: kernel[grid](*operands, ..., *sizes, **constants)."""

    grid: tuple[int]
    operands: tuple  # left and right, as tensor descriptors where the tiles are read by TMA
    sizes: tuple[int, int, int]  # M, N, K
    constants: dict[str, object]


def tiled(
    left: Tensor,
    right: Tensor,
    *others: Tensor | float | None,
    config: GemmConfig,
    NN: bool = False,
    precision: str = "ieee",
) -> Tiled:
    """left [M, K], right [N, K] (NN: [K, N]); others: what else the kernel reads and writes, which is only checked."""
    (M, K), N = left.shape, right.shape[1 if NN else 0]
    shape = (K, N) if NN else (N, K)
    assert right.shape == shape, f"right: expected {shape}, got {tuple(right.shape)}"
    assert left.dtype == right.dtype, f"right: expected {left.dtype}, got {right.dtype}"
    tensors = {"left": left, "right": right}
    tensors |= {f"argument {i}": t for i, t in enumerate(others) if isinstance(t, Tensor)}
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"

    tiles = triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, config.BLOCK_N)
    grid = (min(tiles, config.blocks * multiprocessors(left.device)),)
    constants: dict[str, object] = {"PRECISION": precision} | asdict(config)
    del constants["blocks"]
    if config.TMA:
        block = [config.BLOCK_K, config.BLOCK_N] if NN else [config.BLOCK_N, config.BLOCK_K]
        left = TensorDescriptor.from_tensor(left, [config.BLOCK_M, config.BLOCK_K])
        right = TensorDescriptor.from_tensor(right, block)
    return Tiled(grid, (left, right), (M, N, K), constants)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right kept in fp32, by the library (cuBLAS)."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())
