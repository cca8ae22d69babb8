"""The forward pass of a step after the selection: what a code reconstructs, and by how much it is off."""

from typing import NamedTuple

from torch import Tensor

from saefast.engine.architecture import Step
from saefast.engine.code import Code
from saefast.engine.nested import nested


class Forward(NamedTuple):
    code: Code  # as the errors know it
    error: Tensor  # x_hat - target [B, d_out], or by part (see `saefast.engine.nested`)
    whole: Tensor  # of the reconstruction that counts, [B, d_out]
    squares: Tensor  # its squared norm, in parts that are to be added up
    weighted: Tensor  # the squared norms of all reconstructions, weighted, in parts
    fires: Tensor | None = (
        None  # in the shape of the code: where a latent counts as active; None: where acts > 0
    )

    def active(self) -> Tensor:
        """In the shape of the code: where a latent counts as active."""
        return self.code.acts > 0 if self.fires is None else self.fires


def reconstruct(step: Step, code: Code, target: Tensor) -> Forward:
    """target: [B, d_out]."""
    plan, W_dec, b_dec = step.plan, step.weights.dec.shadow, step.weights.b_dec.value
    if plan.nested:
        return Forward(*nested(step, code, target))
    if code.indices is None:
        error, squares = step.ops.dense_error(code.acts, W_dec, (target - b_dec).to(plan.compute_dtype))
    else:
        error, squares = step.ops.decode_error(
            code.acts, code.indices, W_dec, b_dec, target, plan.compute_dtype, code.row_offsets
        )
    return Forward(code, error, error, squares, squares)
