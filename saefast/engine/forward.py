"""The forward pass of a step after the selection: what a code reconstructs, and by how much it is off."""

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from saefast.engine.architectures.code import Code
from saefast.engine.architectures.nested import nested
from saefast.engine.plan import Plan


class Forward(NamedTuple):
    code: Code  # as the errors know it
    error: Tensor  # x_hat - target [B, d_out], or by part (see `saefast.engine.architectures.nested`)
    whole: Tensor  # of the reconstruction that counts, [B, d_out]
    squares: Tensor  # [] its squared norm
    weighted: Tensor  # [] the squared norms of all reconstructions, weighted
    fires: Tensor  # in the shape of the code: where a latent counts as active


def reconstruct(
    ops: ModuleType, code: Code, plan: Plan, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Forward:
    """Of a code, target [B, d_out]."""
    if plan.nested:
        return Forward(*nested(ops, code, plan, W_dec, b_dec, target))
    if plan.dense:
        error, squares = ops.dense_error(code.acts, W_dec, (target - b_dec).to(plan.compute_dtype))
    else:
        error, squares = ops.decode_error(
            code.acts, code.indices, W_dec, b_dec, target, plan.compute_dtype, code.row_offsets
        )
    total = squares.sum()
    return Forward(code, error, error, total, total, code.acts > 0)
