"""Centre: the encoder's input, and the variance that its reconstruction is measured against.

    centred = x - b_dec        variance = sum_b ||x[b] - mean||^2        mean = sum_b x[b] / B

A few FLOPs per element of x, which is read once: memory bandwidth bounds it, and `centre_bytes` counts that traffic. The
variance is not sum x^2 - B mean^2, which would cancel: the mean of a residual stream is many times its spread. Parts of
a column have their own mean and squared distance from it, and two parts a and b make one (Chan, Golub, LeVeque 1979):

    n = n_a + n_b     mean = mean_a + (mean_b - mean_a) n_b / n     M2 = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / n

Spec: `saefast.reference.centre`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.decode import check, columns_of_tile
from saefast.triton_kernels.gemm import N_SMS

ROWS_MERGED, COLUMNS_MERGED = 32, 128  # of a tile of `_variance_kernel`


@triton.jit
def merged(n, mean, M2, n_more, mean_more, M2_more):
    """Count, mean and squared distance from it of two parts together; the second may be empty."""
    total = tl.maximum(n + n_more, 1.0)
    delta = mean_more - mean
    M2 += M2_more + delta * delta * (n * n_more / total)
    return n + n_more, mean + delta * (n_more / total), M2


@triton.jit
def _centre_kernel(
    x_ptr,  # [B, D]
    b_dec_ptr,  # [D]
    centred_ptr,  # [B, D] out
    means_ptr,  # [row blocks, D] out: of the rows of a block, less the first row of x
    M2_ptr,  # [row blocks, programs of a row] out: their squared distance from that
    B,
    D,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = d < D
    b_dec = tl.load(b_dec_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    # Differences from the first row of the block: those of equal rows are exactly 0.
    origin = tl.load(x_ptr + first * D + d, mask=in_row, other=0.0).to(tl.float32)
    n, mean, M2 = 0.0, tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, ROWS, BLOCK_B):
        b = first + start + tl.arange(0, BLOCK_B)
        inside = (b < B)[:, None] & in_row[None, :]
        offsets = b[:, None] * D + d[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(centred_ptr + offsets, (x - b_dec[None, :]).to(centred_ptr.dtype.element_ty), mask=inside)
        away = tl.where(inside, x - origin[None, :], 0.0)
        n_more = tl.sum((b < B).to(tl.float32), axis=0)
        mean_more = tl.sum(away, axis=0) / tl.maximum(n_more, 1.0)
        away = tl.where(inside, away - mean_more[None, :], 0.0)
        n, mean, M2 = merged(n, mean, M2, n_more, mean_more, tl.sum(away * away, axis=0))
    mean += origin - tl.load(x_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    tl.store(means_ptr + tl.program_id(0).to(tl.int64) * D + d, mean, mask=in_row)
    block = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(M2_ptr + block, tl.sum(M2, axis=0))


@triton.jit
def _variance_kernel(
    means_ptr,  # [row blocks, D]
    M2_ptr,  # [n]
    variance_ptr,  # [] out
    B,
    D,
    blocks,
    n_M2,
    ROWS: tl.constexpr,  # of x in a block
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: the blocks of a column become one, and the columns are added up."""
    sums = tl.zeros((BLOCK * BLOCK_D,), tl.float32)
    for start in range(0, n_M2, BLOCK * BLOCK_D):
        i = start + tl.arange(0, BLOCK * BLOCK_D)
        sums += tl.load(M2_ptr + i, mask=i < n_M2, other=0.0)
    variance = tl.sum(sums, axis=0)
    tiles = tl.cdiv(blocks, BLOCK)
    n, mean, M2 = 0.0, tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    # Down the blocks of some columns, then the next columns, in one loop: its loads run ahead.
    for tile in tl.range(0, tl.cdiv(D, BLOCK_D) * tiles, num_stages=4):
        block = tile % tiles * BLOCK + tl.arange(0, BLOCK)
        d = tile // tiles * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = (block < blocks)[:, None] & (d < D)[None, :]
        means = tl.load(means_ptr + block.to(tl.int64)[:, None] * D + d[None, :], mask=inside, other=0.0)
        counts = tl.minimum(tl.maximum(B - block * ROWS, 0), ROWS).to(tl.float32)
        if tile % tiles == 0:
            variance += tl.sum(M2, axis=0)
            n, mean, M2 = 0.0, tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
        n_more = tl.sum(counts, axis=0)
        mean_more = tl.sum(counts[:, None] * means, axis=0) / n_more
        away = tl.where(inside, means - mean_more[None, :], 0.0)
        n, mean, M2 = merged(n, mean, M2, n_more, mean_more, tl.sum(counts[:, None] * away * away, axis=0))
    variance += tl.sum(M2, axis=0)
    entries = 1.0 * B * D
    tl.store(variance_ptr, tl.where(variance == 0, entries, variance).to(variance_ptr.dtype.element_ty))


@dataclass(frozen=True)
class CentreConfig:
    """Launch configuration of `_centre_kernel`."""

    ROWS: int  # rows of a program
    BLOCK_B: int  # rows loaded per iteration
    BLOCK_D: int  # columns of a program
    num_warps: int


def centre_config(B: int, D: int, itemsize: int, itemsize_out: int) -> CentreConfig:
    """Tiles for x and the result of these bytes per element.

    A thread takes 16 bytes of a row of the narrower of the two, and the same columns of every row, so that rows are
    summed inside the thread; it waits for eight 16-byte loads at once. As many rows as leave two programs for every
    multiprocessor, up to 128: the second kernel, which is one program, reads a mean of theirs.
    """
    BLOCK_D = columns_of_tile(D)
    num_warps = max(1, BLOCK_D * min(itemsize, itemsize_out) // (32 * 16))
    most = min(128, max(32, B * triton.cdiv(D, BLOCK_D) // (2 * N_SMS)))
    ROWS = min(1 << most.bit_length() - 1, triton.next_power_of_2(B))
    return CentreConfig(ROWS, min(ROWS, num_warps * 32 * 16 * 8 // (BLOCK_D * itemsize)), BLOCK_D, num_warps)


def centre_bytes(B: int, D: int, itemsize: int, itemsize_out: int) -> int:
    """Bytes that `centre` moves, without the means of the row blocks."""
    return B * D * (itemsize + itemsize_out)


def centre(
    x: Tensor, b_dec: Tensor, dtype: torch.dtype, *, config: CentreConfig | None = None
) -> tuple[Tensor, Tensor]:
    """x [B, D], b_dec [D] -> x - b_dec [B, D], subtracted in fp32, in `dtype`; the variance of x [] in b_dec's dtype.

    Rows without variance give their number of entries, none give 1. NaN stays NaN.
    """
    B, D = x.shape
    check("x", x, (B, D))
    check("b_dec", b_dec, (D,))
    centred = torch.empty(B, D, dtype=dtype, device=x.device)
    if B == 0:
        return centred, torch.ones((), dtype=b_dec.dtype, device=x.device)
    config = config or centre_config(B, D, x.element_size(), dtype.itemsize)
    grid = blocks, tiles = triton.cdiv(B, config.ROWS), triton.cdiv(D, config.BLOCK_D)
    means = torch.empty(blocks, D, dtype=torch.float32, device=x.device)
    M2 = torch.empty(grid, dtype=torch.float32, device=x.device)
    shape = {"ROWS": config.ROWS, "BLOCK_B": config.BLOCK_B, "BLOCK_D": config.BLOCK_D}
    _centre_kernel[grid](x, b_dec, centred, means, M2, B, D, **shape, num_warps=config.num_warps)
    variance = torch.empty((), dtype=b_dec.dtype, device=x.device)
    BLOCK, BLOCK_D = min(ROWS_MERGED, triton.next_power_of_2(blocks)), COLUMNS_MERGED
    merge = {"ROWS": config.ROWS, "BLOCK": BLOCK, "BLOCK_D": BLOCK_D, "num_warps": 4}
    _variance_kernel[(1,)](means, M2, variance, B, D, blocks, blocks * tiles, **merge)
    return centred, variance
