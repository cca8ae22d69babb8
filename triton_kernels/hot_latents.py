"""Hot latents: one that is active in more than CHUNK tokens is summed by several programs, CHUNK tokens each.

A latent active in every token would otherwise keep one program busy long after all others are done. The list of active
entries, grouped by latent, is cut at the multiples of CHUNK: window w is its entries w * CHUNK to (w + 1) * CHUNK. The
part of a hot latent that begins a window is summed here, into row w of the chunk buffers; what lies before its first
window is left to the update, which adds the rows in order. So no kernel needs to know where the chunks of a latent
begin, and the sums depend on the code alone: they have the same bits every time.
"""

import triton
import triton.language as tl

from saefast.triton_kernels.numbers import L1
from saefast.triton_kernels.rows import store_row
from saefast.triton_kernels.storage import load_weight
from saefast.triton_kernels.update_kernels import accumulate

AT_ONCE = tl.constexpr(32)  # windows that a program looks at together: most are of latents that are not hot


@triton.jit
def chunk_kernel(
    # [F, D_OUT]
    W_dec_ptr,
    W_dec_low_ptr,
    # [B, D], [B, D_OUT]
    centred_ptr,
    error_ptr,
    acts_ptr,  # [N]
    grad_pre_ptr,  # [N], of Given, or None
    indices_ptr,  # [N]
    # of group_by_latent
    offsets_ptr,
    pairs_ptr,
    tokens_ptr,
    # [C, D], [C, D_OUT], [C] out: rows of windows that begin with a hot latent
    chunk_enc_ptr,
    chunk_dec_ptr,
    chunk_b_ptr,
    grad_scale_ptr,
    numbers_ptr,
    F,
    C,  # windows
    P,
    B,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
    R: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program p takes the windows p, p + P, ...: those of one latent are spread."""
    total = tl.load(offsets_ptr + F)
    scale, l1 = tl.load(grad_scale_ptr), tl.load(numbers_ptr + L1)
    for start in range(tl.program_id(0), C, P * AT_ONCE):
        windows = start + P * tl.arange(0, AT_ONCE)
        used = (windows < C) & (windows < tl.cdiv(total, CHUNK))
        pairs = tl.load(pairs_ptr + windows.to(tl.int64) * CHUNK, mask=used, other=0)
        latents = tl.load(indices_ptr + pairs, mask=used, other=0)
        ends = tl.load(offsets_ptr + latents + 1, mask=used, other=0)
        hot = used & (ends - tl.load(offsets_ptr + latents, mask=used, other=0) > CHUNK)
        window = start - 1
        for _ in range(tl.sum(hot.to(tl.int32))):
            window = tl.min(tl.where(hot & (windows > window), windows, C))
            here = windows == window
            latent, end = tl.sum(tl.where(here, latents, 0)), tl.sum(tl.where(here, ends, 0))
            begin = window * CHUNK
            W_dec = ()
            if grad_pre_ptr is None:
                W_dec = load_weight((W_dec_ptr, W_dec_low_ptr), latent.to(tl.int64), D_OUT, PIECES_OUT)
            grad_enc, grad_dec, grad_b = accumulate(
                W_dec,
                begin,
                tl.minimum(begin + CHUNK, end),
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
                STAGES,
            )
            row = window.to(tl.int64)
            store_row(chunk_enc_ptr, row * D, grad_enc, D, PIECES, READ_SOON=True)
            store_row(chunk_dec_ptr, row * D_OUT, grad_dec, D_OUT, PIECES_OUT, READ_SOON=True)
            tl.store(chunk_b_ptr + window, grad_b)
