"""Floating-point numbers as unsigned integers in the same order, for radix selection and packed comparisons.

Zero is one key whatever its sign, and NaN has the key of +inf: a broken value is selected, not hidden. No number has
the key 0, so it is free for padding.
"""

import triton
import triton.language as tl


@triton.jit
def to_key(x):
    """fp16, bf16 or fp32 as loaded -> uint32; of 16-bit formats only the lower 16 bits are used."""
    BITS: tl.constexpr = x.dtype.primitive_bitwidth
    SIGN: tl.constexpr = 1 << (BITS - 1)  # the key of zero
    INFINITY: tl.constexpr = 0x7F800000 if BITS == 32 else 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
    bits = x.to(tl.uint32, bitcast=True) if BITS == 32 else x.to(tl.uint16, bitcast=True).to(tl.uint32)
    magnitude = bits & (SIGN - 1)
    is_negative = (bits >= SIGN) & (magnitude <= INFINITY)
    return tl.where(is_negative, SIGN - magnitude, SIGN + tl.minimum(magnitude, INFINITY))


@triton.jit
def from_key(key, dtype: tl.constexpr):
    """uint32 of `to_key` -> the number, in `dtype`."""
    BITS: tl.constexpr = dtype.primitive_bitwidth
    SIGN: tl.constexpr = 1 << (BITS - 1)
    bits = tl.where(key < SIGN, SIGN | (SIGN - key), key - SIGN)
    return bits.to(dtype, bitcast=True) if BITS == 32 else bits.to(tl.uint16).to(dtype, bitcast=True)
