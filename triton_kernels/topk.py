"""Top-k: the K largest pre-activations of each token, after ReLU.

    top_acts, top_indices = relu of the K largest of pre_acts[b], the smaller index first among equals

Values are compared as integers in the same order (`sort_key`). The k-th largest is found by bisection between two
bounds, counting how many are larger; one running sum then gives every selected entry its place. There is no candidate
buffer, so nothing can overflow, and no atomics: the result is exact and the same in every run. Entries are written in
ascending order of index.

**By groups** (`select_topk`). Let r be the maximum of each group of 64 consecutive latents and tau the k-th largest r.
Only k groups are read: all with r > tau, then those with r = tau from the left until there are k. That is exact:

* Each of the k groups holds an entry >= tau, so the k-th largest entry v of the row is >= tau.
* Entries > tau are in groups with r > tau, of which there are p < k: all read. If v > tau nothing else matters.
* If v = tau, let m be the number of entries > tau; the k - m leftmost entries equal to tau are wanted too. The k - p
  groups read with r = tau lie to the left of every group that is not read, and each holds an entry equal to tau. So
  k - p entries equal to tau come before any that is not read, and k - p >= k - m because m >= p.

A library product lacks bias and scale; they are added whenever its entries are read (`finished`).

Reading all pre-activations once, for the maxima, is what bounds it: `topk_bytes`. Spec: `saefast.reference.topk`, with
NaN as +inf.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.group_maxima import GROUP, assert_rows, assert_vectors, finished, group_maxima

_GROUP = tl.constexpr(GROUP)
_PAD = tl.constexpr(-(2**31))  # smaller than the key of any number
_TOP = tl.constexpr(2**31 - 1)


@triton.jit
def sort_key(x):
    """Floats as int32 in the same order, -0 as 0 and NaN as +inf; the key of a positive number is its bits."""
    if x.dtype.primitive_bitwidth == 32:
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        infinity: tl.constexpr = 0x7F800000
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        magnitude = bits & 0x7FFF
        infinity: tl.constexpr = 0x7C00 if x.dtype.is_fp16() else 0x7F80
    key = tl.where(bits < 0, -magnitude, magnitude)
    return tl.where(magnitude > infinity, infinity, key)


@triton.jit
def relu_of_key(key, dtype: tl.constexpr):
    """relu(x) for key = sort_key(x) of that dtype."""
    bits = tl.maximum(key, 0)
    return (bits if dtype.primitive_bitwidth == 32 else bits.to(tl.int16)).to(dtype, bitcast=True)


@triton.jit
def load_keys(
    row_ptr, bias_ptr, scale_ptr, groups_ptr, limit, first, n_groups, n_columns, ROWS: tl.constexpr
):
    """Keys and columns [ROWS, 64] of the groups from `first` on: of the row, or of the list at groups_ptr.

    With a `limit`, columns from there on and numbers that are not positive have key 0.
    """
    slot = first + tl.arange(0, ROWS)
    group = slot
    if groups_ptr is not None:
        group = tl.load(groups_ptr + slot, mask=slot < n_groups, other=0)
    column = group[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    inside = (slot < n_groups)[:, None] & (column < n_columns)
    loaded = tl.load(row_ptr + column, mask=inside, other=0.0)
    key = sort_key(finished(loaded, bias_ptr, scale_ptr, column, inside))
    if limit is not None:
        return tl.where(inside & (column < limit), tl.maximum(key, 0), 0), column
    return tl.where(inside, key, _PAD), column


@triton.jit
def key_bounds(keys, IN_GROUPS: tl.constexpr):
    """A key that the k-th largest is not below, and the largest. IN_GROUPS: `keys` are k groups, as above."""
    bounds = tl.max(keys, axis=1) if IN_GROUPS else keys
    return tl.min(tl.where(bounds == _PAD, _TOP, bounds)), tl.max(bounds)


@triton.jit
def count_from(keys, bound):
    return tl.sum((keys >= bound).to(tl.int32))


@triton.jit
def kth_key(
    keys,
    row_ptr,
    bias_ptr,
    scale_ptr,
    groups_ptr,
    limit,
    n_groups,
    n_columns,
    k,
    ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """t and the number of keys > t: they and the leftmost keys equal to t are the k largest of the row.

    RESIDENT: `keys` are the whole row; otherwise they are its first tile, and the row is read again for each count.
    """
    low, high = key_bounds(keys, groups_ptr is not None)
    if not RESIDENT:
        for first in range(ROWS, n_groups, ROWS):
            keys, _ = load_keys(
                row_ptr, bias_ptr, scale_ptr, groups_ptr, limit, first, n_groups, n_columns, ROWS
            )
            tile_low, tile_high = key_bounds(keys, groups_ptr is not None)
            low, high = tl.minimum(low, tile_low), tl.maximum(high, tile_high)

    n_above = 0
    while low < high:  # at least k keys are >= low, n_above <= k are > high
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up without overflow
        if RESIDENT:
            found = count_from(keys, middle)
        else:
            found = 0
            for first in range(0, n_groups, ROWS):
                keys, _ = load_keys(
                    row_ptr, bias_ptr, scale_ptr, groups_ptr, limit, first, n_groups, n_columns, ROWS
                )
                found += count_from(keys, middle)
        low = tl.where(found > k, middle, tl.where(found == k, middle - 1, low))
        high = tl.where(found > k, high, middle - 1)
        n_above = tl.where(found > k, n_above, found)
    return low, n_above


@triton.jit
def rank(keys, t, n_above, n_ties):
    """Counted from the left of the row, this tile included: keys > t, keys equal to t.

    n_above, n_ties: those before the tile. Both counts of a tile of at most 2^15 keys share one int32.
    """
    flags = ((keys > t).to(tl.int32) << 16) | (keys == t).to(tl.int32)
    in_group = tl.sum(flags, axis=1)
    running = tl.cumsum(flags, axis=1) + (tl.cumsum(in_group, axis=0) - in_group)[:, None]
    return n_above + (running >> 16), n_ties + (running & 0xFFFF)


@triton.jit
def _select_kernel(
    row_ptr,  # [B, n_columns], rows `stride` apart
    bias_ptr,  # [n_columns], or None
    scale_ptr,  # [n_columns], or None
    groups_ptr,  # [B, n_groups], or None: all columns
    acts_ptr,  # [B, K] out, or None
    indices_ptr,  # [B, K] out
    stride,
    n_groups,
    n_columns,
    k,
    ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row_ptr += b * stride
    if groups_ptr is not None:
        groups_ptr += b * n_groups
    keys, column = load_keys(row_ptr, bias_ptr, scale_ptr, groups_ptr, None, 0, n_groups, n_columns, ROWS)
    t, n_larger = kth_key(
        keys, row_ptr, bias_ptr, scale_ptr, groups_ptr, None, n_groups, n_columns, k, ROWS, RESIDENT
    )

    above, ties = 0, 0
    for first in range(0, ROWS if RESIDENT else n_groups, CHUNK):
        if RESIDENT and CHUNK == ROWS:
            part, part_column = keys, column
        else:
            part, part_column = load_keys(
                row_ptr, bias_ptr, scale_ptr, groups_ptr, None, first, n_groups, n_columns, CHUNK
            )
        above_rank, tie_rank = rank(part, t, above, ties)
        chosen = (part > t) | ((part == t) & (tie_rank <= k - n_larger))
        slot = above_rank + tl.minimum(tie_rank, k - n_larger) - 1
        tl.store(indices_ptr + b * k + slot, part_column, mask=chosen)
        if acts_ptr is not None:
            act = relu_of_key(part, row_ptr.dtype.element_ty)
            tl.store(acts_ptr + b * k + slot, act.to(acts_ptr.dtype.element_ty), mask=chosen)
        above, ties = above + count_from(part, t + 1), ties + tl.sum((part == t).to(tl.int32))


@dataclass(frozen=True)
class SelectConfig:
    """Launch configuration of `_select_kernel` and of `keep_topk`."""

    ROWS: int  # groups of 64 keys in a tile
    RESIDENT: bool  # the tile is the whole row
    CHUNK: int  # groups that are written at a time, read again where they are fewer than the tile
    num_warps: int


def select_config(n_groups: int, itemsize: int) -> SelectConfig:
    """A row of up to 512 groups (256 in fp32) stays in registers: 16 keys per thread, up to 64 in the longest."""
    if n_groups * itemsize > 1024:
        return SelectConfig(128, False, 64, 16)
    ROWS = triton.next_power_of_2(n_groups)
    return SelectConfig(ROWS, True, min(ROWS, 64), min(16, max(1, ROWS // 8)))


def by_groups(F: int, k: int, itemsize: int) -> bool:
    """Whether `topk` goes by groups: where these are much less than the row, or the row would not stay in registers."""
    n_groups = triton.cdiv(F, GROUP)
    return n_groups >= 4 * k or (n_groups >= k and not select_config(n_groups, itemsize).RESIDENT)


def topk_bytes(B: int, F: int, K: int, itemsize: int) -> int:
    """Bytes that `topk` by groups moves: pre-activations, maxima twice, groups, code and the list of groups twice.

    A bias adds 4 K GROUP bytes a row, out of the L2 cache.
    """
    return B * (
        F * itemsize + 2 * triton.cdiv(F, GROUP) * itemsize + K * (GROUP * itemsize + itemsize + 4 + 8)
    )


def _select(
    rows: Tensor,
    groups: Tensor | None,
    k: int,
    dtype: torch.dtype | None,  # of the activations; None: only indices are wanted
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    (B, F), device = rows.shape, rows.device
    acts = torch.empty(B, k, dtype=dtype, device=device) if dtype else None
    indices = torch.empty(B, k, dtype=torch.int32, device=device)
    n_groups = triton.cdiv(F, GROUP) if groups is None else groups.shape[1]
    config = select_config(n_groups, rows.element_size())
    if B > 0:
        _select_kernel[(B,)](
            rows,
            bias,
            scale,
            groups,
            acts,
            indices,
            rows.stride(0),
            n_groups,
            F,
            k,
            ROWS=config.ROWS,
            RESIDENT=config.RESIDENT,
            CHUNK=config.CHUNK,
            num_warps=config.num_warps,
        )
    return acts, indices


def select_topk(
    pre_acts: Tensor,
    maxima: Tensor,
    k: int,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`topk`, given `group_maxima` of pre_acts: reads k groups, or all of the row if it has fewer than k.

    Args:
        bias, scale: [F], where pre_acts are products that lack these, as in `group_maxima`.
        dtype: of the activations; None: that of pre_acts.
    """
    B, F = pre_acts.shape
    n_groups = triton.cdiv(F, GROUP)
    expected = B, n_groups
    assert maxima.shape == expected, f"maxima: expected {expected}, got {tuple(maxima.shape)}"
    assert 1 <= k <= F, f"k: expected 1 to {F}, got {k}"
    assert_rows("pre_acts", pre_acts)
    assert_rows("maxima", maxima)
    assert_vectors(F, bias=bias, scale=scale)
    groups = _select(maxima, None, k, None)[1] if n_groups >= k else None
    return _select(pre_acts, groups, k, dtype or pre_acts.dtype, bias, scale)


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pre_acts [B, F] -> top_acts [B, K] (after ReLU), top_indices [B, K] int32, in ascending order of index."""
    if by_groups(pre_acts.shape[1], k, pre_acts.element_size()):
        return select_topk(pre_acts, group_maxima(pre_acts), k)
    assert 1 <= k <= pre_acts.shape[1], f"k: expected 1 to {pre_acts.shape[1]}, got {k}"
    assert_rows("pre_acts", pre_acts)
    return _select(pre_acts, None, k, pre_acts.dtype)
