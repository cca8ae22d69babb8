"""Everything above a threshold as a ragged code: count per row, scan, fill.

    acts, indices = the pre_acts[b, f] > threshold (of all latents, or of each one), b ascending, then f

A comparison per element, so reading pre_acts once bounds it, `threshold_bytes`: counting also lists the groups of 64
consecutive latents that hold something, and only those are read again. Where the maximum of every group is at hand and
there is one threshold, they are all that is read.
Spec: `saefast.reference.above_threshold`, except that a NaN counts as above and the threshold is never rounded.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.topk import GROUP

_GROUP = tl.constexpr(GROUP)


@triton.jit
def _is_above(x, threshold):
    return (x > threshold) | (x != x)  # noqa: PLR0124  (NaN must reach the loss)


@triton.jit
def _list_groups_kernel(
    maxima_ptr,  # [B, G]
    threshold_ptr,  # []
    groups_ptr,  # [B, G] out, the first n_groups of each row
    n_groups_ptr,  # [B] out
    G,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    threshold = tl.load(threshold_ptr)
    n_listed = 0
    for start in range(0, G, BLOCK):
        g = start + tl.arange(0, BLOCK)
        maximum = tl.load(maxima_ptr + b * G + g, mask=g < G, other=float("-inf")).to(tl.float32)
        listed = _is_above(maximum, threshold)
        position = n_listed + tl.cumsum(listed.to(tl.int32)) - 1
        tl.store(groups_ptr + b * G + position, g, mask=listed)
        n_listed += tl.sum(listed.to(tl.int32))
    tl.store(n_groups_ptr + b, n_listed)


@triton.jit
def _load_tile(pre_acts_ptr, threshold_ptr, group, is_group, b, F, BLOCK_G: tl.constexpr, ONE: tl.constexpr):
    """Values, latents and which of them are above, [BLOCK_G, 64]."""
    f = group[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    mask = is_group[:, None] & (f < F)
    x = tl.load(pre_acts_ptr + b * F + f, mask=mask, other=float("-inf"))
    threshold = tl.load(threshold_ptr) if ONE else tl.load(threshold_ptr + f, mask=mask, other=0.0)
    return x, f, _is_above(x.to(tl.float32), threshold)


@triton.jit
def _count_above_kernel(
    pre_acts_ptr,  # [B, F]
    threshold_ptr,  # [] or [F]
    groups_ptr,  # [B, G], in if LISTED, else out: those with something above
    n_groups_ptr,  # [B], the same
    counts_ptr,  # [1 + B] out, the first one 0
    F,
    G,
    BLOCK_G: tl.constexpr,
    ONE: tl.constexpr,
    LISTED: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n_groups = tl.load(n_groups_ptr + b) if LISTED else G
    n_listed = 0
    n_above = tl.zeros((BLOCK_G,), tl.int32)
    for start in range(0, n_groups, BLOCK_G):
        slot = start + tl.arange(0, BLOCK_G)
        is_group = slot < n_groups
        group = tl.load(groups_ptr + b * G + slot, mask=is_group, other=0) if LISTED else slot
        _, _, above = _load_tile(pre_acts_ptr, threshold_ptr, group, is_group, b, F, BLOCK_G, ONE)
        in_group = tl.sum(above.to(tl.int32), axis=1)
        n_above += in_group
        if not LISTED:
            listed = in_group > 0
            position = n_listed + tl.cumsum(listed.to(tl.int32)) - 1
            tl.store(groups_ptr + b * G + position, group, mask=listed)
            n_listed += tl.sum(listed.to(tl.int32))
    if not LISTED:
        tl.store(n_groups_ptr + b, n_listed)
    tl.store(counts_ptr + 1 + b, tl.sum(n_above).to(tl.int64))
    if b == 0:
        tl.store(counts_ptr, tl.zeros((), tl.int64))


@triton.jit
def _fill_above_kernel(
    pre_acts_ptr,  # [B, F]
    threshold_ptr,  # [] or [F]
    groups_ptr,  # [B, G]
    n_groups_ptr,  # [B]
    offsets_ptr,  # [B + 1]
    acts_ptr,  # [capacity] out
    indices_ptr,  # [capacity] out
    row_offsets_ptr,  # [B + 1] out
    F,
    G,
    capacity,
    BLOCK_G: tl.constexpr,
    ONE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n_groups = tl.load(n_groups_ptr + b)
    offset = tl.load(offsets_ptr + b)
    tl.store(row_offsets_ptr + b, tl.minimum(offset, 2**31 - 1).to(tl.int32))
    for start in range(0, n_groups, BLOCK_G):
        slot = start + tl.arange(0, BLOCK_G)
        is_group = slot < n_groups
        group = tl.load(groups_ptr + b * G + slot, mask=is_group, other=0)
        x, f, above = _load_tile(pre_acts_ptr, threshold_ptr, group, is_group, b, F, BLOCK_G, ONE)
        found = above.to(tl.int32)
        in_group = tl.sum(found, axis=1)
        position = (tl.cumsum(in_group) - in_group)[:, None] + tl.cumsum(found, axis=1) - 1
        room = tl.maximum(tl.minimum(capacity - offset, BLOCK_G * _GROUP), 0).to(tl.int32)
        fits = above & (position < room)
        tl.store(acts_ptr + offset + position, x, mask=fits)
        tl.store(indices_ptr + offset + position, f, mask=fits)
        offset += tl.sum(in_group)
    if b == tl.num_programs(0) - 1:
        tl.store(row_offsets_ptr + b + 1, tl.minimum(offset, 2**31 - 1).to(tl.int32))


@dataclass(frozen=True)
class ThresholdConfig:
    """Launch configuration of this file's kernels, one program a row."""

    BLOCK: int  # maxima per iteration
    BLOCK_G: int  # groups per iteration
    num_warps: int  # of listing and counting
    fill_warps: int


def threshold_config(G: int) -> ThresholdConfig:
    """For rows of G groups. 32 of them are 2048 latents: two loads of 16 bytes to a thread in 16-bit formats.

    The fill has twice the warps, because it holds a pointer for each latent.
    """
    G = triton.next_power_of_2(G)
    return ThresholdConfig(min(1024, G), min(32, G), num_warps=4, fill_warps=8)


def threshold_bytes(B: int, F: int, N: int, itemsize: int) -> int:
    """Bytes that `above_threshold` moves, without maxima and with one threshold, for N entries each in its own group."""
    return B * F * itemsize + N * (GROUP * itemsize + 2 * 4 + itemsize + 4)


Groups = tuple[
    Tensor, Tensor
]  # of each row: the groups to look at [B, G] int32, and how many these are [B] int32


def _empty_groups(B: int, G: int, device: torch.device) -> Groups:
    return tuple(torch.empty(shape, dtype=torch.int32, device=device) for shape in ((B, G), (B,)))


def list_groups(maxima: Tensor, threshold: Tensor) -> Groups:
    """maxima [B, G], threshold [] -> the groups with a maximum above, in ascending order."""
    B, G = maxima.shape
    groups = _empty_groups(B, G, maxima.device)
    config = threshold_config(G)
    _list_groups_kernel[(B,)](maxima, threshold, *groups, G, BLOCK=config.BLOCK, num_warps=config.num_warps)
    return groups


def count_above(pre_acts: Tensor, threshold: Tensor, groups: Groups | None = None) -> tuple[Tensor, Groups]:
    """-> where each row of the code begins and the last one ends [B + 1] int64, and the groups that hold its entries.

    groups: look only there; None looks everywhere.
    """
    B, F = pre_acts.shape
    G = triton.cdiv(F, GROUP)
    LISTED = groups is not None
    groups = groups or _empty_groups(B, G, pre_acts.device)
    counts = torch.empty(B + 1, dtype=torch.int64, device=pre_acts.device)
    config = threshold_config(G)
    _count_above_kernel[(B,)](
        pre_acts,
        threshold,
        *groups,
        counts,
        F,
        G,
        BLOCK_G=config.BLOCK_G,
        ONE=threshold.ndim == 0,
        LISTED=LISTED,
        num_warps=config.num_warps,
    )
    return counts.cumsum(0), groups


def fill_above(
    pre_acts: Tensor, threshold: Tensor, offsets: Tensor, groups: Groups, acts: Tensor, indices: Tensor
) -> Tensor:
    """Write what fits into acts [N] and indices [N] -> row_offsets [B + 1] int32, no larger than int32 can be."""
    B, F = pre_acts.shape
    G = triton.cdiv(F, GROUP)
    row_offsets = torch.empty(B + 1, dtype=torch.int32, device=pre_acts.device)
    config = threshold_config(G)
    _fill_above_kernel[(B,)](
        pre_acts,
        threshold,
        *groups,
        offsets,
        acts,
        indices,
        row_offsets,
        F,
        G,
        len(acts),
        BLOCK_G=config.BLOCK_G,
        ONE=threshold.ndim == 0,
        num_warps=config.fill_warps,
    )
    return row_offsets


def above_threshold(
    pre_acts: Tensor, threshold: Tensor, capacity: int | None = None, maxima: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F], threshold [] or [F] fp32 -> acts [N], indices [N] int32, row_offsets [B + 1] int32.

    Args:
        capacity: N. None waits for the device to count; otherwise what does not fit is left out, and unused entries are 0.
        maxima: [B, ceil(F / 64)], the largest of every 64 consecutive latents; only with one threshold.
    """
    B, F = pre_acts.shape
    shapes = {"threshold": (threshold, () if threshold.ndim == 0 else (F,))}
    if maxima is not None:
        shapes["maxima"] = (maxima, (B, triton.cdiv(F, GROUP)))
        assert threshold.ndim == 0, f"maxima: expected one threshold, got {F}"
    for name, (tensor, shape) in shapes.items():
        assert tensor.shape == shape, f"{name}: expected {shape}, got {tuple(tensor.shape)}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    assert threshold.dtype == torch.float32, f"threshold: expected torch.float32, got {threshold.dtype}"
    assert pre_acts.is_contiguous(), f"pre_acts: expected contiguous memory, got strides {pre_acts.stride()}"

    device = pre_acts.device
    if B == 0:
        acts = torch.zeros(capacity or 0, dtype=pre_acts.dtype, device=device)
        return acts, acts.to(torch.int32), torch.zeros(1, dtype=torch.int32, device=device)
    groups = None if maxima is None else list_groups(maxima, threshold)
    offsets, groups = count_above(pre_acts, threshold, groups)
    allocate = torch.empty if capacity is None else torch.zeros
    capacity = int(offsets[-1]) if capacity is None else capacity
    acts = allocate(capacity, dtype=pre_acts.dtype, device=device)
    indices = allocate(capacity, dtype=torch.int32, device=device)
    return acts, indices, fill_above(pre_acts, threshold, offsets, groups, acts, indices)
