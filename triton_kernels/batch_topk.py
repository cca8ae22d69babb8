"""BatchTopK: the B * k largest pre-activations of a whole batch, as a ragged code.

1. The (B * k)-th largest maximum of 64 consecutive latents bounds the threshold from below, because each such group
   holds one value at least that large. Found by counting digits of order-preserving integer keys, from the top.
2. The values from that bound on, hardly more than B * k as a rule, are copied out (`threshold.py`).
3. All digits of the threshold are counted over those candidates; then count per row, scan, fill. Of the values equal to
   the threshold the first are taken, by row and then index, until exactly B * k are.

If the bound does not bite (too few groups, or masses of ties or of large values in a few rows), step 3 goes over all
values. Which it is, is decided on the device: nothing waits. Integer counts alone are added atomically, so results
do not depend on order. Memory bandwidth bounds it: `batch_topk_bytes`. Spec: `saefast.reference.batch_topk`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.sort_keys import from_key, to_key
from saefast.triton_kernels.threshold import count_above, fill_above, list_groups
from saefast.triton_kernels.topk import GROUP, group_maxima


@triton.jit
def _use_candidates(n_candidates, n_chosen, capacity):
    """Whether there are enough and all fit; otherwise every kernel of step 3 goes over all values."""
    return (n_candidates >= n_chosen) & (n_candidates <= capacity)


@triton.jit
def _row(pre_acts_ptr, candidates_ptr, candidate_offsets_ptr, b, B, F, n_chosen, capacity):
    """What to select from in row b: values_ptr[begin:end], and whether these are candidates."""
    values_ptr, begin, end, use_candidates = pre_acts_ptr, b * F, (b + 1) * F, False
    if candidates_ptr is not None:
        use_candidates = _use_candidates(tl.load(candidate_offsets_ptr + B), n_chosen, capacity)
        if use_candidates:
            values_ptr = candidates_ptr
            begin = tl.load(candidate_offsets_ptr + b).to(tl.int64)
            end = tl.load(candidate_offsets_ptr + b + 1).to(tl.int64)
    return values_ptr, begin, end, use_candidates


@triton.jit
def _descend(histogram_ptr, rank, N_DIGITS: tl.constexpr):
    """The first digits of the rank-th largest key, and its rank among the keys that begin with them."""
    digit = tl.arange(0, 256)
    prefix = tl.zeros((), tl.int64)
    rank = rank.to(tl.int64)
    for i in tl.static_range(N_DIGITS):
        count = tl.load(histogram_ptr + i * 256 + digit)
        n_above = tl.sum(count) - tl.cumsum(count)
        is_here = (n_above < rank) & (rank <= n_above + count)
        prefix = prefix * 256 + tl.sum(tl.where(is_here, digit, 0))
        rank -= tl.sum(tl.where(is_here, n_above, 0))
    return prefix, rank


@triton.jit
def _count_digit_kernel(
    values_ptr,  # [n_values]
    candidates_ptr,  # [capacity], or None
    n_candidates_ptr,  # [], or None
    histogram_ptr,  # [digits, 256], row DIGIT added to
    n_values,
    n_chosen,
    capacity,
    DIGIT: tl.constexpr,  # from the top; the rows before it are complete
    BLOCK: tl.constexpr,
):
    BITS: tl.constexpr = values_ptr.dtype.element_ty.primitive_bitwidth
    SHIFT: tl.constexpr = BITS - 8 * (DIGIT + 1)
    n = tl.zeros((), tl.int64) + n_values
    if candidates_ptr is not None:
        n_candidates = tl.load(n_candidates_ptr)
        if _use_candidates(n_candidates, n_chosen, capacity):
            values_ptr, n = candidates_ptr, n_candidates.to(tl.int64)
    prefix, _ = _descend(histogram_ptr, tl.zeros((), tl.int64) + n_chosen, DIGIT)

    first = tl.program_id(0).to(tl.int64) * BLOCK
    counts = tl.zeros((256,), tl.int32)
    for start in range(first, n, tl.num_programs(0) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        key = to_key(tl.load(values_ptr + i, mask=i < n, other=0.0))
        counted = i < n
        if DIGIT > 0:
            counted &= (key >> (SHIFT + 8)) == prefix.to(tl.uint32)
        counts += tl.histogram(((key >> SHIFT) & 255).to(tl.int32), 256, mask=counted)
    tl.atomic_add(histogram_ptr + DIGIT * 256 + tl.arange(0, 256), counts.to(tl.int64), mask=counts > 0)


@triton.jit
def _bound_kernel(
    histogram_ptr,  # [2, 256] of the maxima
    maxima_ptr,  # for their dtype
    below_ptr,  # [] out: what all candidates are above
    n_chosen,
):
    BITS: tl.constexpr = maxima_ptr.dtype.element_ty.primitive_bitwidth
    prefix, _ = _descend(histogram_ptr, tl.zeros((), tl.int64) + n_chosen, 2)
    infinity = to_key(tl.full((), float("-inf"), maxima_ptr.dtype.element_ty))
    bound = tl.maximum((prefix << (BITS - 16)).to(tl.uint32), infinity + 1)
    tl.store(below_ptr, from_key(bound - 1, maxima_ptr.dtype.element_ty).to(tl.float32))


@triton.jit
def _threshold_kernel(
    histogram_ptr,  # [N_DIGITS, 256]
    threshold_ptr,  # [2] out: the key of the threshold, how many of the values equal to it are taken
    n_chosen,
    N_DIGITS: tl.constexpr,
):
    key, n_taken = _descend(histogram_ptr, tl.zeros((), tl.int64) + n_chosen, N_DIGITS)
    tl.store(threshold_ptr, key)
    tl.store(threshold_ptr + 1, n_taken)


@triton.jit
def _count_row_kernel(
    pre_acts_ptr,  # [B, F]
    candidates_ptr,  # [capacity], or None
    candidate_offsets_ptr,  # [B + 1], or None
    threshold_ptr,  # [2]
    counts_ptr,  # [2, 1 + B] out: values above the threshold, and equal to it; the first of each row 0
    B,
    F,
    n_chosen,
    capacity,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    values_ptr, begin, end, _ = _row(
        pre_acts_ptr, candidates_ptr, candidate_offsets_ptr, b, B, F, n_chosen, capacity
    )
    threshold = tl.load(threshold_ptr).to(tl.uint32)
    n_above, n_ties = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        key = to_key(tl.load(values_ptr + i, mask=i < end, other=float("-inf")))
        n_above += (key > threshold).to(tl.int32)
        n_ties += ((key == threshold) & (i < end)).to(tl.int32)
    tl.store(counts_ptr + 1 + b, tl.sum(n_above).to(tl.int64))
    tl.store(counts_ptr + 1 + B + 1 + b, tl.sum(n_ties).to(tl.int64))
    if b == 0:
        tl.store(counts_ptr, tl.zeros((), tl.int64))
        tl.store(counts_ptr + B + 1, tl.zeros((), tl.int64))


@triton.jit
def _fill_row_kernel(
    pre_acts_ptr,  # [B, F]
    candidates_ptr,  # [capacity], or None
    candidate_indices_ptr,  # [capacity], or None
    candidate_offsets_ptr,  # [B + 1], or None
    threshold_ptr,  # [2]
    before_ptr,  # [2, B + 1], the running sum of the counts
    acts_ptr,  # [B * k] out
    indices_ptr,  # [B * k] out
    row_offsets_ptr,  # [B + 1] out
    B,
    F,
    n_chosen,
    capacity,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    values_ptr, begin, end, use_candidates = _row(
        pre_acts_ptr, candidates_ptr, candidate_offsets_ptr, b, B, F, n_chosen, capacity
    )
    threshold = tl.load(threshold_ptr).to(tl.uint32)
    n_taken = tl.load(threshold_ptr + 1)
    n_above, n_ties = tl.load(before_ptr + b), tl.load(before_ptr + B + 1 + b)
    position = n_above + tl.minimum(n_ties, n_taken)
    ties_left = n_taken - tl.minimum(n_ties, n_taken)
    tl.store(row_offsets_ptr + b, position.to(tl.int32))
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(values_ptr + i, mask=i < end, other=float("-inf"))
        key = to_key(x)
        tie = (key == threshold) & (i < end)
        chosen = (key > threshold) | (tie & (tl.cumsum(tie.to(tl.int32)) <= ties_left))
        f = (i - begin).to(tl.int32)
        if candidate_indices_ptr is not None:
            f = tl.where(
                use_candidates, tl.load(candidate_indices_ptr + i, mask=chosen & use_candidates, other=0), f
            )
        slot = position + tl.cumsum(chosen.to(tl.int32)) - 1
        tl.store(acts_ptr + slot, tl.where(x < 0, 0.0, x), mask=chosen)  # keeps NaN, unlike a maximum
        tl.store(indices_ptr + slot, f, mask=chosen)
        position += tl.sum(chosen.to(tl.int32))
        ties_left -= tl.minimum(tl.sum(tie.to(tl.int32)), ties_left)
    if b == B - 1:
        tl.store(row_offsets_ptr + B, position.to(tl.int32))


class Candidates(NamedTuple):
    """A ragged code that holds all B * k largest values if `row_offsets[B]` is from B * k to the room there is."""

    acts: Tensor | None = None
    indices: Tensor | None = None
    row_offsets: Tensor | None = None


@dataclass(frozen=True)
class BatchTopkConfig:
    """Launch configuration of this file's kernels."""

    BLOCK: int = 2048  # values per iteration of a histogram, 16 to a thread
    BLOCK_ROW: int = 1024  # values of a row per iteration
    n_programs: int = 1024  # of a histogram, at most; 7 or 8 for each multiprocessor
    room: int = 16  # candidates kept, in units of B * k; a step with more of them is exact and slow


def batch_topk_bytes(B: int, F: int, k: int, itemsize: int) -> int:
    """Bytes that `batch_topk` moves, given the maxima, where B * k groups hold the candidates and these number B * k."""
    G = triton.cdiv(F, GROUP)
    return 3 * B * G * itemsize + B * k * (2 * (GROUP * itemsize + 4) + 5 * itemsize + 3 * 4)


def _count_digits(
    values: Tensor, candidates: Candidates, n_chosen: int, n_digits: int, config: BatchTopkConfig
) -> Tensor:
    """-> histograms [n_digits, 256]: of the first digit, and of each later one after the digits of the n-th largest."""
    histogram = torch.zeros(n_digits, 256, dtype=torch.int64, device=values.device)
    acts, row_offsets = candidates.acts, candidates.row_offsets
    n_candidates = None if row_offsets is None else row_offsets[-1:]
    grid = (min(config.n_programs, triton.cdiv(values.numel(), config.BLOCK)),)
    for digit in range(n_digits):
        _count_digit_kernel[grid](
            values,
            acts,
            n_candidates,
            histogram,
            values.numel(),
            n_chosen,
            0 if acts is None else len(acts),
            DIGIT=digit,
            BLOCK=config.BLOCK,
            num_warps=4,
        )
    return histogram


def find_candidates(pre_acts: Tensor, maxima: Tensor, n_chosen: int, config: BatchTopkConfig) -> Candidates:
    """Steps 1 and 2, for k <= G."""
    histogram = _count_digits(maxima, Candidates(), n_chosen, 2, config)
    below = torch.empty((), dtype=torch.float32, device=pre_acts.device)
    _bound_kernel[(1,)](histogram, maxima, below, n_chosen)
    offsets, groups = count_above(pre_acts, below, list_groups(maxima, below))
    capacity = min(config.room * n_chosen, pre_acts.numel())
    acts = torch.empty(capacity, dtype=pre_acts.dtype, device=pre_acts.device)
    indices = torch.empty(capacity, dtype=torch.int32, device=pre_acts.device)
    return Candidates(acts, indices, fill_above(pre_acts, below, offsets, groups, acts, indices))


def batch_topk(
    pre_acts: Tensor, k: int, maxima: Tensor | None = None, *, config: BatchTopkConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F] -> acts [B * k] (after ReLU), indices [B * k] int32, row_offsets [B + 1] int32.

    Args:
        maxima: of `group_maxima`, which is called where this is None. NaN counts as +inf.
    """
    (B, F), device = pre_acts.shape, pre_acts.device
    G = triton.cdiv(F, GROUP)
    assert 1 <= k <= F, f"k: expected 1 to {F}, got {k}"
    assert pre_acts.is_contiguous(), f"pre_acts: expected contiguous memory, got strides {pre_acts.stride()}"
    if maxima is not None:
        assert maxima.shape == (B, G), f"maxima: expected {(B, G)}, got {tuple(maxima.shape)}"
        assert maxima.is_contiguous(), f"maxima: expected contiguous memory, got strides {maxima.stride()}"
        assert maxima.dtype == pre_acts.dtype, f"maxima: expected {pre_acts.dtype}, got {maxima.dtype}"

    acts = torch.empty(B * k, dtype=pre_acts.dtype, device=device)
    indices = torch.empty(B * k, dtype=torch.int32, device=device)
    row_offsets = torch.empty(B + 1, dtype=torch.int32, device=device)
    if B == 0:
        return acts, indices, row_offsets.zero_()
    config = config or BatchTopkConfig()
    candidates = Candidates()
    if k <= G:
        maxima = group_maxima(pre_acts) if maxima is None else maxima
        candidates = find_candidates(pre_acts, maxima, B * k, config)
    capacity = 0 if candidates.acts is None else len(candidates.acts)

    n_digits = pre_acts.element_size()
    histogram = _count_digits(pre_acts, candidates, B * k, n_digits, config)
    threshold = torch.empty(2, dtype=torch.int64, device=device)
    _threshold_kernel[(1,)](histogram, threshold, B * k, N_DIGITS=n_digits)
    counts = torch.empty(2, B + 1, dtype=torch.int64, device=device)
    found, sizes = (candidates.acts, candidates.row_offsets), (B, F, B * k, capacity)
    options = {"BLOCK": config.BLOCK_ROW, "num_warps": 4}
    _count_row_kernel[(B,)](pre_acts, *found, threshold, counts, *sizes, **options)
    places, out = counts.cumsum(1), (acts, indices, row_offsets)
    _fill_row_kernel[(B,)](pre_acts, *candidates, threshold, places, *out, *sizes, **options)
    return acts, indices, row_offsets
