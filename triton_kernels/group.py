"""Group: the active entries of a code by latent instead of by token, each group in ascending order.

A counting sort: count the entries of each latent; add up the counts; put each entry somewhere into its group; find
each entry's place in its group. Atomics on integers give the counts and some place, and the places found last do not
depend on it, so the result is the same every time. Latency bounds it: five short launches over `group_bytes`, which
fit the L2 cache. Each program that adds up reads all counts before its own, which for 2^18 latents is less than a second
launch costs. The last launch compares all entries of a group with each other, so its time grows with the square of a
group: 8192 tokens of one latent are 67 M comparisons. Spec: `saefast.reference.group_by_latent`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.decode import check_code

BLOCK = 1024  # entries of a program that counts or scatters
BLOCK_SCAN = 4096  # latents of a program that adds up counts
BLOCK_ORDER = 128  # entries of a program that orders
TILE = 32  # entries they are compared with per iteration


@triton.jit
def _count_kernel(
    acts_ptr,  # [N]
    indices_ptr,  # [N]
    row_offsets_ptr,  # None, or [B + 1]
    counts_ptr,  # [F] in and out, starts at 0
    ranks_ptr,  # [N] out: a number within the group, in no particular order; -1 for what is not active
    unordered_ptr,  # [programs * BLOCK] out: 0
    N,
    B,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(unordered_ptr + position, tl.zeros_like(position))  # _order_kernel reads whole tiles
    in_code = position < N
    if row_offsets_ptr is not None:
        in_code &= position < tl.load(row_offsets_ptr + B)
    active = tl.load(acts_ptr + position, mask=in_code, other=0.0).to(tl.float32) > 0
    f = tl.load(indices_ptr + position, mask=active, other=0)
    rank = tl.atomic_add(counts_ptr + f, 1, mask=active, sem="relaxed")
    tl.store(ranks_ptr + position, tl.where(active, rank, -1), mask=position < N)


@triton.jit
def _scan_kernel(
    counts_ptr,  # [F]
    offsets_ptr,  # [F + 1] out
    F,
    BLOCK: tl.constexpr,
):
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, tl.program_id(0) * BLOCK, BLOCK, num_stages=3):
        before += tl.load(counts_ptr + start + tl.arange(0, BLOCK))
    counts = tl.load(counts_ptr + f, mask=f < F, other=0)
    ends = tl.sum(before, axis=0) + tl.cumsum(counts, axis=0)
    tl.store(offsets_ptr + f + 1, ends, mask=f < F)
    tl.store(offsets_ptr + f, ends - counts, mask=f == 0)


@triton.jit
def _scatter_kernel(
    indices_ptr,  # [N]
    ranks_ptr,  # [N]
    offsets_ptr,  # [F + 1]
    unordered_ptr,  # [N] in and out: the positions of each group
    N,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.load(ranks_ptr + position, mask=position < N, other=-1)
    f = tl.load(indices_ptr + position, mask=rank >= 0, other=0)
    place = tl.load(offsets_ptr + f, mask=rank >= 0, other=0) + rank
    tl.store(unordered_ptr + place, position, mask=rank >= 0)


@triton.jit
def _order_kernel(
    unordered_ptr,  # [N], and whole tiles
    indices_ptr,  # [N]
    row_offsets_ptr,  # None, or [B + 1]
    offsets_ptr,  # [F + 1]
    pairs_ptr,  # [N] out
    tokens_ptr,  # [N] out
    N,
    F,
    B,
    K,
    LOG_B: tl.constexpr,  # 2^LOG_B >= B
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = place < tl.load(offsets_ptr + F)
    pair = tl.load(unordered_ptr + place, mask=used, other=0)
    f = tl.load(indices_ptr + pair, mask=used, other=0)
    first = tl.load(offsets_ptr + f, mask=used, other=N)
    end = tl.load(offsets_ptr + f + 1, mask=used, other=0)

    # The groups of neighbouring places are neighbours: all of them are one stretch of memory. It is read from a multiple
    # of TILE on and without a mask, so that a thread loads four entries at once.
    smaller = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(
        tl.min(first, axis=0) // TILE * TILE, tl.max(end, axis=0), TILE, loop_unroll_factor=4
    ):
        other = start + tl.arange(0, TILE)
        other_pair = tl.load(unordered_ptr + other)
        in_group = (other[:, None] >= first[None, :]) & (other[:, None] < end[None, :])
        smaller += tl.sum((in_group & (other_pair[:, None] < pair[None, :])).to(tl.int32), axis=0)

    if row_offsets_ptr is None:
        token = pair // K
    else:
        token = tl.zeros_like(pair)  # becomes the last one that begins at or before this pair
        for bit in tl.static_range(LOG_B):
            later = token + (1 << (LOG_B - 1 - bit))
            begins = tl.load(row_offsets_ptr + later, mask=used & (later < B), other=N)
            token = tl.where(begins <= pair, later, token)

    place = tl.where(used, first + smaller, place)
    tl.store(pairs_ptr + place, pair, mask=place < N)
    tl.store(tokens_ptr + place, token, mask=place < N)


def group_bytes(N: int, F: int) -> int:
    """Bytes that `group_by_latent` moves with fp32 activations, all active."""
    return N * (8 + 8) + N * (12 + 4) + N * (16 + 8) + F * 4 * 4


def group_by_latent(
    acts: Tensor, indices: Tensor, d_sae: int, row_offsets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A code -> offsets [F + 1], pairs [N], tokens [N], all int32; pairs and tokens are 0 from offsets[F] on."""
    B, _ = check_code(acts, indices, row_offsets)
    N = acts.numel()
    if B == 0 or N == 0:
        nothing = torch.zeros(N, dtype=torch.int32, device=acts.device)
        return torch.zeros(d_sae + 1, dtype=torch.int32, device=acts.device), nothing, nothing.clone()
    counts = torch.zeros(d_sae, dtype=torch.int32, device=acts.device)
    ranks = torch.empty(N, dtype=torch.int32, device=acts.device)
    grid = (triton.cdiv(N, BLOCK),)
    unordered = torch.empty(grid[0] * BLOCK, dtype=torch.int32, device=acts.device)
    _count_kernel[grid](acts, indices, row_offsets, counts, ranks, unordered, N, B, BLOCK=BLOCK)
    offsets = torch.empty(d_sae + 1, dtype=torch.int32, device=acts.device)
    _scan_kernel[(triton.cdiv(d_sae, BLOCK_SCAN),)](counts, offsets, d_sae, BLOCK=BLOCK_SCAN, num_warps=8)
    _scatter_kernel[grid](indices, ranks, offsets, unordered, N, BLOCK=BLOCK)
    return offsets, *in_order(unordered, indices, offsets, row_offsets)


def in_order(
    unordered: Tensor, indices: Tensor, offsets: Tensor, row_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The pairs of each group in any order, padded to a multiple of TILE -> pairs [N], tokens [N]."""
    N, F = indices.numel(), len(offsets) - 1
    B, K = indices.shape if row_offsets is None else (len(row_offsets) - 1, N)
    pairs = torch.empty(N, dtype=torch.int32, device=indices.device)
    tokens = torch.empty(N, dtype=torch.int32, device=indices.device)
    _order_kernel[(triton.cdiv(N, BLOCK_ORDER),)](
        unordered,
        indices,
        row_offsets,
        offsets,
        pairs,
        tokens,
        N,
        F,
        B,
        K,
        LOG_B=(B - 1).bit_length(),
        BLOCK=BLOCK_ORDER,
        TILE=TILE,
    )
    return pairs, tokens
