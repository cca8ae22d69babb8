"""Entry sums: one number for each latent from its active entries.

    out[f] = sum over the entries i of latent f of per_pair[pairs[i]]

The entries of neighbouring latents are one stretch of `pairs`. A program takes BLOCK_F latents, reads their stretch
BLOCK_N entries at a time, and compares places with the ends of its latents: the work of a program depends on how many
entries there are and not on whose they are, so a latent active in every token costs no more than many active in a few.
Latency bounds it: `sum_entries_bytes` is little. Spec: `saefast.reference.sum_entries`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_F = 16  # latents of a program
BLOCK_N = 256  # entries per iteration; both together are 32 sums in each of 128 threads


@triton.jit
def _sum_entries_kernel(
    offsets_ptr,  # [F + 1]
    pairs_ptr,  # [N]
    per_pair_ptr,  # [N]
    out_ptr,  # [F] out
    F,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    begins = tl.load(offsets_ptr + f, mask=f < F, other=0)
    ends = tl.load(offsets_ptr + f + 1, mask=f < F, other=0)  # beyond F: no entries
    last = tl.load(offsets_ptr + tl.minimum(first + BLOCK_F, F))

    # Each place of an iteration is summed apart from the others until the end: no reduction in the loop.
    partial = tl.zeros((BLOCK_F, BLOCK_N), tl.float32)
    for start in range(tl.load(offsets_ptr + first), last, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        pair = tl.load(pairs_ptr + i, mask=i < last, other=0)
        value = tl.load(per_pair_ptr + pair, mask=i < last, other=0.0).to(tl.float32)
        own = (i[None, :] >= begins[:, None]) & (i[None, :] < ends[:, None])
        partial += tl.where(own, value[None, :], 0.0)
    tl.store(out_ptr + f, tl.sum(partial, axis=1), mask=f < F)


def sum_entries_bytes(N: int, F: int, itemsize: int = 4) -> int:
    """Bytes that `sum_entries` moves for N active entries with `per_pair` of `itemsize` bytes per element."""
    return N * (4 + itemsize) + F * 8


def sum_entries(groups: tuple[Tensor, Tensor, Tensor], per_pair: Tensor) -> Tensor:
    """Groups of `group_by_latent`, per_pair [B, K] or [N] -> [F] fp32, always the same bits. Nothing waits."""
    offsets, pairs, _ = groups
    F = len(offsets) - 1
    assert per_pair.numel() == len(pairs), f"per_pair: expected {len(pairs)} entries, got {per_pair.numel()}"
    for name, tensor in {"offsets": offsets, "pairs": pairs, "per_pair": per_pair}.items():
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    for name, integers in {"offsets": offsets, "pairs": pairs}.items():
        assert integers.dtype == torch.int32, f"{name}: expected torch.int32, got {integers.dtype}"
    out = torch.empty(F, dtype=torch.float32, device=per_pair.device)
    _sum_entries_kernel[(triton.cdiv(F, BLOCK_F),)](
        offsets, pairs, per_pair, out, F, BLOCK_F=BLOCK_F, BLOCK_N=BLOCK_N, num_warps=4
    )
    return out
