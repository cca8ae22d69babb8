"""ReLU with a penalty on the activations: "Towards Monosemanticity" (l1, decoder rows of unit norm), Anthropic's April
2024 update (l1 weighted by the norm of the decoder row), p-annealing (lp).

    acts = relu(pre_acts)          loss = reconstruction + penalty(acts)
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.engine.architectures.code import Backward, Code, Extra, threshold_code, where
from saefast.engine.architectures.penalties import penalty
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
    if plan.dense:
        acts, _, _ = ops.relu_encode(centred, W_enc, b_enc)
        return Code(acts, None, None, acts, acts)
    pre_acts, indices, row_offsets, size = threshold_code(
        ops, weights, centred, torch.zeros_like(b_enc[0]), plan.code_capacity
    )
    acts = pre_acts.relu()
    return Code(acts, indices, row_offsets, acts, acts, size)


def backward(
    code: Code, slope: Tensor, extra: Extra, norms: Tensor | None, plan: Plan, c: Coefficients, n_tokens: int
) -> Backward:
    """slope: gradient of the reconstruction with respect to each activation."""
    if plan.penalty == "lp":
        c = c._replace(sparsity=c.sparsity * extra["penalty_scale"].value)
    added = penalty(plan.penalty, code, code.acts, norms, c, plan.tanh_scale)
    if added.acts is not None:
        slope = slope + added.acts
    return Backward(where(code.acts > 0, slope), added.value, added.norms)


def seen(code: Code, plan: Plan, c: Coefficients) -> Tensor | None:
    """[2]: sum of u^p, with the p of this step and of the next."""
    if plan.penalty != "lp":
        return None
    u = (code.acts.to(c.scale.dtype) * c.scale).flatten()
    return torch.stack([where(u > 0, u**p).sum() for p in (c.exponent, c.next_exponent)])


def observe_(found: Tensor | None, extra: Extra, plan: Plan, counter: Tensor, valid: Tensor) -> None:
    """p-annealing: when p falls, the weight rises so that the penalty of this batch stays what it was."""
    if found is not None:
        scale = extra["penalty_scale"].value
        factor = (found[0] / found[1]).masked_fill(~(valid & (found[1] > 0)), 1.0)
        scale.mul_(factor.to(scale.dtype))
