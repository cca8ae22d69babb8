"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold theta for each latent, trained.

    acts = pre_acts where pre_acts > theta, else 0          loss = reconstruction + penalty

The step H(pre - theta) has no gradient; within half a bandwidth eps of theta it is taken to be 1 / eps wide:

    d acts / d theta = -(theta / eps) K        d H / d theta = -(1 / eps) K        K = 1 where |pre - theta| < eps / 2

and nothing more with respect to pre_acts ("threshold"), or the same with the other sign, so that the weights learn from
it too ("all": Anthropic, January 2025). "acts" is dictionary_learning's: as "threshold", but the H whose mean is L0 is of
the activations, H(acts - theta), so that K is 1 where |acts - theta| < eps / 2: in the upper half of the band, and with
|theta| < eps / 2 in every token in which the latent is not active. Nor is theta kept at 0 or above: one below 0 lets
negative activations through, and the latent counts as active in every token.
"positive" is llamascopium's: as "threshold", where pre_acts > 0.

With `scale_by_norm` pre_acts * ||W_dec row|| is compared with theta, and eps is in those units; the activations are the
pre_acts, and theta is not scaled in the pre-activation loss (llamascopium's sparsity_include_decoder_norm).

Penalties: "l0": sparsity * mean L0. "target_l0": sparsity * (mean L0 / target_l0 - 1)^2. Those of
`saefast.engine.architectures.penalties` on the activations. The pre-activation loss against dead latents (Anthropic 2025;
SAELens: of dead latents only) is preact_coefficient * sum over latents of relu(theta - pre) * ||W_dec row||, mean over
tokens. It reaches every latent in every token; all tokens minus those where it is active gives it without a dense code.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architectures.code import Backward, Code, Extra, threshold_code, where
from saefast.engine.architectures.penalties import penalty
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights, row_norms


def theta(extra: Extra, plan: Plan) -> Tensor:
    value = extra["threshold"].value
    return value.exp() if plan.log_threshold else value


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    norms = None
    threshold = theta(extra, plan)
    lowest = threshold - c.bandwidth / 2
    if plan.scale_by_norm:
        norms = row_norms(weights.dec).to(threshold.dtype).clamp_min(torch.finfo(threshold.dtype).tiny)
        lowest = lowest / norms
        if plan.preact != "none":  # whose entries are those above theta itself
            lowest = torch.minimum(lowest, threshold)
        threshold = threshold / norms
    if plan.straight_through == "positive":
        lowest = lowest.clamp_min(0)
    if plan.dense:
        pre_acts = ops.encode_dense(centred, weights.enc.shadow, weights.b_enc.value)
        acts = where(pre_acts > threshold, pre_acts)
        return Code(acts, None, None, pre_acts, (pre_acts > lowest).to(pre_acts.dtype), norms=norms)
    pre_acts, indices, row_offsets, size = threshold_code(
        ops, weights, centred, lowest.contiguous(), plan.code_capacity
    )
    acts = where(pre_acts > threshold[indices.long()], pre_acts)
    return Code(
        acts, indices, row_offsets, pre_acts, (pre_acts > -torch.inf).to(acts.dtype), size, norms=norms
    )


def number_open(code: Code, extra: Extra, plan: Plan, n_tokens: int) -> Tensor:
    """[]: how often H is 1, an integer."""
    threshold = theta(extra, plan)
    if code.norms is not None:
        threshold = threshold / code.norms
    open_ = code.pre_acts > code.of(threshold)
    if plan.straight_through != "acts":
        return open_.sum()
    below = threshold < 0
    return (open_ & ~code.of(below)).sum() + n_tokens * below.sum()


def backward(
    code: Code, slope: Tensor, extra: Extra, norms: Tensor | None, plan: Plan, c: Coefficients, n_tokens: int
) -> Backward:
    threshold, half = theta(extra, plan), c.bandwidth / 2
    if code.norms is not None:
        threshold, half = threshold / code.norms, code.of(half / code.norms)
    threshold = code.of(threshold)
    open_, inside = code.pre_acts > threshold, (code.pre_acts - threshold).abs() < half
    if plan.straight_through == "positive":
        inside = inside & (code.pre_acts > 0)
    band = inside.to(slope.dtype) / c.bandwidth
    added = penalty(plan.penalty, code, code.acts, norms, c, plan.tanh_scale)
    value = added.value
    if added.acts is not None:
        slope = slope + added.acts
    through_step = threshold * slope
    if plan.penalty in ("l0", "target_l0"):
        l0 = number_open(code, extra, plan, n_tokens).to(c.sparsity.dtype) / n_tokens  # of integers: fp32
        if plan.penalty == "l0":
            value, of_step = c.sparsity * n_tokens * l0, c.sparsity
        else:
            l0 = l0 if code.mean_l0 is None else code.mean_l0
            excess = l0 / plan.target_l0 - 1
            value = c.sparsity * n_tokens * excess.square()
            of_step = c.sparsity * 2 * excess / plan.target_l0
        if plan.straight_through == "acts":  # where a latent is not active, its activation is 0
            at_zero = (theta(extra, plan).abs() < c.bandwidth / 2).to(band.dtype) / c.bandwidth
            through_step = through_step * band + of_step * where(open_, band - code.of(at_zero))
            every_token = {"threshold": -n_tokens * of_step * at_zero}
            grad_pre, of_entries = where(open_, slope), {"threshold": -through_step}
            return Backward(grad_pre, value, added.norms, of_entries, more_extra=every_token)
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
