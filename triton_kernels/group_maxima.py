"""The largest of each group of 64 consecutive latents, from which a selection knows where to look.

    maxima[b, g] = max of pre_acts[b, 64 g : 64 g + 64], NaN as +inf

The numbers may lack the encoder's bias and scale, as a library product does (`finished` says how these enter). They are
added as the numbers are read, and the sums are written back only where somebody else needs them. Memory bandwidth bounds
it: `group_maxima_bytes`. A bias is read once for 8 tokens, out of the L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 64


@triton.jit
def finished(products, bias_ptr, scale_ptr, column, inside):
    """The pre-activations of products as loaded, in their dtype: rounded after the bias and once more after the scale."""
    dtype: tl.constexpr = products.dtype
    z = products
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        z = (products.to(tl.float32) + bias).to(dtype)
    if scale_ptr is not None:
        z = (z.to(tl.float32) * tl.load(scale_ptr + column, mask=inside, other=1.0).to(tl.float32)).to(dtype)
    return z


@triton.jit
def _group_maxima_kernel(
    pre_acts_ptr,  # [B, F]
    bias_ptr,  # [F], or None
    scale_ptr,  # [F], or None
    maxima_ptr,  # [B, F / SPAN] out
    stride,
    out_stride,
    B,
    F,
    n_groups,
    WRITE: tl.constexpr,  # pre_acts with bias and scale back to where they were read
    SPAN: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(n_groups, BLOCK)
    b = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, PADDED)[None, :]
    column = (group[:, None] * SPAN + lane)[None, :, :]
    in_row = (column < F) & (lane < SPAN)[None, :, :]
    inside = (b < B)[:, None, None] & in_row
    b_wide = b.to(tl.int64)
    ptrs = pre_acts_ptr + b_wide[:, None, None] * stride + column
    x = finished(tl.load(ptrs, mask=inside, other=float("-inf")), bias_ptr, scale_ptr, column, in_row)
    if WRITE:
        x = tl.where(x == x, x, float("inf"))  # noqa: PLR0124
        tl.store(ptrs, x, mask=inside)
    x = x.to(tl.float32)
    largest = tl.max(tl.where(x < float("inf"), x, float("inf")), axis=2)
    out = maxima_ptr + b_wide[:, None] * out_stride + group[None, :]
    tl.store(
        out, largest.to(maxima_ptr.dtype.element_ty), mask=(b < B)[:, None] & (group < n_groups)[None, :]
    )


def group_maxima_bytes(B: int, F: int, itemsize: int, write: bool = False) -> int:
    """Bytes that `group_maxima` moves, bias and scale apart."""
    return B * itemsize * ((2 if write else 1) * F + triton.cdiv(F, GROUP))


def assert_rows(name: str, tensor: Tensor) -> None:
    assert tensor.stride(1) == 1, f"{name}: expected stride(1) == 1, got strides {tensor.stride()}"


def assert_vectors(F: int, **vectors: Tensor | None) -> None:
    """Each None or contiguous [F]."""
    for name, vector in vectors.items():
        assert vector is None or vector.shape == (F,), f"{name}: expected {(F,)}, got {tuple(vector.shape)}"
        assert vector is None or vector.is_contiguous(), (
            f"{name}: expected contiguous memory, got {vector.stride()}"
        )


def group_maxima(
    pre_acts: Tensor,
    group: int = GROUP,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    write: bool = False,
) -> Tensor:
    """pre_acts [B, F] -> the largest of each `group` consecutive columns [B, ceil(F / group)], NaN as +inf.

    Rows may lie apart, as those of a slice of columns, in pre_acts and in `out`.

    Args:
        bias, scale: [F]; then pre_acts are products that lack these. scale needs a bias.
        write: and pre_acts get them, in place, with +inf for NaN.
    """
    B, F = pre_acts.shape
    n_groups = triton.cdiv(F, group)
    out = torch.empty(B, n_groups, dtype=pre_acts.dtype, device=pre_acts.device) if out is None else out
    assert_rows("pre_acts", pre_acts)
    assert_rows("out", out)
    assert_vectors(F, bias=bias, scale=scale)
    assert bias is not None or (scale is None and not write), (
        "bias: expected one with scale or write, got None"
    )
    if B == 0:
        return out
    PADDED = triton.next_power_of_2(group)
    ROWS = 1 if bias is None else 8
    BLOCK = max(1, 8192 // (ROWS * PADDED * pre_acts.element_size()))  # four 16-byte loads per thread
    BLOCK = min(BLOCK, triton.next_power_of_2(n_groups))
    _group_maxima_kernel[(triton.cdiv(B, ROWS) * triton.cdiv(n_groups, BLOCK),)](
        pre_acts,
        bias,
        scale,
        out,
        pre_acts.stride(0),
        out.stride(0),
        B,
        F,
        n_groups,
        WRITE=write,
        SPAN=group,
        PADDED=PADDED,
        ROWS=ROWS,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out
