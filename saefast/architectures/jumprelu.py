"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold theta for each latent, trained.

    acts = pre_acts where pre_acts > theta, else 0          loss = reconstruction + penalty

The step H(pre - theta) has no gradient; within half a bandwidth eps of theta it is taken to be 1 / eps wide:

    d acts / d theta = -(theta / eps) K        d H / d theta = -(1 / eps) K        K = 1 where |pre - theta| < eps / 2

and nothing more with respect to pre_acts ("threshold"), or the same with the other sign, so that the weights learn from
it too ("all": Anthropic, January 2025).

Penalties: "l0": sparsity * mean L0. "target_l0": sparsity * (mean L0 / target_l0 - 1)^2. Those of
`saefast.architectures.penalties` on the activations. The pre-activation loss against dead latents (Anthropic 2025;
SAELens: of dead latents only) is preact_coefficient * sum over latents of relu(theta - pre) * ||W_dec row||, mean over
tokens. It reaches every latent in every token; all tokens minus those where it is active gives it without a dense code.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.architectures.code import Backward, Code, Extra, threshold_code, where
from saefast.architectures.penalties import penalty
from saefast.plan import Coefficients, Plan
from saefast.storage import Weights


def theta(extra: Extra, plan: Plan) -> Tensor:
    value = extra["threshold"].value
    return value.exp() if plan.log_threshold else value


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    threshold = theta(extra, plan)
    lowest = threshold - c.bandwidth / 2
    if plan.dense:
        pre_acts = ops.encode_dense(centred, weights.enc.shadow, weights.b_enc.value)
        acts = where(pre_acts > threshold, pre_acts)
        return Code(acts, None, None, pre_acts, (pre_acts > lowest).to(pre_acts.dtype))
    pre_acts, indices, row_offsets, size = threshold_code(
        ops, weights, centred, lowest.contiguous(), plan.code_capacity
    )
    acts = where(pre_acts > threshold[indices.long()], pre_acts)
    return Code(acts, indices, row_offsets, pre_acts, (pre_acts > -torch.inf).to(acts.dtype), size)


def backward(
    code: Code, slope: Tensor, extra: Extra, norms: Tensor | None, plan: Plan, c: Coefficients, n_tokens: int
) -> Backward:
    threshold = code.of(theta(extra, plan))
    open_ = code.pre_acts > threshold
    band = ((code.pre_acts - threshold).abs() < c.bandwidth / 2).to(slope.dtype) / c.bandwidth
    added = penalty(plan.penalty, code, code.acts, norms, c, plan.tanh_scale)
    value = added.value
    if added.acts is not None:
        slope = slope + added.acts
    through_step = threshold * slope
    if plan.penalty in ("l0", "target_l0"):
        l0 = open_.sum().to(c.sparsity.dtype) / n_tokens  # of integers it would be fp32
        if plan.penalty == "l0":
            value, of_step = c.sparsity * n_tokens * l0, c.sparsity
        else:
            l0 = l0 if code.mean_l0 is None else code.mean_l0
            excess = l0 / plan.target_l0 - 1
            value = c.sparsity * n_tokens * excess.square()
            of_step = c.sparsity * 2 * excess / plan.target_l0
        through_step = through_step + of_step
    through_step = through_step * band
    grad_pre = where(open_, slope)
    if plan.straight_through == "all":
        grad_pre = grad_pre + through_step
    return Backward(grad_pre, value, added.norms, {"threshold": -through_step})


class Inactive(NamedTuple):
    """The pre-activation loss, with its gradients per latent, [F]."""

    value: Tensor  # []
    per_entry: Tensor  # what every inactive token adds to -grad_pre
    threshold: Tensor
    norms: Tensor


def preact_loss(
    sums: Callable[[Tensor], Tensor], code: Code, weights: Weights, extra: Extra, push_row: Tensor, weight: Tensor,
    norms: Tensor, plan: Plan, n_tokens: int,
) -> Inactive:  # fmt: skip
    """All tokens minus those where the latent is active.

    sums: per entry -> per latent [F]. push_row [D]: sum of the rows of centred. weight [F]: preact_coefficient / B, 0
    for latents that are left out; norms [F]: of the decoder rows.
    """
    threshold, wide = theta(extra, plan), push_row.dtype
    pre_acts = [rows.to(wide) @ push_row for rows in weights.enc.shadow.split(2**14)]
    open_ = code.pre_acts > code.of(threshold)
    short = where(open_, code.of(threshold) - code.pre_acts)
    missing = n_tokens * (threshold - weights.b_enc.value) - torch.cat(pre_acts) - sums(short)
    n_inactive = n_tokens - sums(open_.to(wide))
    per_entry = weight * norms
    return Inactive((per_entry * missing).sum(), per_entry, per_entry * n_inactive, weight * missing)
