"""Backward of decode with respect to the activations: one product of rows for each active entry of the code.

    grad[b, j] = <error[b], W_dec[indices[b, j]]>  where acts[b, j] > 0, else 0

Two FLOPs per element of W_dec gathered, so memory bandwidth bounds it; `grad_top_acts_bytes` counts that traffic. Rows
used by several tokens may come from the L2 cache. Spec: `saefast.reference.grad_top_acts`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.decode import check, check_code, entries_of_token


@triton.jit
def _grad_top_acts_kernel(
    error_ptr,  # [B, D]
    W_dec_ptr,  # [F, D]
    acts_ptr,  # [B, K], or [N]
    indices_ptr,  # [B, K], or [N]
    row_offsets_ptr,  # None, or [B + 1]
    grad_ptr,  # [B, K], or [N] out
    K,  # or N
    D,
    PROGRAMS: tl.constexpr,  # of a token
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The programs of a token are neighbours, so that its error comes from HBM once.
    b = tl.program_id(0) // PROGRAMS
    first, end = entries_of_token(b, row_offsets_ptr, K)
    error_ptr += b.to(tl.int64) * D
    for start in range(first + tl.program_id(0) % PROGRAMS * BLOCK_K, end, PROGRAMS * BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        active = tl.load(acts_ptr + j, mask=j < end, other=0.0).to(tl.float32) > 0
        f = tl.load(indices_ptr + j, mask=active, other=0).to(tl.int64)  # F * D passes 2^31
        partial = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for start_d in range(0, D, BLOCK_D):
            d = start_d + tl.arange(0, BLOCK_D)
            error = tl.load(error_ptr + d, mask=d < D, other=0.0).to(tl.float32)
            row_ptrs = W_dec_ptr + f[:, None] * D + d[None, :]
            inside = active[:, None] & (d < D)[None, :]
            partial += error[None, :] * tl.load(row_ptrs, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_ptr + j, tl.sum(partial, axis=1), mask=j < end)


@dataclass(frozen=True)
class GradTopActsConfig:
    """Launch configuration of `_grad_top_acts_kernel`; every program is one warp."""

    PROGRAMS: int  # of a token
    BLOCK_K: int  # rows of W_dec that a program reads together
    BLOCK_D: int  # columns loaded per iteration


def grad_top_acts_config(K: int, D: int, itemsize: int) -> GradTopActsConfig:
    """Tiles for W_dec of `itemsize` bytes per element. K: of a token, at most.

    A warp reads 512 bytes of a row at a time and of four rows together, so that the products are summed inside the
    thread until the end, and no warp waits for another.
    """
    BLOCK_K = min(4, triton.next_power_of_2(K))
    BLOCK_D = min(512 // itemsize, triton.next_power_of_2(D))
    return GradTopActsConfig(min(4, triton.cdiv(K, BLOCK_K)), BLOCK_K, BLOCK_D)


def grad_top_acts_bytes(B: int, K: int, D: int, itemsize: int) -> int:
    """Bytes that `grad_top_acts` moves when no row of W_dec is found in a cache, with fp32 activations."""
    return B * K * (4 + 4 + 4) + B * K * D * itemsize + B * D * itemsize


def grad_top_acts(
    error: Tensor,
    W_dec: Tensor,
    acts: Tensor,
    indices: Tensor,
    row_offsets: Tensor | None = None,
    *,
    config: GradTopActsConfig | None = None,
) -> Tensor:
    """error [B, D], [F, D], a code -> <error[token], W_dec[index]> fp32 in the shape of acts, 0 where not active."""
    B, K = check_code(acts, indices, row_offsets)
    D = W_dec.shape[1]
    check("W_dec", W_dec, (W_dec.shape[0], D))
    check("error", error, (B, D))
    allocate = torch.empty if row_offsets is None else torch.zeros  # no token has the entries after the last
    grad = allocate(acts.shape, dtype=torch.float32, device=acts.device)
    if acts.numel() == 0 or B == 0:
        return grad
    config = config or grad_top_acts_config(K, D, W_dec.element_size())
    _grad_top_acts_kernel[(B * config.PROGRAMS,)](
        error,
        W_dec,
        acts,
        indices,
        row_offsets,
        grad,
        K,
        D,
        PROGRAMS=config.PROGRAMS,
        BLOCK_K=config.BLOCK_K,
        BLOCK_D=config.BLOCK_D,
        num_warps=1,
    )
    return grad
