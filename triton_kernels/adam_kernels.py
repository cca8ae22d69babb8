"""Adam on whole rows and on biases, for `saefast.triton_kernels.update`."""

import triton
import triton.language as tl

from saefast.triton_kernels.numbers import (
    BETA1_REST,
    BETA2,
    BETA2_REST,
    BIAS_NORM,
    CORRECTION1,
    CORRECTION2,
    EPS,
    EPS_BIAS,
    LR,
    LR_B_DEC,
    LR_BIAS,
    LR_DEC,
    UNIT,
)
from saefast.triton_kernels.rows import dot, load_row
from saefast.triton_kernels.storage import load_moments, load_weight, row_seed, store_moments, store_weight


@triton.jit
def load_numbers(numbers_ptr, RATE: tl.constexpr, EPSILON: tl.constexpr):
    """What `adam` needs of `saefast.reference.Numbers`: lr, eps, 1 - beta1, beta2, 1 - beta2, corrections.

    LR and EPS: where the parameter's own are.
    """
    return (
        tl.load(numbers_ptr + RATE),
        tl.load(numbers_ptr + EPSILON),
        tl.load(numbers_ptr + BETA1_REST),
        tl.load(numbers_ptr + BETA2),
        tl.load(numbers_ptr + BETA2_REST),
        tl.load(numbers_ptr + CORRECTION1),
        tl.load(numbers_ptr + CORRECTION2),
    )


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
    unit,
    numbers_ptr,
    step_ptr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    SALT: tl.constexpr,
):
    """Adam on row j with the gradient times `factor`, then unit norm if asked and it is W_dec's (SALT 1); store.

    unit: of the numbers, loaded once per program: loaded here, the fullest kernel spills.
    """
    moments = load_moments(matrix, j, D, PIECES)
    n = load_numbers(numbers_ptr, LR_DEC if SALT else LR, EPS)
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
        if unit is not None:
            inverse = tl.where(unit != 0, inverse, 1.0)
        scaled = ()
        for i in tl.static_range(len(PIECES)):
            scaled += (row[i] * inverse,)
        row = scaled
    store_weight(matrix, j, row, seed, D, PIECES)


@triton.jit
def adam_bias(value_ptr, m_ptr, v_ptr, at, mask, grad, numbers_ptr, RATE: tl.constexpr):
    """Adam on one element of a bias, or on a block of them."""
    value = tl.load(value_ptr + at, mask=mask, other=0.0)
    m, v = tl.load(m_ptr + at, mask=mask, other=0.0), tl.load(v_ptr + at, mask=mask, other=0.0)
    new = adam(value, grad, m, v, load_numbers(numbers_ptr, RATE, EPS_BIAS))
    tl.store(value_ptr + at, new[0], mask=mask)
    tl.store(m_ptr + at, new[1], mask=mask)
    tl.store(v_ptr + at, new[2], mask=mask)


@triton.jit
def _adam_rows_kernel(
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
    # [D_OUT]
    b_dec_ptr,
    b_dec_m,
    b_dec_v,
    grad_W_enc_ptr,
    grad_b_enc_ptr,
    grad_W_dec_ptr,
    grad_b_dec_ptr,
    factor_ptr,
    numbers_ptr,
    step_ptr,
    F,
    P,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    D_OUT: tl.constexpr,
    PIECES_OUT: tl.constexpr,
):
    enc = (enc_weight, enc_low, enc_shadow, enc_m, enc_v, enc_scales)
    dec = (dec_weight, dec_low, dec_shadow, dec_m, dec_v, dec_scales)
    pid, factor, unit = tl.program_id(0).to(tl.int64), tl.load(factor_ptr), tl.load(numbers_ptr + UNIT)
    n_rows = tl.where(tl.abs(factor) >= 0, F, 0)  # not with NaN, which changes nothing
    for start in range(0, n_rows - tl.program_id(0), P):
        j = pid + start
        W_dec = load_weight(dec, j, D_OUT, PIECES_OUT)
        grad_dec = load_row(grad_W_dec_ptr, j * D_OUT, D_OUT, PIECES_OUT)
        adam_row(dec, j, W_dec, grad_dec, factor, unit, numbers_ptr, step_ptr, D_OUT, PIECES_OUT, 1)
        W_enc, grad_enc = load_weight(enc, j, D, PIECES), load_row(grad_W_enc_ptr, j * D, D, PIECES)
        adam_row(enc, j, W_enc, grad_enc, factor, unit, numbers_ptr, step_ptr, D, PIECES, 0)
        adam_bias(
            b_enc_ptr, b_enc_m, b_enc_v, j, True, tl.load(grad_b_enc_ptr + j) * factor, numbers_ptr, LR_BIAS
        )
    if tl.program_id(0) == 0:
        n_updated = tl.where(tl.abs(factor) >= 0, D_OUT, 0)
        for i in tl.static_range(len(PIECES_OUT)):
            d = PIECES_OUT[i][0] + tl.arange(0, PIECES_OUT[i][1])
            grad = tl.load(grad_b_dec_ptr + d, mask=d < n_updated, other=0.0) * factor
            adam_bias(b_dec_ptr, b_dec_m, b_dec_v, d, d < n_updated, grad, numbers_ptr, LR_B_DEC)


@triton.jit
def _b_dec_kernel(
    # [D], or None: no Adam
    b_dec_ptr,
    b_dec_m,
    b_dec_v,
    partial_ptr,  # [P, D]: the gradient is the sum of these rows
    aux_ptr,  # [D], which is added to it, or None
    grad_ptr,  # [D] out
    squares_ptr,  # [P + number of programs]; out: those after the first P
    grad_scale_ptr,
    numbers_ptr,
    P,
    D: tl.constexpr,  # D_OUT of the others
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Gradient of b_dec, Adam on it, and its part of the squared norm, COLS columns in each program."""
    d = tl.program_id(0) * COLS + tl.arange(0, COLS)
    scale, bias_norm = tl.load(grad_scale_ptr), tl.load(numbers_ptr + BIAS_NORM)
    sums = tl.zeros((ROWS, COLS), tl.float32)
    for start in tl.range(0, P, ROWS, num_stages=3):
        p = start + tl.arange(0, ROWS)
        at = p.to(tl.int64)[:, None] * D + d[None, :]
        sums += tl.load(partial_ptr + at, mask=(p < P)[:, None] & (d < D)[None, :], other=0.0)
    grad = tl.sum(sums, axis=0)
    if aux_ptr is not None:
        grad += tl.load(aux_ptr + d, mask=d < D, other=0.0)
    tl.store(grad_ptr + d, grad, mask=d < D)
    tl.store(squares_ptr + P + tl.program_id(0), tl.sum(bias_norm * grad * (bias_norm * grad)))
    if b_dec_ptr is not None:
        n_updated = tl.where(tl.abs(scale) >= 0, D, 0)  # not with NaN, which changes nothing
        adam_bias(b_dec_ptr, b_dec_m, b_dec_v, d, d < n_updated, grad, numbers_ptr, LR_B_DEC)
