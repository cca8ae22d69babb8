"""How a weight matrix and its Adam moments are kept in memory, and the random bits for rounding them.

Bytes per parameter for the weight, its copy for the products, and both moments, if products are in 16 bits:

    param_dtype   fp32 4+2    split 2+2 (the high half is the copy)    split24 2+1 (24 bits, the last one stochastic)
                  bf16 2 (stochastic rounding, no master)
    state_dtype   fp32 4+4    bf16 2+2                                 int8 1+1 and 8 bytes per row

So fp32 with fp32 moments takes 14 bytes, split with int8 6, split24 with int8 5, bf16 with int8 4. All arithmetic is fp32;
only what is kept between two steps is rounded. This module is the specification of `saefast.triton_kernels.storage`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
NAN = 0x7FC00000  # the bits of a quiet NaN in fp32
NEAREST = 0x8000  # as the random bits of a weight: it is rounded to the nearest
LOW = {"split": torch.int16, "split24": torch.int8}  # dtype of `Matrix.low` by param_dtype
FP32: dict[str, Any] = {
    "dtype": torch.float32,
    "device": "cpu",
}  # of a new tensor, whatever torch's defaults are


class Matrix(NamedTuple):
    """A weight matrix [F, D], one contiguous row per latent, with its optimizer state."""

    weight: Tensor  # fp32 (fp64 in tests), or bf16
    # what an fp32 has below the bf16 that is `weight`: int16, all of it ("split"); int8, the next 8 bits ("split24")
    low: Tensor | None
    shadow: Tensor  # in the dtype of the products; `weight` itself if that is its dtype
    exp_avg: Tensor  # fp32, bf16 or int8
    exp_avg_sq: Tensor  # fp32, bf16 or uint8
    # [F, 2] fp32, with int8 only: largest |exp_avg| and largest sqrt(exp_avg_sq) of each row
    scales: Tensor | None


class Vector(NamedTuple):
    """A bias with its moments, always in full precision."""

    value: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Weights(NamedTuple):
    """The parameters of an SAE as the engine keeps them."""

    enc: Matrix
    dec: Matrix
    b_enc: Vector  # [F]
    b_dec: Vector  # [D]


def mix(bits: Tensor) -> Tensor:
    """A hash of 32-bit integers kept in int64: Wellons' lowbias32 (nullprogram.com/blog/2018/07/31)."""
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x7FEB352D) & MASK
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x846CA68B) & MASK
    return bits ^ (bits >> 16)


def random_bits(rows: Tensor, n_columns: int, step: int, salt: int) -> Tensor:
    """Random 32-bit integers [len(rows), n_columns] in int64, which depend on row, column, step and salt alone.

    salt: 0 for W_enc, 1 for W_dec. The lower 16 bits round the weight (to 24 bits: the upper 8 of them), the upper 16
    exp_avg_sq; exp_avg takes the upper 16 of the hash of the hash. So no two of the three share a bit.
    """
    of_step = mix(torch.tensor((2 * step + salt) & MASK, dtype=torch.int64, device=rows.device))
    of_row = mix(rows.long() ^ of_step)
    return mix(torch.arange(n_columns, dtype=torch.int64, device=rows.device) ^ of_row[:, None])


def to_bf16_stochastic(value: Tensor, bits: Tensor) -> Tensor:
    """Round fp32 to one of its two bf16 neighbours, up with the probability that keeps the mean.

    bits: integers whose lower 16 bits are uniform.
    """
    rounded = (value.view(torch.int32) + (bits & 0xFFFF).to(torch.int32)) & -0x10000
    return rounded.view(torch.float32).to(torch.bfloat16)


def split_fp32(value: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 -> high (bf16) and low (int16), from which `join_fp32` gives the same bits back.

    high is `value` rounded to nearest, halves away from zero: rounded to even, a half would not fit into low.
    """
    bits = value.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def split_24(value: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 -> high (bf16) and low (int8), from which `join_fp32` gives one of the two neighbours of `value` that have 24 bits.

    It gives the larger one (in magnitude) with the probability that keeps the mean, and `value` itself if it has 24 bits.
    high is then that neighbour rounded to nearest, halves away from zero, so low is -128 to 127. Inf stays Inf, and NaN
    becomes the NaN whose lower bits are 0, which no carry turns into Inf. Beyond the largest finite number of 24 bits
    the neighbour is Inf.

    bits: integers of which bits 8 to 15 are uniform.
    """
    kept = value.view(torch.int32).masked_fill(value.isnan(), NAN)
    kept = (
        kept + (bits >> 8 & 0xFF).to(torch.int32)
    ) & -0x100  # a carry may go up to the exponent, as it should
    high = (kept + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (kept - (high << 16) >> 8).to(torch.int8)


def join_fp32(high: Tensor, low: Tensor) -> Tensor:
    """low: int16 as of `split_fp32`, or int8 as of `split_24`."""
    below = low.to(torch.int32) << (8 if low.dtype == torch.int8 else 0)
    return ((high.view(torch.int16).to(torch.int32) << 16) + below).view(torch.float32)


def to_codes(magnitude: Tensor, scale: Tensor, levels: int, uniform: Tensor) -> Tensor:
    """magnitude [n, D] >= 0, scale [n] -> codes 0..levels (fp32) with magnitude ~ scale * (code / levels)^2.

    The codes are squared, because the moments of a row span orders of magnitude. Between two codes the choice is random,
    with the probability that keeps the mean: rounding to the nearest code would stop a decaying average where it is.

    uniform: random numbers in [0, 1), [n, D].
    """
    ratio = magnitude / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    below = (ratio.sqrt() * levels).floor().clamp_max(levels - 1)
    low, high = (below / levels).square(), ((below + 1) / levels).square()
    return below + (uniform * (high - low) < ratio - low)


def load_weight(matrix: Matrix) -> Tensor:
    """The weight in full precision. It is not a copy if the weight is kept in full precision."""
    if matrix.low is not None:
        return join_fp32(matrix.weight, matrix.low)
    return matrix.weight.float() if matrix.weight.dtype == torch.bfloat16 else matrix.weight


def store_weight_(matrix: Matrix, value: Tensor, bits: Tensor) -> None:
    """Store `value` [F, D] and its copy for the products. bits: what `random_bits` returned."""
    if matrix.low is not None:
        high, low = split_24(value, bits) if matrix.low.dtype == torch.int8 else split_fp32(value)
        matrix.weight.copy_(high)
        matrix.low.copy_(low)
    elif matrix.weight.dtype == torch.bfloat16:
        matrix.weight.copy_(to_bf16_stochastic(value, bits))
    elif matrix.weight.data_ptr() != value.data_ptr():
        matrix.weight.copy_(value)
    if matrix.shadow is not matrix.weight:
        matrix.shadow.copy_(matrix.weight)


def load_moments(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """exp_avg and exp_avg_sq in full precision. They are not copies if they are kept in full precision."""
    m, v, scales = matrix.exp_avg, matrix.exp_avg_sq, matrix.scales
    if scales is None:
        return (m.float(), v.float()) if m.dtype == torch.bfloat16 else (m, v)
    code = m.float() / 127
    return code * code.abs() * scales[:, :1], ((v.float() / 255).square() * scales[:, 1:]).square()


def store_moments_(matrix: Matrix, m: Tensor, v: Tensor, bits: Tensor) -> None:
    """Store both moments. bf16 rounds exp_avg to nearest and exp_avg_sq stochastically: with beta2 = 0.999 rounding to
    nearest would never let a decaying average change."""
    if matrix.scales is not None:
        root = v.sqrt()
        scales = torch.stack([m.abs().amax(dim=1), root.amax(dim=1)], dim=1)
        code_m = to_codes(m.abs(), scales[:, 0], 127, (mix(bits) >> 16).float() / 2**16)
        code_v = to_codes(root, scales[:, 1], 255, (bits >> 16).float() / 2**16)
        code_v = torch.where(v > 0, code_v.clamp_min(1), code_v)  # a zero would divide by epsilon
        matrix.exp_avg.copy_(code_m * m.sign())
        matrix.exp_avg_sq.copy_(code_v)
        matrix.scales.copy_(scales)
    elif matrix.exp_avg.dtype == torch.bfloat16:
        matrix.exp_avg.copy_(m)
        matrix.exp_avg_sq.copy_(to_bf16_stochastic(v, bits >> 16))
    elif matrix.exp_avg.data_ptr() != m.data_ptr():
        matrix.exp_avg.copy_(m)
        matrix.exp_avg_sq.copy_(v)


def narrowed(weight: Tensor, param_dtype: str, rows_at_once: int = 2**14) -> tuple[Tensor, Tensor | None]:
    """weight [F, D] -> weight and low of a Matrix; it is used in place if its dtype fits.

    A few rows at a time, so that nothing else of the size of the weight is made on the way. 24 bits are the nearest.
    """
    if param_dtype == "fp32":
        return weight, None
    if param_dtype == "bf16" or weight.dtype == torch.bfloat16:
        low = torch.zeros_like(weight, dtype=LOW[param_dtype]) if param_dtype in LOW else None
        return weight.to(torch.bfloat16), low
    high, low = (torch.empty_like(weight, dtype=dtype) for dtype in (torch.bfloat16, LOW[param_dtype]))
    nearest = torch.tensor(NEAREST, dtype=torch.int64, device=weight.device)
    for rows in (slice(start, start + rows_at_once) for start in range(0, len(weight), rows_at_once)):
        value = weight[rows].float()
        high[rows], low[rows] = split_24(value, nearest) if low.dtype == torch.int8 else split_fp32(value)
    return high, low


def allocate(
    weight: Tensor,
    param_dtype: str,
    state_dtype: str,
    compute_dtype: torch.dtype,
    low: Tensor | None = None,
) -> Matrix:
    """A Matrix with `weight` [F, D], which is used in place if its dtype fits, and with moments of zero.

    Args:
        param_dtype: "fp32" (which leaves fp64 as it is), "split", "split24" or "bf16".
        state_dtype: "fp32", "bf16" or "int8".
        compute_dtype: of the products. With other formats than "fp32" it must be bf16, so that they need no copy.
        low: if weight and low are those of `narrowed` already.
    """
    if low is None:
        weight, low = narrowed(weight, param_dtype)
    shadow = weight if weight.dtype == compute_dtype else weight.to(compute_dtype)
    dtypes = {
        "fp32": (weight.dtype if param_dtype == "fp32" else torch.float32,) * 2,
        "bf16": (torch.bfloat16, torch.bfloat16),
        "int8": (torch.int8, torch.uint8),
    }[state_dtype]
    exp_avg, exp_avg_sq = (torch.zeros_like(weight, dtype=dtype) for dtype in dtypes)
    scales = weight.new_zeros(len(weight), 2, dtype=torch.float32) if state_dtype == "int8" else None
    return Matrix(weight, low, shadow, exp_avg, exp_avg_sq, scales)


def row_norms(matrix: Matrix, parts: int = 1, rows_at_once: int = 2**16) -> Tensor:
    """[F], or [F, parts] if parts > 1: the norm of each row as the products see it, or the norms of its equal parts."""
    dtype = torch.promote_types(matrix.shadow.dtype, torch.float32)
    parts_of_rows = [rows.unflatten(1, (parts, -1)) for rows in matrix.shadow.split(rows_at_once)]
    norms = [torch.linalg.vector_norm(rows, dim=2, dtype=dtype) for rows in parts_of_rows]
    return torch.cat(norms) if parts > 1 else torch.cat(norms).squeeze(1)


def positive(norms: Tensor) -> Tensor:
    """What can be divided by: a row of zeros has the smallest normal number in place of its norm."""
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)


def scale_rows_(matrix: Matrix, factor: float | Tensor, rows_at_once: int = 2**14) -> None:
    """Multiply the weight by a number, or by one for each row [F], a few rows at a time: random bits for all rows at once
    would take 8 bytes per parameter."""
    for start in range(0, len(matrix.weight), rows_at_once):
        rows = slice(start, start + rows_at_once)
        part = Matrix(*(None if t is None else t[rows] for t in matrix))  # type: ignore[arg-type]
        numbers = torch.arange(start, start + len(part.weight), dtype=torch.int64, device=part.weight.device)
        weight = load_weight(part)
        by = factor[rows, None].to(weight) if isinstance(factor, Tensor) else factor
        store_weight_(part, weight * by, random_bits(numbers, part.weight.shape[1], 0, 0))
