"""Keep top-k: ReLU of the K largest pre-activations of each token in place, 0 elsewhere; for AuxK.

    out[b, c] = relu(pre_acts[b, c]) where c is among the K largest of pre_acts[b, :count], the smaller index first

The search of `topk`, without the numbers that ReLU makes 0 anyway. Reads and writes each element once, so memory
bandwidth bounds it (`keep_topk_bytes`), except in rows too long for the registers, which are read again from the L2
cache for each step of the search. Spec: `saefast.reference.keep_topk`, with NaN as +inf.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.topk import GROUP, kth_key, load_keys, rank, relu_of_key, select_config


@triton.jit
def _keep_topk_kernel(
    pre_acts_ptr,  # [B, C]
    count_ptr,  # []
    out_ptr,  # [B, C] out
    n_groups,
    C,
    k,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row_ptr = pre_acts_ptr + b * C
    count = tl.load(count_ptr).to(tl.int32)
    keys, column = load_keys(row_ptr, None, None, None, count, 0, n_groups, C, ROWS)
    t, n_larger = 0, 0
    if not ALL:
        t, n_larger = kth_key(keys, row_ptr, None, None, None, count, n_groups, C, k, ROWS, RESIDENT)

    ties = 0
    for first in range(0, ROWS if RESIDENT else n_groups, CHUNK):
        if RESIDENT and CHUNK == ROWS:
            part, part_column = keys, column
        else:
            part, part_column = load_keys(row_ptr, None, None, None, count, first, n_groups, C, CHUNK)
        kept = part > t
        if not ALL:
            _, tie_rank = rank(part, t, 0, ties)
            kept |= (part == t) & (tie_rank <= k - n_larger)
            ties += tl.sum((part == t).to(tl.int32))
        act = relu_of_key(tl.where(kept, part, 0), out_ptr.dtype.element_ty)
        tl.store(out_ptr + b * C + part_column, act, mask=part_column < C)


def keep_topk_bytes(B: int, C: int, itemsize: int) -> int:
    """Bytes that `keep_topk` moves while rows stay in registers."""
    return 2 * B * C * itemsize


def keep_topk(pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
    """pre_acts [B, C] -> [B, C]: relu of the k largest of the first `count` [] columns of each row, 0 elsewhere."""
    B, C = pre_acts.shape
    assert count.dim() == 0, f"count: expected a number, got shape {tuple(count.shape)}"
    assert k >= 1, f"k: expected at least 1, got {k}"
    assert pre_acts.is_contiguous(), f"pre_acts: expected contiguous memory, got strides {pre_acts.stride()}"
    out = torch.empty(B, C, dtype=pre_acts.dtype, device=pre_acts.device)
    if out.numel() == 0:
        return out
    n_groups = triton.cdiv(C, GROUP)
    config = select_config(n_groups, pre_acts.element_size())
    _keep_topk_kernel[(B,)](
        pre_acts,
        count,
        out,
        n_groups,
        C,
        k,
        ALL=k >= C,
        ROWS=config.ROWS,
        RESIDENT=config.RESIDENT,
        CHUNK=config.CHUNK,
        num_warps=config.num_warps,
    )
    return out
