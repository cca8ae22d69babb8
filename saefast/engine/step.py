"""One optimizer step without an autograd graph: forward, backward, update. The same file for every backend and
architecture.

Nothing here waits for the device, and every shape is known beforehand: on a GPU the whole step is one CUDA graph.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architectures import DENSE, MODULES
from saefast.engine.architectures.code import active_latents
from saefast.engine.auxk import auxk, find_dead
from saefast.engine.backward import entry_grads, in_data_units, update_extra_
from saefast.engine.dense import dense_pass, with_auxk
from saefast.engine.forward import reconstruct
from saefast.engine.plan import Hyper, Plan, coefficients
from saefast.engine.state import State
from saefast.reference import Grads

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

    loss_scale = 1 / variance if plan.loss == "fvu" else c.loss.to(variance.dtype)
    if plan.dense:
        whole = dense_pass(ops, arch, state, centred, goal, plan, c, 2 * loss_scale)
        error, squares, weighted = whole.error, whole.squares, whole.squares
    else:
        code = arch.select(ops, weights, extra, centred, plan, c)
        if state.smallest is not None:
            state.smallest.copy_(arch.seen(code, plan, c))
        run = reconstruct(ops, code, plan, weights.dec.shadow, b_dec, goal)
        error, squares, weighted = run.whole, run.squares, run.weighted
    fvu, loss = squares / variance, weighted * loss_scale
    auxk_loss, aux = torch.zeros_like(fvu), None
    if plan.dead_capacity:
        silent_for = state.num_tokens_since_fired
        if plan.count_before_auxk:
            active = whole.fired > 0 if plan.dense else active_latents(run.code, run.fires, n_latents)
            silent_for = (silent_for + len(x)).masked_fill(active, 0)
        dead = find_dead(silent_for, plan.dead_feature_threshold, plan.dead_capacity)
        left: list[Tensor] | None = None if plan.auxk_detached else []
        auxk_loss, aux = auxk(ops, weights, centred, error, dead, plan, loss_scale, left)
        if left is not None:  # the gradient of x_hat is that of both errors
            share = (plan.auxk_alpha * (dead.number > 0)).to(error.dtype)
            run = run._replace(error=run.error + share * torch.cat(left))
        loss = loss + plan.auxk_alpha * auxk_loss
    grad_scale = 2 * loss_scale + 0 * loss  # 0 times NaN or Inf is NaN

    if plan.plain and not plan.dense:
        penalty, extra_grads, options = torch.zeros_like(loss), {}, {}
        if plan.activation == "relu":
            penalty = numbers[10] * code.acts.sum()  # numbers.l1
        groups = ops.group_by_latent(code.acts, code.indices, n_latents, code.row_offsets)
        fired = groups[0].diff()
    elif plan.dense:
        penalty, extra_grads, fired = whole.penalty, whole.extra, whole.fired
    else:
        found = entry_grads(ops, arch, state, run, plan, c, grad_scale, goal, centred)
        penalty, extra_grads, fired = found.penalty, found.extra, found.fired
        groups, options = found.groups, {"given": found.given}
    if plan.skip:
        wide = torch.promote_types(error.dtype, torch.float32)
        extra_grads["W_skip"] = grad_scale * (error.to(wide).T @ x.to(wide))
    if extra_grads or plan.penalty != "none" or plan.activation in DENSE:
        loss, grad_scale = loss + penalty, grad_scale + 0 * penalty

    grads = None
    if plan.dense:
        grads, squared = with_auxk(whole.grads, aux, weights, plan, numbers[11])
    else:
        rest = (
            centred, run.error, run.code.acts, run.code.indices, run.code.row_offsets, groups, grad_scale, aux,
            numbers,
        )  # fmt: skip
        if plan.grad_clip is None and optimizer is None:
            squared = ops.update_(weights, *rest, state.counter, **options)
        else:
            grads, squared = ops.row_grads(weights, *rest, **options)
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
        seen = whole.seen if plan.dense else arch.seen(code, plan, c)
        arch.observe_(seen, extra, plan, state.counter, ~grad_scale.isnan())

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
        code_size=n_active if plan.dense or code.size is None else code.size,
    )


def clip_factor(squared_norm: Tensor, largest: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_."""
    return (largest / (squared_norm.sqrt() + 1e-6)).clamp(max=1)
