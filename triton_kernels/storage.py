"""How kernels read and write a weight matrix and its Adam moments in the formats of `saefast.storage`.

The format is known from the pointers: `low` is there in the split forms only (int16: all of an fp32; int8: 24 bits of
it), `scales` with int8 moments only, and `shadow` where the copy for the products is not the weight itself. Arithmetic is
fp32. Spec: `saefast.storage`.
"""

from typing import Protocol

import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.rows import largest, load_row, store_row


class Matrix(Protocol):
    """`saefast.storage.Matrix`."""

    weight: Tensor
    low: Tensor | None
    shadow: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None


class Weights(Protocol):
    """`saefast.storage.Weights`."""

    enc: Matrix
    dec: Matrix
    b_enc: tuple[Tensor, Tensor, Tensor]
    b_dec: tuple[Tensor, Tensor, Tensor]


def pointers(matrix: Matrix) -> tuple[Tensor | None, ...]:
    """-> weight, low, shadow, exp_avg, exp_avg_sq, scales as the kernels take them."""
    shadow = None if matrix.shadow is matrix.weight else matrix.shadow
    return matrix.weight, matrix.low, shadow, matrix.exp_avg, matrix.exp_avg_sq, matrix.scales


def state_bytes(matrix: Matrix) -> int:
    """Bytes that a step reads and writes for one parameter of `matrix`, without gradients and `scales`."""
    kept = (matrix.weight, matrix.low, matrix.exp_avg, matrix.exp_avg_sq)
    copy = 0 if matrix.shadow is matrix.weight else matrix.shadow.element_size()
    return 2 * sum(t.element_size() for t in kept if t is not None) + copy


@triton.jit
def mix(bits):
    """A hash of uint32: Wellons' lowbias32."""
    bits = bits ^ (bits >> 16)
    bits = bits * 0x7FEB352D
    bits = bits ^ (bits >> 15)
    bits = bits * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def row_seed(row, step, SALT: tl.constexpr):
    """Row and step int64. SALT: 0 for W_enc, 1 for W_dec."""
    return mix(row.to(tl.uint32) ^ mix((2 * step + SALT).to(tl.uint32)))


@triton.jit
def random_bits(seed, START: tl.constexpr, WIDTH: tl.constexpr):
    """uint32 for columns START to START + WIDTH, a power of two that divides START.

    The lower 16 bits round the weight (to 24 bits: the upper 8 of them), the upper 16 exp_avg_sq; exp_avg takes the
    upper 16 of their hash.
    """
    return mix(tl.arange(0, WIDTH).to(tl.uint32) ^ (seed ^ START))


@triton.jit
def to_bf16_stochastic(value, bits):
    rounded = (value.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)) & 0xFFFF0000
    return rounded.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def split_fp32(value):
    bits = value.to(tl.int32, bitcast=True)
    high = (bits + 0x8000) >> 16
    return high.to(tl.int16).to(tl.bfloat16, bitcast=True), (bits - (high << 16)).to(tl.int16)


@triton.jit
def split_24(value, bits):
    """Bits 8 to 15 of `bits` are used."""
    nan = value != value  # noqa: PLR0124  (with lower bits of 0: no carry must make Inf of it)
    kept = tl.where(nan, 0x7FC00000, value.to(tl.int32, bitcast=True))
    kept = (kept + ((bits >> 8) & 0xFF).to(tl.int32)) & -0x100
    high = (kept + 0x8000) >> 16
    return high.to(tl.int16).to(tl.bfloat16, bitcast=True), ((kept - (high << 16)) >> 8).to(tl.int8)


@triton.jit
def join_fp32(high, low):
    below = low.to(tl.int32) << (8 if low.dtype == tl.int8 else 0)
    return ((high.to(tl.int16, bitcast=True).to(tl.int32) << 16) + below).to(tl.float32, bitcast=True)


@triton.jit
def to_codes(magnitude, scale, LEVELS: tl.constexpr, bits):
    """magnitude >= 0 -> codes 0..LEVELS (fp32), magnitude ~ scale * (code / LEVELS)^2. bits: the upper 16 are used."""
    inverse = 1 / tl.maximum(scale, 1.1754943508222875e-38)  # times LEVELS^2 it can be infinite
    ratio = magnitude * inverse * (LEVELS * LEVELS)
    below = tl.minimum(tl.floor(tl.sqrt(ratio)), LEVELS - 1)
    uniform = (bits >> 16).to(tl.float32) * (1 / 65536)
    return below + (uniform * (2 * below + 1) < ratio - below * below).to(tl.float32)


@triton.jit
def load_weight(matrix, j, D: tl.constexpr, PIECES: tl.constexpr):
    """Row j (int64) in fp32."""
    row = ()
    high = load_row(matrix[0], j * D, D, PIECES)
    if matrix[1] is not None:
        low = load_row(matrix[1], j * D, D, PIECES)
        for i in tl.static_range(len(PIECES)):
            row += (join_fp32(high[i], low[i]),)
    else:
        for i in tl.static_range(len(PIECES)):
            row += (high[i].to(tl.float32),)
    return row


@triton.jit
def store_weight(matrix, j, row, seed, D: tl.constexpr, PIECES: tl.constexpr):
    kept, low = (), ()
    for i in tl.static_range(len(PIECES)):
        if matrix[1] is not None:
            if matrix[1].dtype.element_ty == tl.int8:
                parts = split_24(row[i], random_bits(seed, PIECES[i][0], PIECES[i][1]))
            else:
                parts = split_fp32(row[i])
            kept += (parts[0],)
            low += (parts[1],)
        elif matrix[0].dtype.element_ty == tl.bfloat16:
            kept += (to_bf16_stochastic(row[i], random_bits(seed, PIECES[i][0], PIECES[i][1])),)
        else:
            kept += (row[i],)
    store_row(matrix[0], j * D, kept, D, PIECES)
    if matrix[1] is not None:
        store_row(matrix[1], j * D, low, D, PIECES)
    if matrix[2] is not None:
        store_row(matrix[2], j * D, kept, D, PIECES)


@triton.jit
def decode_moments(m, v, scale_m, scale_v):
    """Codes -> fp32."""
    code, root = m.to(tl.float32), v.to(tl.float32)
    root = root * root * (scale_v / 65025)
    return code * tl.abs(code) * (scale_m / 16129), root * root


@triton.jit
def load_moments(matrix, j, D: tl.constexpr, PIECES: tl.constexpr):
    """exp_avg and exp_avg_sq of row j in fp32."""
    m_row, v_row = (), ()
    kept_m, kept_v = load_row(matrix[3], j * D, D, PIECES), load_row(matrix[4], j * D, D, PIECES)
    if matrix[5] is not None:
        scale_m, scale_v = tl.load(matrix[5] + 2 * j), tl.load(matrix[5] + 2 * j + 1)
        for i in tl.static_range(len(PIECES)):
            decoded = decode_moments(kept_m[i], kept_v[i], scale_m, scale_v)
            m_row += (decoded[0],)
            v_row += (decoded[1],)
    else:
        for i in tl.static_range(len(PIECES)):
            m_row += (kept_m[i].to(tl.float32),)
            v_row += (kept_v[i].to(tl.float32),)
    return m_row, v_row


@triton.jit
def encode_moments(m, v, scale_m, scale_v, bits):
    """fp32 -> int8 codes of exp_avg, uint8 codes of exp_avg_sq. A positive exp_avg_sq does not become 0."""
    code_m = to_codes(tl.abs(m), scale_m, 127, mix(bits))
    code_v = tl.maximum(to_codes(tl.sqrt(v), scale_v, 255, bits), (v > 0).to(tl.float32))
    return tl.where(m < 0, -code_m, code_m).to(tl.int8), code_v.to(tl.uint8)


@triton.jit
def store_moments(matrix, j, m_row, v_row, seed, D: tl.constexpr, PIECES: tl.constexpr):
    kept_m, kept_v = m_row, v_row
    if matrix[5] is not None:
        scale_m, scale_v = largest(m_row), tl.sqrt(largest(v_row))
        kept_m, kept_v = (), ()
        for i in tl.static_range(len(PIECES)):
            bits = random_bits(seed, PIECES[i][0], PIECES[i][1])
            codes = encode_moments(m_row[i], v_row[i], scale_m, scale_v, bits)
            kept_m += (codes[0],)
            kept_v += (codes[1],)
        tl.store(matrix[5] + 2 * j, scale_m)
        tl.store(matrix[5] + 2 * j + 1, scale_v)
    elif matrix[4].dtype.element_ty == tl.bfloat16:
        kept_v = ()
        for i in tl.static_range(len(PIECES)):
            bits = random_bits(seed, PIECES[i][0], PIECES[i][1])
            kept_v += (to_bf16_stochastic(v_row[i], bits >> 16),)
    store_row(matrix[3], j * D, kept_m, D, PIECES)
    store_row(matrix[4], j * D, kept_v, D, PIECES)
