"""Losses: the squared errors of a step become its loss, the scale of its gradient and its FVU, in one launch.

    total = sum of squares    loss = scale * total    grad_scale = 2 * scale, NaN unless the loss is finite    fvu = total / variance

Latency bounds it: a launch for every one of these numbers takes longer than reading the squares. One program, so that the
sum has one order. Spec: `saefast.reference.losses`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # squares per iteration


@triton.jit
def _losses_kernel(
    squares_ptr,  # [n]
    variance_ptr,  # []
    scale_ptr,  # [], or None: 1 / variance
    out_ptr,  # [4] out
    n,
    BLOCK: tl.constexpr,
):
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=4):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(squares_ptr + i, mask=i < n, other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=0)
    variance = tl.load(variance_ptr).to(tl.float32)
    scale = 1 / variance
    if scale_ptr is not None:
        scale = tl.load(scale_ptr).to(tl.float32)
    loss = scale * total
    tl.store(out_ptr, total)
    tl.store(out_ptr + 1, loss)
    tl.store(out_ptr + 2, tl.where(tl.abs(loss) < float("inf"), 2 * scale, float("nan")))
    tl.store(out_ptr + 3, total / variance)


def losses(
    squares: Tensor, variance: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """squares of any shape, variance [], scale [] or None -> the sum of squares, loss, grad_scale, FVU, [] fp32."""
    assert squares.is_contiguous(), f"squares: expected contiguous memory, got strides {squares.stride()}"
    out = torch.empty(4, dtype=torch.float32, device=squares.device)
    _losses_kernel[(1,)](squares, variance, scale, out, squares.numel(), BLOCK=BLOCK, num_warps=8)
    total, loss, grad_scale, fvu = out.unbind()
    return total, loss, grad_scale, fvu
