"""The kernels of `saefast.triton_kernels.update` in which a program holds whole rows."""

import triton
import triton.language as tl

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
from saefast.triton_kernels.storage import load_moments, load_weight, row_seed, store_moments, store_weight


@triton.jit
def accumulate(
    W_dec, begin, end, pairs_ptr, tokens_ptr, acts_ptr, centred_ptr, error_ptr, grad_scale, l1,
    D: tl.constexpr, PIECES: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Active entries `begin` to `end` of one latent -> its gradients of W_enc, W_dec (rows) and b_enc.

    R entries are in flight at a time.
    """
    grad_enc, grad_dec, grad_b = zeros(PIECES), zeros(PIECES), tl.zeros((R,), tl.float32)
    zero = tl.minimum(begin, 0)
    for start in range(begin, end, R):
        at = start + tl.arange(0, R)
        valid = at < end
        tokens = tl.load(tokens_ptr + at, mask=valid, other=0).to(tl.int64)
        pairs = tl.load(pairs_ptr + at, mask=valid, other=0)
        errors = gather_rows(error_ptr, tokens, valid, zero, D, PIECES)
        inputs = gather_rows(centred_ptr, tokens, valid, zero, D, PIECES)
        acts = tl.load(acts_ptr + pairs, mask=valid, other=0.0).to(tl.float32)
        grad_acts = tl.where(valid, grad_scale * row_dots(errors, W_dec) + l1, 0.0)
        grad_dec = add_rows(grad_dec, grad_scale * acts, errors)
        grad_enc = add_rows(grad_enc, grad_acts, inputs)
        grad_b += grad_acts
    return grad_enc, grad_dec, tl.sum(grad_b)


@triton.jit
def load_numbers(numbers_ptr, BIAS: tl.constexpr):
    """What `adam` needs of `saefast.reference_update.Numbers`: lr, eps, 1 - beta1, beta2, 1 - beta2, corrections."""
    return (
        tl.load(numbers_ptr + BIAS), tl.load(numbers_ptr + 2 + BIAS), tl.load(numbers_ptr + 5),
        tl.load(numbers_ptr + 6), tl.load(numbers_ptr + 7), tl.load(numbers_ptr + 8), tl.load(numbers_ptr + 9),
    )  # fmt: skip


@triton.jit
def adam(value, grad, m, v, n):
    """-> the new value, m and v."""
    m += n[2] * (grad - m)
    v = n[3] * v + n[4] * grad * grad
    return value - n[0] * n[5] * m / (tl.sqrt(v * n[6]) + n[1]), m, v


@triton.jit
def adam_row(
    matrix,
    j,
    value,
    grad,
    factor,
    numbers_ptr,
    step_ptr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    SALT: tl.constexpr,
):
    """Adam on row j with the gradient times `factor`, unit norm if it is W_dec's (SALT 1), and store."""
    moments = load_moments(matrix, j, D, PIECES)
    n = load_numbers(numbers_ptr, 0)
    row, m, v = (), (), ()
    for i in tl.static_range(len(PIECES)):
        new = adam(value[i], grad[i] * factor, moments[0][i], moments[1][i], n)
        if PIECES[i][0] + PIECES[i][1] > D:  # with an eps of 0 the padding is 0 / 0
            row += (tl.where(tl.arange(0, PIECES[i][1]) < D - PIECES[i][0], new[0], 0.0),)
        else:
            row += (new[0],)
        m += (new[1],)
        v += (new[2],)
    seed = row_seed(j, tl.load(step_ptr), SALT)
    store_moments(matrix, j, m, v, seed, D, PIECES)
    if SALT == 1:
        inverse = 1 / tl.maximum(tl.sqrt(dot(row, row)), 1.1754943508222875e-38)
        unit = ()
        for i in tl.static_range(len(PIECES)):
            unit += (row[i] * inverse,)
        row = unit
    store_weight(matrix, j, row, seed, D, PIECES)


@triton.jit
def adam_bias(value_ptr, m_ptr, v_ptr, at, mask, grad, numbers_ptr):
    """Adam on one element of a bias, or on a block of them."""
    value = tl.load(value_ptr + at, mask=mask, other=0.0)
    m, v = tl.load(m_ptr + at, mask=mask, other=0.0), tl.load(v_ptr + at, mask=mask, other=0.0)
    new = adam(value, grad, m, v, load_numbers(numbers_ptr, 1))
    tl.store(value_ptr + at, new[0], mask=mask)
    tl.store(m_ptr + at, new[1], mask=mask)
    tl.store(v_ptr + at, new[2], mask=mask)


@triton.jit
def add_gathered(enc, dec, enc_ptr, dec_ptr, rows, valid, zero, D: tl.constexpr, PIECES: tl.constexpr):
    """Two rows, each plus the sum of some rows of a matrix."""
    ones, rows = valid.to(tl.float32), rows.to(tl.int64)
    enc = add_rows(enc, ones, gather_rows(enc_ptr, rows, valid, zero, D, PIECES))
    return enc, add_rows(dec, ones, gather_rows(dec_ptr, rows, valid, zero, D, PIECES))


@triton.jit
def add_to_row(ptr, offset, scale, row, D: tl.constexpr, PIECES: tl.constexpr):
    store_row(ptr, offset, add_scaled(load_row(ptr, offset, D, PIECES), scale, row), D, PIECES)


@triton.jit
def _update_kernel(
    enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales,  # W_enc: `storage.pointers`
    dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales,  # W_dec
    b_enc_ptr, b_enc_m, b_enc_v,  # [F]
    grad_W_enc_ptr, grad_b_enc_ptr, grad_W_dec_ptr,  # out; None: Adam at once
    centred_ptr, error_ptr,  # [B, D]
    acts_ptr,  # [N]
    offsets_ptr, pairs_ptr, tokens_ptr,  # of group_by_latent
    chunk_offsets_ptr,  # [F + 1]: the chunks of hot latents
    chunk_enc_ptr, chunk_dec_ptr, chunk_b_ptr,  # [C, D], [C, D], [C]: their sums
    slots_ptr, aux_enc_ptr, aux_b_ptr, aux_dec_ptr,  # of Aux, or None
    grad_scale_ptr, numbers_ptr, step_ptr,
    b_dec_ptr,  # [P, D] out: sum over the rows of a program of grad_b_enc * W_enc
    squares_ptr,  # [P] out: squared norm of its gradients
    F,
    P,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    R: tl.constexpr,
    CHUNK: tl.constexpr,  # a latent with more active entries comes in chunks
):  # fmt: skip
    enc = (enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales)
    dec = (dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales)
    pid = tl.program_id(0).to(tl.int64)
    scale, l1 = tl.load(grad_scale_ptr), tl.load(numbers_ptr + 10)
    n_rows = F
    if grad_W_enc_ptr is None:
        n_rows = tl.where(tl.abs(scale) >= 0, F, 0)  # not with NaN, which changes nothing

    store_row(b_dec_ptr, pid * D, zeros(PIECES), D, PIECES)
    squares = 0.0
    for start in range(0, n_rows - tl.program_id(0), P):
        j = pid + start
        begin, end = tl.load(offsets_ptr + j), tl.load(offsets_ptr + j + 1)
        W_dec = load_weight(dec, j, D, PIECES)
        last = tl.where(end - begin <= CHUNK, end, begin)
        grad_enc, grad_dec, grad_b = accumulate(
            W_dec,
            begin,
            last,
            pairs_ptr,
            tokens_ptr,
            acts_ptr,
            centred_ptr,
            error_ptr,
            scale,
            l1,
            D,
            PIECES,
            R,
        )
        zero, last = tl.minimum(begin, 0), tl.load(chunk_offsets_ptr + j + 1)
        for i in range(tl.load(chunk_offsets_ptr + j), last, R):
            chunks = i + tl.arange(0, R)
            valid = chunks < last
            grad_enc, grad_dec = add_gathered(
                grad_enc, grad_dec, chunk_enc_ptr, chunk_dec_ptr, chunks, valid, zero, D, PIECES
            )
            grad_b += tl.sum(tl.load(chunk_b_ptr + chunks, mask=valid, other=0.0))
        own_grad_b = grad_b
        if slots_ptr is not None:
            slot = tl.load(slots_ptr + j + tl.arange(0, 1))
            grad_enc, grad_dec = add_gathered(
                grad_enc, grad_dec, aux_enc_ptr, aux_dec_ptr, slot, slot >= 0, zero, D, PIECES
            )
            grad_b += tl.sum(tl.load(aux_b_ptr + slot, mask=slot >= 0, other=0.0))
        grad_dec = add_scaled(grad_dec, -dot(grad_dec, W_dec), W_dec)
        bias = tl.load(numbers_ptr + 11) * grad_b
        squares += dot(grad_enc, grad_enc) + dot(grad_dec, grad_dec) + bias * bias
        if grad_W_enc_ptr is not None:
            store_row(grad_W_enc_ptr, j * D, grad_enc, D, PIECES)
            store_row(grad_W_dec_ptr, j * D, grad_dec, D, PIECES)
            tl.store(grad_b_enc_ptr + j, grad_b)
            add_to_row(b_dec_ptr, pid * D, own_grad_b, load_weight(enc, j, D, PIECES), D, PIECES)
        else:
            adam_row(dec, j, W_dec, grad_dec, 1.0, numbers_ptr, step_ptr, D, PIECES, 1)
            W_enc = load_weight(enc, j, D, PIECES)
            add_to_row(b_dec_ptr, pid * D, own_grad_b, W_enc, D, PIECES)
            adam_row(enc, j, W_enc, grad_enc, 1.0, numbers_ptr, step_ptr, D, PIECES, 0)
            adam_bias(b_enc_ptr, b_enc_m, b_enc_v, j, True, grad_b, numbers_ptr)
    tl.store(squares_ptr + pid, squares)


@triton.jit
def _adam_rows_kernel(
    enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales,  # W_enc: `storage.pointers`
    dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales,  # W_dec
    b_enc_ptr, b_enc_m, b_enc_v,  # [F]
    b_dec_ptr, b_dec_m, b_dec_v,  # [D]
    grad_W_enc_ptr, grad_b_enc_ptr, grad_W_dec_ptr, grad_b_dec_ptr,
    factor_ptr, numbers_ptr, step_ptr,
    F,
    P,
    D: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    enc = (enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales)
    dec = (dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales)
    pid, factor = tl.program_id(0).to(tl.int64), tl.load(factor_ptr)
    n_rows = tl.where(tl.abs(factor) >= 0, F, 0)  # not with NaN, which changes nothing
    for start in range(0, n_rows - tl.program_id(0), P):
        j = pid + start
        W_dec, grad_dec = load_weight(dec, j, D, PIECES), load_row(grad_W_dec_ptr, j * D, D, PIECES)
        adam_row(dec, j, W_dec, grad_dec, factor, numbers_ptr, step_ptr, D, PIECES, 1)
        W_enc, grad_enc = load_weight(enc, j, D, PIECES), load_row(grad_W_enc_ptr, j * D, D, PIECES)
        adam_row(enc, j, W_enc, grad_enc, factor, numbers_ptr, step_ptr, D, PIECES, 0)
        adam_bias(b_enc_ptr, b_enc_m, b_enc_v, j, True, tl.load(grad_b_enc_ptr + j) * factor, numbers_ptr)
    if tl.program_id(0) == 0:
        n_updated = tl.where(tl.abs(factor) >= 0, D, 0)
        for i in tl.static_range(len(PIECES)):
            d = PIECES[i][0] + tl.arange(0, PIECES[i][1])
            grad = tl.load(grad_b_dec_ptr + d, mask=d < n_updated, other=0.0) * factor
            adam_bias(b_dec_ptr, b_dec_m, b_dec_v, d, d < n_updated, grad, numbers_ptr)


@triton.jit
def _b_dec_kernel(
    b_dec_ptr, b_dec_m, b_dec_v,  # [D], or None: no Adam
    errors_ptr,  # [D]: sum of the rows of error
    partial_ptr,  # [D]: sum of grad_b_enc * W_enc
    aux_ptr,  # [D] or None
    squares_ptr,  # [P]
    grad_ptr, squared_ptr,  # [D], [] out
    grad_scale_ptr, numbers_ptr,
    P,
    D,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of b_dec, Adam on it, and the squared norm of everything."""
    scale, bias_norm = tl.load(grad_scale_ptr), tl.load(numbers_ptr + 11)
    n_updated = tl.where(tl.abs(scale) >= 0, D, 0)  # not with NaN, which changes nothing
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        squares += tl.load(squares_ptr + i, mask=i < P, other=0.0)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        in_row = d < D
        grad = scale * tl.load(errors_ptr + d, mask=in_row, other=0.0)
        grad -= tl.load(partial_ptr + d, mask=in_row, other=0.0)
        if aux_ptr is not None:
            grad += tl.load(aux_ptr + d, mask=in_row, other=0.0)
        tl.store(grad_ptr + d, grad, mask=in_row)
        squares += bias_norm * grad * (bias_norm * grad)
        if b_dec_ptr is not None:
            adam_bias(b_dec_ptr, b_dec_m, b_dec_v, d, d < n_updated, grad, numbers_ptr)
    tl.store(squared_ptr, tl.sum(squares))
