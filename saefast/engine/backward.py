"""The backward pass of a step between the error and the update: gradients of the entries of a code, with the penalties.

Where an entry's gradient is just that of the reconstruction (`Plan.plain`), the update finds it by itself and nothing
here runs. Otherwise the slopes <error, W_dec row> of all entries are taken first, the architecture makes of them the
gradients of pre-activations and extra parameters, and what belongs to a latent is summed up.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architectures import IN_DATA_UNITS, gated, jumprelu
from saefast.engine.architectures.code import Backward, Code, Extra, where
from saefast.engine.forward import Forward, reconstruct
from saefast.engine.plan import Coefficients, Plan
from saefast.engine.state import State
from saefast.reference import Given, Groups
from saefast.storage import row_norms


class Entries(NamedTuple):
    given: Given
    groups: Groups | None  # None for a dense code
    fired: Tensor  # [F]: tokens in which the latent is active
    extra: dict[str, Tensor]  # gradients of the extra parameters
    penalty: Tensor  # [] added to the loss


def entry_grads(
    ops: ModuleType, arch: ModuleType, state: State, run: Forward, plan: Plan, c: Coefficients,
    grad_scale: Tensor, target: Tensor, centred: Tensor,
) -> Entries:  # fmt: skip
    """grad_scale []: of the error. target [B, d_out], centred [B, d_in]."""
    weights, extra, code = state.weights, state.extra, run.code
    b_enc, n_tokens = weights.b_enc.value, len(centred)
    parts = row_norms(weights.dec, plan.layers) if plan.norm_weighted or plan.preact != "none" else None
    all_norms = parts.sum(dim=1) if parts is not None and parts.ndim == 2 else parts
    norms = all_norms if plan.norm_weighted else None
    groups = None
    if not plan.dense:
        groups = ops.group_by_latent(code.listed, code.indices, len(b_enc), code.row_offsets)
    sums = latent_sums(ops, groups)

    slope = grad_scale * slopes(ops, code, run.error, weights.dec.shadow)
    if plan.activation == "gated":
        gate = reconstruct(
            ops,
            code._replace(acts=code.pre_acts.relu()),
            plan,
            weights.dec.shadow,
            weights.b_dec.value,
            target,
        )
        gate_slope = grad_scale * slopes(ops, code, gate.error, weights.dec.shadow)
        back = gated.backward(code, slope, extra, norms, plan, c, n_tokens, b_enc, gate_slope)
        back = back._replace(penalty=back.penalty + gate.squares * grad_scale / 2)
    elif hasattr(arch, "backward"):
        back = arch.backward(code, slope, extra, norms, plan, c, n_tokens)
    else:
        back = Backward(where(code.acts > 0, slope), torch.zeros_like(grad_scale))

    found = {name: sums(grad) for name, grad in (back.extra or {}).items()}
    for name, grad in (back.more_extra or {}).items():
        found[name] = found[name] + grad
    bias = torch.zeros_like(b_enc) if back.bias is None else sums(back.bias).to(b_enc.dtype)
    of_norms = None if back.norms is None else sums(back.norms)
    grad_pre, penalty, push = back.grad_pre, back.penalty, torch.zeros_like(b_enc)
    push_row = centred.sum(dim=0, dtype=b_enc.dtype)
    if plan.preact != "none":
        weight = c.inactive.to(b_enc.dtype).expand_as(b_enc)
        if plan.preact == "dead":
            weight = weight * (state.num_tokens_since_fired >= plan.dead_feature_threshold)
        assert all_norms is not None
        lost = jumprelu.preact_loss(sums, code, weights, extra, push_row, weight, all_norms, plan, n_tokens)
        penalty, push = penalty + lost.value, -lost.per_entry
        open_ = code.pre_acts > code.of(jumprelu.theta(extra, plan))
        grad_pre = grad_pre + where(open_, code.of(lost.per_entry))
        found["threshold"] = found["threshold"] + lost.threshold
        of_norms = lost.norms if of_norms is None else of_norms + lost.norms
    if plan.log_threshold and "threshold" in found:
        found["threshold"] = found["threshold"] * jumprelu.theta(extra, plan)

    pull = b_enc.new_zeros(len(b_enc), 1)
    if of_norms is not None and parts is not None:
        pull = of_norms[:, None] / parts.view(len(b_enc), -1).clamp_min(torch.finfo(parts.dtype).tiny)
    given = Given(grad_pre.contiguous(), bias, push, push_row, pull.to(b_enc.dtype).contiguous())
    fired = sums(run.fires.to(slope.dtype)).to(torch.int32)
    return Entries(given, groups, fired, found, penalty)


def latent_sums(ops: ModuleType, groups: Groups | None) -> Callable[[Tensor], Tensor]:
    """Per entry -> per latent [F]: over the list of each latent, or over the column of a dense code (None)."""
    if groups is None:
        return lambda per_entry: per_entry.sum(
            dim=0, dtype=torch.promote_types(per_entry.dtype, torch.float32)
        )
    return lambda per_entry: ops.sum_entries(groups, per_entry.contiguous())


def slopes(ops: ModuleType, code: Code, error: Tensor, W_dec: Tensor) -> Tensor:
    """<error[token], W_dec[latent]> of each listed entry, in at least fp32; 0 elsewhere."""
    wide = torch.promote_types(error.dtype, torch.float32)
    if code.indices is None:
        none = torch.zeros((), dtype=wide, device=error.device)
        return ops.dense_grad_acts(error, W_dec, code.listed, none).to(wide)
    found: Tensor = ops.grad_top_acts(error, W_dec, code.listed, code.indices, code.row_offsets)
    return found.to(wide)


def in_data_units(name: str, plan: Plan) -> bool:
    return name in IN_DATA_UNITS and not (name == "threshold" and plan.log_threshold)


def update_extra_(
    extra: Extra, grads: dict[str, Tensor], factor: Tensor, numbers: Tensor, c: Coefficients, plan: Plan
) -> None:
    """Adam on the extra parameters, with `factor` times the gradients; NaN changes nothing. Nothing waits."""
    valid = ~factor.isnan()
    for name, grad in grads.items():
        value, m, v = extra[name]
        beta1_rest, beta2, beta2_rest, correction1, correction2 = (
            numbers[i].to(m.dtype) for i in range(5, 10)
        )
        lr, eps = (c.lr_bias, c.eps_bias) if in_data_units(name, plan) else (c.lr, c.eps)
        grad = (grad * factor).to(m.dtype)
        new_m = m + beta1_rest * (grad - m)
        new_v = beta2 * v + beta2_rest * grad.square()
        moved = value - lr * correction1 * new_m / ((new_v * correction2).sqrt() + eps)
        if name == "threshold" and not plan.log_threshold and plan.straight_through != "acts":
            moved = moved.clamp_min(0)
        for old, new in ((value, moved), (m, new_m), (v, new_v)):
            old.copy_(torch.where(valid, new, old))
