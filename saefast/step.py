"""One optimizer step without an autograd graph: forward, backward, update. The same file for every backend and
architecture.

Nothing here waits for the device, and every shape is known beforehand: on a GPU the whole step is one CUDA graph.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.architectures import DENSE, MODULES
from saefast.auxk import auxk, find_dead
from saefast.backward import dense_grads, entry_grads, in_data_units, update_extra_
from saefast.forward import reconstruct
from saefast.plan import Hyper, Plan, coefficients
from saefast.reference_update import Grads
from saefast.state import State

__all__ = ["Hyper", "Metrics", "Plan", "train_step"]


class Metrics(NamedTuple):
    """Of one step, before its update: 0-dimensional tensors on the device, so that nothing waits for them."""

    loss: Tensor  # reconstruction + auxk_alpha * auxk_loss + penalty; not finite: the step changed no weight
    fvu: Tensor
    l0: Tensor  # mean number of active latents per token
    dead_frac: Tensor  # share of latents not active for dead_feature_threshold tokens
    auxk_loss: Tensor  # unweighted; 0 when nothing is dead
    penalty: Tensor  # what the sparsity penalties add to the loss
    grad_norm: Tensor  # global, before clipping
    code_size: Tensor  # entries of the sparse code; more than code_capacity: some were left out


def train_step(
    ops: ModuleType,
    state: State,
    x: Tensor,
    plan: Plan,
    numbers: Tensor,
    optimizer: Callable[[Grads, dict[str, Tensor], Tensor], None] | None = None,
) -> Metrics:
    """Train on x [B, d_in], in place; of a transcoder x is [B, d_in + d_out], with the target behind the input.

    Args:
        ops: a backend, see `saefast.load_backend`.
        numbers: `Hyper.numbers` as a tensor on the device of the state.
        optimizer: in place of the fused Adam: gets the gradients, those of the extra parameters, and a factor for both
            (of clipping; NaN: change nothing).
    """
    weights, extra, c = state.weights, state.extra, coefficients(numbers)
    arch, b_dec, n_latents = MODULES[plan.activation], weights.b_dec.value, len(weights.b_enc.value)
    state.counter += 1
    n_dead = (state.num_tokens_since_fired >= plan.dead_feature_threshold).sum()
    d_in = weights.enc.weight.shape[1]
    x, target = x[:, :d_in].contiguous(), x[:, d_in:].contiguous() if x.shape[1] > d_in else None
    subtracted = b_dec if plan.pre_bias else x.new_zeros(d_in)
    centred, variance = ops.centre(x, subtracted, plan.compute_dtype)
    goal = x
    if target is not None:
        _, variance = ops.centre(target, torch.zeros_like(b_dec), plan.compute_dtype)
        goal = target - x @ extra["W_skip"].value.to(x.dtype).T if plan.skip else target

    code = arch.select(ops, weights, extra, centred, plan, c)
    run = reconstruct(ops, code, plan, weights.dec.shadow, b_dec, goal)
    fvu = run.squares / variance
    loss_scale = 1 / variance if plan.loss == "fvu" else c.loss.to(variance.dtype)
    loss = run.weighted * loss_scale
    auxk_loss, aux = torch.zeros_like(fvu), None
    if plan.dead_capacity:
        dead = find_dead(state.num_tokens_since_fired, plan.dead_feature_threshold, plan.dead_capacity)
        auxk_loss, aux = auxk(ops, weights, centred, run.whole, dead, plan, loss_scale)
        loss = loss + plan.auxk_alpha * auxk_loss
    grad_scale = 2 * loss_scale + 0 * loss  # 0 times NaN or Inf is NaN

    if plan.plain and not plan.dense:
        penalty, extra_grads, options = torch.zeros_like(loss), {}, {}
        if plan.activation == "relu":
            penalty = numbers[10] * code.acts.sum()  # numbers.l1
        groups = ops.group_by_latent(code.acts, code.indices, n_latents, code.row_offsets)
        fired = groups[0].diff()
    else:
        found = entry_grads(ops, arch, state, run, plan, c, grad_scale, goal, centred)
        penalty, extra_grads, options = found.penalty, found.extra, {"given": found.given}
        groups, fired = found.groups, found.fired
    if plan.skip:
        wide = torch.promote_types(run.error.dtype, torch.float32)
        extra_grads["W_skip"] = grad_scale * (run.whole.to(wide).T @ x.to(wide))
    if extra_grads or plan.penalty != "none" or plan.activation in DENSE:
        loss, grad_scale = loss + penalty, grad_scale + 0 * penalty

    rest = centred, run.error, run.code.acts, run.code.indices, run.code.row_offsets, groups, grad_scale, aux
    grads = None
    if plan.dense:
        grads, squared = dense_grads(
            ops, weights, centred, run, found.given, aux, grad_scale, plan, numbers[11]
        )
    elif plan.grad_clip is None and optimizer is None:
        squared = ops.update_(weights, *rest, numbers, state.counter, **options)
    else:
        grads, squared = ops.row_grads(weights, *rest, numbers, **options)
    for name, grad in extra_grads.items():
        squared = squared + ((numbers[11] if in_data_units(name, plan) else 1) * grad).square().sum()
    if grads is not None or extra_grads:  # else all is done
        factor = (
            torch.ones_like(grad_scale) if plan.grad_clip is None else clip_factor(squared, plan.grad_clip)
        )
        factor = torch.where(grad_scale.isnan(), grad_scale, factor)
        if optimizer is not None:
            assert grads is not None
            optimizer(grads, extra_grads, factor)
        else:
            if grads is not None:
                ops.adam_rows_(weights, grads, factor, numbers, state.counter)
            update_extra_(extra, extra_grads, factor, numbers, c, plan)
    if hasattr(arch, "observe_"):
        arch.observe_(code, extra, plan, c, state.counter, ~grad_scale.isnan())

    n_active = fired.sum()
    state.fired += fired
    state.num_tokens_since_fired += len(x)
    state.num_tokens_since_fired.masked_fill_(fired > 0, 0)
    return Metrics(
        loss=loss,
        fvu=fvu,
        l0=n_active / max(len(x), 1),
        dead_frac=n_dead / n_latents,
        auxk_loss=auxk_loss,
        penalty=penalty,
        grad_norm=squared.sqrt(),
        code_size=n_active if code.size is None else code.size,
    )


def clip_factor(squared_norm: Tensor, largest: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_."""
    return (largest / (squared_norm.sqrt() + 1e-6)).clamp(max=1)
