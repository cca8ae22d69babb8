"""Centre: the encoder's input, and the variance that its reconstruction is measured against.

    centred = x - b_dec        variance = sum_b ||x[b] - mean||^2        mean = sum_b x[b] / B

A few FLOPs per element of x, so memory bandwidth bounds it; `centre_bytes` counts that traffic. The variance takes two
passes, because sum x^2 - B mean^2 would cancel: the mean of a residual stream is many times its spread. The second read
of x comes from the L2 cache where x fits. Spec: `saefast.reference.centre`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.decode import check, columns_of_tile


@triton.jit
def _column_sums_kernel(
    x_ptr,  # [B, D]
    sums_ptr,  # [row blocks, D] out
    B,
    D,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = d < D
    # Sums of differences from the first row: those of equal rows are exactly 0.
    origin = tl.load(x_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, ROWS, BLOCK_B):
        b = tl.program_id(0).to(tl.int64) * ROWS + start + tl.arange(0, BLOCK_B)
        inside = (b < B)[:, None] & in_row[None, :]
        x = tl.load(x_ptr + b[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += tl.sum(tl.where(inside, x - origin[None, :], 0.0), axis=0)
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * D + d, sums, mask=in_row)


@triton.jit
def _centre_kernel(
    x_ptr,  # [B, D]
    b_dec_ptr,  # [D]
    sums_ptr,  # [D]: of the differences from the first row
    centred_ptr,  # [B, D] out
    squares_ptr,  # [row blocks, programs of a row] out
    B,
    D,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = d < D
    origin = tl.load(x_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    mean = origin + tl.load(sums_ptr + d, mask=in_row, other=0.0) / B
    b_dec = tl.load(b_dec_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, ROWS, BLOCK_B):
        b = tl.program_id(0).to(tl.int64) * ROWS + start + tl.arange(0, BLOCK_B)
        inside = (b < B)[:, None] & in_row[None, :]
        offsets = b[:, None] * D + d[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(centred_ptr + offsets, (x - b_dec[None, :]).to(centred_ptr.dtype.element_ty), mask=inside)
        spread = tl.where(inside, x - mean[None, :], 0.0)
        squares += tl.sum(spread * spread, axis=0)
    block = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(squares_ptr + block, tl.sum(squares))


@dataclass(frozen=True)
class CentreConfig:
    """Launch configuration of both kernels."""

    ROWS: int  # rows of a program
    BLOCK_B: int  # rows loaded per iteration
    BLOCK_D: int  # columns of a program
    num_warps: int


def centre_config(B: int, D: int, itemsize: int, itemsize_out: int) -> CentreConfig:
    """Tiles for x and the result of these bytes per element.

    A thread takes 16 bytes of a row of the narrower of the two, and the same columns of every row, so that rows are
    summed inside the thread; it waits for eight 16-byte loads at once. 32 rows keep the column sums at an eighth of the
    bytes of a 16-bit x at most, and leave some programs for every multiprocessor at 1024 tokens.
    """
    BLOCK_D = columns_of_tile(D)
    num_warps = max(1, BLOCK_D * min(itemsize, itemsize_out) // (32 * 16))
    ROWS = min(32, triton.next_power_of_2(B))
    return CentreConfig(ROWS, min(ROWS, num_warps * 32 * 16 * 8 // (BLOCK_D * itemsize)), BLOCK_D, num_warps)


def centre_bytes(B: int, D: int, itemsize: int, itemsize_out: int) -> int:
    """Bytes that `centre` moves when x is not found in a cache, without the partial sums."""
    return B * D * (2 * itemsize + itemsize_out)


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
    grid = triton.cdiv(B, config.ROWS), triton.cdiv(D, config.BLOCK_D)
    tiles = {"ROWS": config.ROWS, "BLOCK_B": config.BLOCK_B, "BLOCK_D": config.BLOCK_D}
    sums = torch.empty(grid[0], D, dtype=torch.float32, device=x.device)
    _column_sums_kernel[grid](x, sums, B, D, **tiles, num_warps=config.num_warps)
    squares = torch.empty(grid, dtype=torch.float32, device=x.device)
    _centre_kernel[grid](
        x, b_dec, sums.sum(dim=0), centred, squares, B, D, **tiles, num_warps=config.num_warps
    )
    variance = squares.sum().to(b_dec.dtype)
    return centred, variance.masked_fill(variance == 0, x.numel())
