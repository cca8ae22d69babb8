"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): one product decides what is active and how much.

    dot  = W_enc (x - b_dec)           pre_acts = dot + b_enc            (the gate)
    acts = relu(exp(r_mag) * dot + b_mag) where pre_acts > 0, else 0
    loss = reconstruction(acts) + sparsity * sum of relu(pre_acts) + ||b_dec + relu(pre_acts) W_dec - x||^2

with the decoder held constant in the last term, so that it only teaches the gate.
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.engine.architectures.code import Backward, Code, Extra, threshold_code, where
from saefast.engine.architectures.penalties import penalty
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights


def magnitudes(pre_acts: Tensor, code: Code, b_enc: Tensor, extra: Extra) -> Tensor:
    """exp(r_mag) * dot + b_mag of each entry."""
    gain, b_mag = code.of(extra["r_mag"].value).exp(), code.of(extra["b_mag"].value)
    return gain * (pre_acts - code.of(b_enc)) + b_mag


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    b_enc = weights.b_enc.value
    if plan.dense:
        pre_acts, indices, row_offsets, size = (
            ops.encode_dense(centred, weights.enc.shadow, b_enc), None, None, None,
        )  # fmt: skip
    else:
        pre_acts, indices, row_offsets, size = threshold_code(
            ops, weights, centred, torch.zeros_like(b_enc[0]), plan.code_capacity
        )
    listed = (pre_acts > 0).to(pre_acts.dtype)
    code = Code(pre_acts, indices, row_offsets, pre_acts, listed, size)
    acts = where(pre_acts > 0, magnitudes(pre_acts, code, b_enc, extra).relu())
    return code._replace(acts=acts.to(pre_acts.dtype))


def backward(
    code: Code,
    slope: Tensor,
    extra: Extra,
    norms: Tensor | None,
    plan: Plan,
    c: Coefficients,
    n_tokens: int,
    b_enc: Tensor,
    gate_slope: Tensor,
) -> Backward:
    """gate_slope: gradient of the last term with respect to relu(pre_acts) of each entry."""
    gate = code.pre_acts > 0
    added = penalty(plan.penalty, code, code.pre_acts.relu(), norms, c, plan.tanh_scale)
    if added.acts is not None:
        gate_slope = gate_slope + added.acts
    gain, of_mag = code.of(extra["r_mag"].value).exp(), where(code.acts > 0, slope)
    grad_gate, through_mag = where(gate, gate_slope), of_mag * gain
    dot = where(gate, code.pre_acts - code.of(b_enc))
    extra_grads = {"r_mag": through_mag * dot, "b_mag": of_mag}
    # pre_acts holds b_enc, which the magnitudes do not see
    return Backward(grad_gate + through_mag, added.value, added.norms, extra_grads, bias=-through_mag)
