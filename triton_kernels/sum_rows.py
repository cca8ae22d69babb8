"""Row sums: the gradient of a weight matrix from the active entries of each latent.

    out[f] = sum over the entries i of latent f of per_pair[pairs[i]] * rows[tokens[i]]

Two FLOPs per element of `rows` gathered, so memory bandwidth bounds it; `sum_rows_bytes` counts that traffic. This is
for gradients that have to exist (`saefast.autograd`); the engine's update sums them in registers and stores none.
Spec: `saefast.reference.sum_rows`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sum_rows_kernel(
    offsets_ptr,  # [F + 1]
    pairs_ptr,  # [N]
    tokens_ptr,  # [N]
    per_pair_ptr,  # [N]
    rows_ptr,  # [B, D]
    out_ptr,  # [F, D] out
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Latents vary fastest, so the programs running together read one slice of columns of rows: less L2 to miss.
    f = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = d < D
    start, end = tl.load(offsets_ptr + f), tl.load(offsets_ptr + f + 1)

    # BLOCK_N rows are in flight at a time, each summed apart from the others until the end: no reduction in the loop.
    partial = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(start, end, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        listed = i < end
        pair = tl.load(pairs_ptr + i, mask=listed, other=0)
        token = tl.load(tokens_ptr + i, mask=listed, other=0).to(tl.int64)  # B * D passes 2^31
        weight = tl.load(per_pair_ptr + pair, mask=listed, other=0.0).to(tl.float32)
        row_ptrs = rows_ptr + token[:, None] * D + d[None, :]
        rows = tl.load(row_ptrs, mask=listed[:, None] & in_row[None, :], other=0.0).to(tl.float32)
        partial += weight[:, None] * rows

    tl.store(out_ptr + f * D + d, tl.sum(partial, axis=0).to(out_ptr.dtype.element_ty), mask=in_row)


@dataclass(frozen=True)
class SumRowsConfig:
    """Launch configuration of `_sum_rows_kernel`."""

    BLOCK_N: int  # rows loaded per iteration
    BLOCK_D: int  # columns of a program
    num_warps: int


def sum_rows_config(D: int, itemsize: int) -> SumRowsConfig:
    """Tiles for `rows` of `itemsize` bytes per element.

    BLOCK_D is the widest tile that pads D by at most an eighth, and a row of it gives each thread 16 bytes. BLOCK_N is
    small: most latents have a handful of entries, and a latent's rows beyond its last entry are lanes that idle.
    """
    BLOCK_D = next((block for block in (512, 256) if -D % block <= D // 8), 128)
    BLOCK_D = min(BLOCK_D, triton.next_power_of_2(D))
    num_warps = max(1, BLOCK_D * itemsize // (32 * 16))
    BLOCK_N = num_warps * 32 * 16 * 4 // (BLOCK_D * itemsize)
    return SumRowsConfig(min(BLOCK_N, 32), BLOCK_D, num_warps)


def sum_rows_bytes(N: int, F: int, D: int, itemsize: int, weight_size: int = 4) -> int:
    """Bytes that `sum_rows` moves for N active entries when no row is found in a cache, with an fp32 result."""
    return N * (8 + weight_size + D * itemsize) + (F + 1) * 4 + F * D * 4


def sum_rows(
    groups: tuple[Tensor, Tensor, Tensor],
    per_pair: Tensor,
    rows: Tensor,
    *,
    config: SumRowsConfig | None = None,
) -> Tensor:
    """Groups of `group_by_latent`, per_pair [B, K] or [N], rows [B, D] -> [F, D] fp32."""
    offsets, pairs, tokens = groups
    F, (B, D) = len(offsets) - 1, rows.shape
    for name, entries in {"tokens": tokens, "per_pair": per_pair}.items():
        assert entries.numel() == len(pairs), f"{name}: expected {len(pairs)} entries, got {entries.numel()}"
    for name, integers in {"offsets": offsets, "pairs": pairs, "tokens": tokens}.items():
        assert integers.dtype == torch.int32, f"{name}: expected torch.int32, got {integers.dtype}"
    tensors = {"offsets": offsets, "pairs": pairs, "tokens": tokens, "per_pair": per_pair, "rows": rows}
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"

    if B == 0:
        return torch.zeros(F, D, dtype=torch.float32, device=rows.device)
    out = torch.empty(F, D, dtype=torch.float32, device=rows.device)
    config = config or sum_rows_config(D, rows.element_size())
    _sum_rows_kernel[(F, triton.cdiv(D, config.BLOCK_D))](
        offsets,
        pairs,
        tokens,
        per_pair,
        rows,
        out,
        D,
        BLOCK_N=config.BLOCK_N,
        BLOCK_D=config.BLOCK_D,
        num_warps=config.num_warps,
    )
    return out
