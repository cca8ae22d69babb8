"""Hot latents: one that is active in more than CHUNK tokens is summed by several programs, CHUNK tokens each.

A latent active in every token would otherwise keep one program busy long after all others are done. The chunks of a
latent depend on its count alone and are added in order, so the sums have the same bits every time.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.numbers import L1
from saefast.triton_kernels.rows import store_row
from saefast.triton_kernels.storage import load_weight
from saefast.triton_kernels.update_kernels import accumulate


@triton.jit
def chunk_kernel(
    # [F, D]
    W_dec_ptr,
    W_dec_low_ptr,
    # [B, D], [B, D_OUT]
    centred_ptr,
    error_ptr,
    acts_ptr,  # [N]
    grad_pre_ptr,  # [N], of Given, or None
    # of group_by_latent
    offsets_ptr,
    pairs_ptr,
    tokens_ptr,
    chunk_offsets_ptr,  # [F + 1]
    # [C, D], [C, D_OUT], [C] out
    chunk_enc_ptr,
    chunk_dec_ptr,
    chunk_b_ptr,
    grad_scale_ptr,
    numbers_ptr,
    F,
    B,  # None without Given
    STEPS: tl.constexpr,  # log2(F), rounded up
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
    R: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_offsets_ptr + F):
        low, high = chunk * 0, chunk * 0 + F  # chunk_offsets[low] <= chunk < chunk_offsets[high]
        for _ in range(STEPS):
            middle = (low + high) // 2
            above = tl.load(chunk_offsets_ptr + middle) <= chunk
            low, high = tl.where(above, middle, low), tl.where(above, high, middle)
        begin = tl.load(offsets_ptr + low) + (chunk - tl.load(chunk_offsets_ptr + low)) * CHUNK
        end = tl.minimum(begin + CHUNK, tl.load(offsets_ptr + low + 1))
        W_dec = load_weight((W_dec_ptr, W_dec_low_ptr), low.to(tl.int64), D_OUT, PIECES_OUT)
        scale, l1 = tl.load(grad_scale_ptr), tl.load(numbers_ptr + L1)
        grad_enc, grad_dec, grad_b = accumulate(
            W_dec,
            begin,
            end,
            pairs_ptr,
            tokens_ptr,
            acts_ptr,
            grad_pre_ptr,
            centred_ptr,
            error_ptr,
            scale,
            l1,
            B,
            D,
            PIECES,
            D_OUT,
            PIECES_OUT,
            R,
        )
        store_row(chunk_enc_ptr, chunk.to(tl.int64) * D, grad_enc, D, PIECES)
        store_row(chunk_dec_ptr, chunk.to(tl.int64) * D_OUT, grad_dec, D_OUT, PIECES_OUT)
        tl.store(chunk_b_ptr + chunk, grad_b)


def most_chunks(n_entries: int, n_latents: int, chunk: int) -> int:
    """No code of `n_entries` has more chunks: each is full but the last of a latent, and a hot one has chunk + 1."""
    return n_entries // chunk + min(n_latents, n_entries // (chunk + 1))


def chunk_offsets(offsets: Tensor, chunk: int) -> Tensor:
    """offsets [F + 1] -> [F + 1] int32: the chunks of latent f are `out[f]` to `out[f + 1]`, none unless it is hot."""
    counts = offsets[1:] - offsets[:-1]
    chunks = ((counts + (chunk - 1)) // chunk).masked_fill(counts <= chunk, 0)
    return F.pad(chunks.cumsum(0, dtype=torch.int32), (1, 0))
