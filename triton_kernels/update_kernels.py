"""The kernels of `saefast.triton_kernels.update` in which a program holds whole rows: gradients, and Adam on them."""

import triton
import triton.language as tl

from saefast.triton_kernels.adam_kernels import adam_bias, adam_row
from saefast.triton_kernels.numbers import BIAS_NORM, L1, LR_BIAS, TIED, UNIT
from saefast.triton_kernels.rows import (
    add_rows,
    add_scaled,
    dot,
    gather_rows,
    load_row,
    row_dots,
    store_row,
    zeros,
)
from saefast.triton_kernels.storage import load_weight


@triton.jit
def accumulate(
    W_dec,
    begin,
    end,
    pairs_ptr,
    tokens_ptr,
    acts_ptr,
    grad_pre_ptr,
    centred_ptr,
    error_ptr,
    grad_scale,
    l1,
    B,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
    R: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Active entries `begin` to `end` of one latent -> its gradients of W_enc, W_dec (rows) and b_enc.

    R entries are added at a time. From three STAGES on, the error and centred of the next STAGES - 2 times R entries are
    on their way into shared memory meanwhile, and further ahead the tokens and pairs that say where they are. With
    `grad_pre_ptr` [N], of Given, W_dec is not needed, and token t is the row t of error and the row t modulo B of
    centred.
    """
    grad_enc, grad_dec, grad_b = zeros(PIECES), zeros(PIECES_OUT), tl.zeros((R,), tl.float32)
    zero = tl.minimum(begin, 0)
    for start in tl.range(begin, end, R, num_stages=STAGES):
        at = start + tl.arange(0, R)
        valid = at < end
        tokens = tl.load(tokens_ptr + at, mask=valid, other=0).to(tl.int64)
        pairs = tl.load(pairs_ptr + at, mask=valid, other=0)
        errors = gather_rows(error_ptr, tokens, valid, zero, D_OUT, PIECES_OUT)
        if grad_pre_ptr is not None:
            tokens = tokens % B
        inputs = gather_rows(centred_ptr, tokens, valid, zero, D, PIECES)
        acts = tl.load(acts_ptr + pairs, mask=valid, other=0.0).to(tl.float32)
        if grad_pre_ptr is not None:
            grad_acts = tl.load(grad_pre_ptr + pairs, mask=valid, other=0.0).to(tl.float32)
        else:
            grad_acts = tl.where(valid, grad_scale * row_dots(errors, W_dec) + l1, 0.0)
        grad_dec = add_rows(grad_dec, grad_scale * acts, errors)
        grad_enc = add_rows(grad_enc, grad_acts, inputs)
        grad_b += grad_acts
    return grad_enc, grad_dec, tl.sum(grad_b)


@triton.jit
def add_gathered(
    enc,
    dec,
    enc_ptr,
    dec_ptr,
    rows,
    valid,
    zero,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
):
    """Two rows, each plus the sum of some rows of a matrix."""
    ones, rows = valid.to(tl.float32), rows.to(tl.int64)
    enc = add_rows(enc, ones, gather_rows(enc_ptr, rows, valid, zero, D, PIECES))
    return enc, add_rows(dec, ones, gather_rows(dec_ptr, rows, valid, zero, D_OUT, PIECES_OUT))


@triton.jit
def add_pull(grad_dec, pull_ptr, W_dec, D: tl.constexpr, PIECES: tl.constexpr, L: tl.constexpr):
    """grad_dec + pull * W_dec, pull [L] having one number for each of L equal parts of a row."""
    out = ()
    for i in tl.static_range(len(PIECES)):
        if L == 1:
            pull = tl.load(pull_ptr)
        else:
            d = PIECES[i][0] + tl.arange(0, PIECES[i][1])
            pull = tl.load(pull_ptr + d // (D // L), mask=d < D, other=0.0)
        out += (grad_dec[i] + pull * W_dec[i],)
    return out


@triton.jit
def add_to_row(ptr, offset, scale, row, D: tl.constexpr, PIECES: tl.constexpr):
    store_row(
        ptr, offset, add_scaled(load_row(ptr, offset, D, PIECES), scale, row), D, PIECES, READ_SOON=True
    )


@triton.jit
def sum_errors(
    error_ptr, first, P, B, zero, D: tl.constexpr, PIECES: tl.constexpr, R: tl.constexpr, STAGES: tl.constexpr
):
    """The sum of the rows first, first + P, first + 2 P, ... of the first B of error."""
    total = zeros(PIECES)
    for start in tl.range(first, B, P * R, num_stages=STAGES):
        rows = start + P * tl.arange(0, R)
        valid = rows < B
        total = add_rows(
            total, valid.to(tl.float32), gather_rows(error_ptr, rows.to(tl.int64), valid, zero, D, PIECES)
        )
    return total


@triton.jit
def _update_kernel(
    # W_enc: `storage.pointers`
    enc_weight,
    enc_low,
    enc_shadow,
    enc_m,
    enc_v,
    enc_scales,
    # W_dec
    dec_weight,
    dec_low,
    dec_shadow,
    dec_m,
    dec_v,
    dec_scales,
    # [F]
    b_enc_ptr,
    b_enc_m,
    b_enc_v,
    # out; None: Adam at once
    grad_W_enc_ptr,
    grad_b_enc_ptr,
    grad_W_dec_ptr,
    # [B, D], [B, D_OUT]; with Given error may have several times B rows
    centred_ptr,
    error_ptr,
    acts_ptr,  # [N]
    # of group_by_latent
    offsets_ptr,
    pairs_ptr,
    tokens_ptr,
    # [C, D], [C, D_OUT], [C]: sums of windows of hot latents, see `hot_latents`
    chunk_enc_ptr,
    chunk_dec_ptr,
    chunk_b_ptr,
    # of Aux, or None
    slots_ptr,
    aux_enc_ptr,
    aux_b_ptr,
    aux_dec_ptr,
    # of Given, or None
    grad_pre_ptr,
    bias_ptr,
    push_ptr,
    push_row_ptr,
    pull_ptr,
    grad_scale_ptr,
    numbers_ptr,
    step_ptr,
    b_dec_ptr,  # [P, D_OUT] out: the part of a program in the gradient of b_dec
    squares_ptr,  # [P] out: squared norm of its gradients
    F,
    P,
    B,
    L: tl.constexpr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
    R: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,  # a latent with more active entries is hot
):
    enc = (enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales)
    dec = (dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales)
    scale, l1 = tl.load(grad_scale_ptr), tl.load(numbers_ptr + L1)
    unit = None  # without Given: a number more to keep, and the fullest kernels spill
    if grad_pre_ptr is not None:
        unit = tl.load(numbers_ptr + UNIT)
    n_rows = F
    if grad_W_enc_ptr is None:
        n_rows = tl.where(tl.abs(scale) >= 0, F, 0)  # not with NaN, which changes nothing

    zero = tl.minimum(tl.program_id(0), 0)
    errors = sum_errors(error_ptr, tl.program_id(0), P, B, zero, D_OUT, PIECES_OUT, R, STAGES)
    scaled = add_scaled(zeros(PIECES_OUT), scale, errors)
    store_row(b_dec_ptr, tl.program_id(0).to(tl.int64) * D_OUT, scaled, D_OUT, PIECES_OUT, READ_SOON=True)
    squares = 0.0
    for start in range(0, n_rows - tl.program_id(0), P):
        j = (tl.program_id(0) + start).to(tl.int64)
        begin, end = tl.load(offsets_ptr + j), tl.load(offsets_ptr + j + 1)
        W_dec = ()
        if grad_pre_ptr is None:
            W_dec = load_weight(dec, j, D_OUT, PIECES_OUT)
        hot, window = end - begin > CHUNK, tl.cdiv(begin, CHUNK)
        grad_enc, grad_dec, grad_b = accumulate(
            W_dec,
            begin,
            tl.where(hot, window * CHUNK, end),
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
        zero = tl.minimum(begin, 0)
        if hot:
            for i in tl.range(0, tl.cdiv(end, CHUNK) - window, num_stages=STAGES):
                at = window.to(tl.int64) + i
                grad_enc = add_scaled(grad_enc, 1.0, load_row(chunk_enc_ptr, at * D, D, PIECES, zero))
                grad_dec = add_scaled(
                    grad_dec, 1.0, load_row(chunk_dec_ptr, at * D_OUT, D_OUT, PIECES_OUT, zero)
                )
                grad_b += tl.load(chunk_b_ptr + at)
        if push_ptr is not None:
            W_dec = load_weight(dec, j, D_OUT, PIECES_OUT)  # not earlier: registers
            push = tl.load(push_ptr + j + tl.arange(0, 1))
            first = tl.zeros((1,), tl.int64)
            push_row = gather_rows(push_row_ptr, first, push != 0, zero, D, PIECES)
            grad_enc = add_rows(grad_enc, push, push_row)
            grad_dec = add_pull(grad_dec, pull_ptr + j * L, W_dec, D_OUT, PIECES_OUT, L)
            grad_b += tl.sum(push) * B
        to_b_dec = 0.0
        if D == D_OUT:
            to_b_dec = tl.where(tl.load(numbers_ptr + TIED) != 0, -grad_b, 0.0)
        if bias_ptr is not None:
            grad_b += tl.load(bias_ptr + j)
        if slots_ptr is not None:
            slot = tl.load(slots_ptr + j + tl.arange(0, 1))
            grad_enc, grad_dec = add_gathered(
                grad_enc,
                grad_dec,
                aux_enc_ptr,
                aux_dec_ptr,
                slot,
                slot >= 0,
                zero,
                D,
                PIECES,
                D_OUT,
                PIECES_OUT,
            )
            grad_b += tl.sum(tl.load(aux_b_ptr + slot, mask=slot >= 0, other=0.0))
        row = tl.program_id(0).to(tl.int64) * D + zero
        along = dot(grad_dec, W_dec)
        if unit is not None:
            along = tl.where(unit != 0, along, 0.0)
        grad_dec = add_scaled(grad_dec, -along, W_dec)
        bias = tl.load(numbers_ptr + BIAS_NORM) * grad_b
        squares += dot(grad_enc, grad_enc) + dot(grad_dec, grad_dec) + bias * bias
        if grad_W_enc_ptr is not None:
            store_row(grad_W_enc_ptr, j * D, grad_enc, D, PIECES)
            store_row(grad_W_dec_ptr, j * D_OUT, grad_dec, D_OUT, PIECES_OUT)
            tl.store(grad_b_enc_ptr + j, grad_b)
            if to_b_dec != 0:
                add_to_row(b_dec_ptr, row, to_b_dec, load_weight(enc, j, D, PIECES), D, PIECES)
        else:
            adam_row(dec, j, W_dec, grad_dec, 1.0, unit, numbers_ptr, step_ptr, D_OUT, PIECES_OUT, 1)
            W_enc = load_weight(enc, j, D, PIECES)
            if to_b_dec != 0:
                add_to_row(b_dec_ptr, row, to_b_dec, W_enc, D, PIECES)
            adam_row(enc, j, W_enc, grad_enc, 1.0, unit, numbers_ptr, step_ptr, D, PIECES, 0)
            adam_bias(b_enc_ptr, b_enc_m, b_enc_v, j, True, grad_b, numbers_ptr, LR_BIAS)
    tl.store(squares_ptr + tl.program_id(0), squares)
