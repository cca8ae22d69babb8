"""The stages of a step that a sparse code and one kept as a matrix share: centring, the update of what has gradients, and
the counters."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architecture import Architecture, Step
from saefast.engine.numbers import number
from saefast.engine.state import State
from saefast.reference import Grads

# In place of the fused Adam: gets the gradients, those of the extra parameters, and a factor for both (of clipping; NaN:
# change nothing).
OptimizerStep = Callable[[Grads, dict[str, Tensor], Tensor], None]


class Metrics(NamedTuple):
    """What one step found before it updated: 0-dimensional tensors on the device, so that nothing waits for them."""

    loss: Tensor  # reconstruction + auxk_alpha * auxk_loss + penalty; not finite: the step changed no weight
    fvu: Tensor
    l0: Tensor  # mean number of active latents per token
    dead_frac: Tensor  # share of latents not active for dead_feature_threshold tokens
    auxk_loss: Tensor  # unweighted; 0 when nothing is dead
    penalty: Tensor  # what the sparsity penalties add to the loss
    grad_norm: Tensor  # global, before clipping
    code_size: Tensor  # entries of the sparse code; more than code_capacity: some were left out


class Batch(NamedTuple):
    x: Tensor  # [B, D_in]
    centred: Tensor  # [B, D_in] in the dtype of the products: less b_dec where that is subtracted
    target: Tensor  # [B, D_out]: what the decoder is to give
    variance: Tensor  # []
    of_mse: Tensor | None  # []: the loss is this times the squared error; None: 1 / variance

    @property
    def loss_scale(self) -> Tensor:
        return 1 / self.variance if self.of_mse is None else self.of_mse


def centre(step: Step, x: Tensor) -> Batch:
    """x: [B, D_in], of a transcoder [B, D_in + D_out]."""
    ops, plan, b_dec, d_in = step.ops, step.plan, step.weights.b_dec.value, step.weights.enc.weight.shape[1]
    x, target = x[:, :d_in].contiguous(), x[:, d_in:].contiguous() if x.shape[1] > d_in else None
    subtracted = b_dec if plan.sae.pre_bias else x.new_zeros(d_in)
    centred, variance = ops.centre(x, subtracted, plan.compute_dtype)
    if target is None:
        target = x
    else:
        _, variance = ops.centre(target, torch.zeros_like(b_dec), plan.compute_dtype)
        if plan.sae.skip:
            target = target - x @ step.extra["W_skip"].value.to(x.dtype).T
    of_mse = None if plan.train.loss == "fvu" else step.c.loss.to(variance.dtype)
    return Batch(x, centred, target, variance, of_mse)


def grad_of_skip(step: Step, batch: Batch, error: Tensor, grad_scale: Tensor) -> dict[str, Tensor]:
    """The gradient of a skip transcoder's W_skip, by name; empty for others."""
    if not step.plan.sae.skip:
        return {}
    wide = torch.promote_types(error.dtype, torch.float32)
    return {"W_skip": grad_scale * (error.to(wide).T @ batch.x.to(wide))}


def squared_norm_of(
    step: Step, arch: Architecture, extra_grads: dict[str, Tensor], squared: Tensor
) -> Tensor:
    """squared [] of the four parameters -> that of all; what is in the units of the data counts in those of the run."""
    bias_norm, train = number(step.numbers, "bias_norm"), step.plan.train
    for name, grad in extra_grads.items():
        unit = bias_norm if arch.in_data_units(name, train) else 1
        squared = squared + (unit * grad).square().sum()
    return squared


def apply_grads_(
    step: Step,
    arch: Architecture,
    grads: Grads | None,
    extra_grads: dict[str, Tensor],
    squared: Tensor,
    grad_scale: Tensor,
    optimizer: OptimizerStep | None,
) -> None:
    """Clip, and update what has gradients: the four parameters (None: they are updated already) and the extra ones."""
    if grads is None and not extra_grads:
        return
    factor, largest = torch.ones_like(grad_scale), step.plan.train.grad_clip
    if largest is not None:
        factor = clip_factor(squared, largest)
    factor = torch.where(grad_scale.isnan(), grad_scale, factor)
    if optimizer is not None:
        assert grads is not None
        optimizer(grads, extra_grads, factor)
        return
    if grads is not None:
        step.ops.adam_rows_(step.weights, grads, factor, step.numbers, step.counter)
    adam_extra_(step, arch, extra_grads, factor)


def adam_extra_(step: Step, arch: Architecture, grads: dict[str, Tensor], factor: Tensor) -> None:
    """Adam on the extra parameters, with `factor` times the gradients; NaN changes nothing. Nothing waits."""
    valid, train, c = ~factor.isnan(), step.plan.train, step.c
    for name, grad in grads.items():
        if name in step.plan.frozen:
            continue
        value, m, v = step.extra[name]

        def of(field: str, like: Tensor = m) -> Tensor:
            return number(step.numbers, field).to(like.dtype)

        in_units = arch.in_data_units(name, train)
        lr, eps = (c.lr_bias, "eps_bias") if in_units else (c.lr, "eps")
        grad = (grad * factor).to(m.dtype)
        new_m = m + of("beta1_rest") * (grad - m)
        new_v = of("beta2") * v + of("beta2_rest") * grad.square()
        denominator = (new_v * of("correction2")).sqrt() + number(step.numbers, eps)
        moved = value - lr * of("correction1") * new_m / denominator
        if (least := arch.smallest_value(name, train)) is not None:
            moved = moved.clamp_min(least)
        for old, new in ((value, moved), (m, new_m), (v, new_v)):
            old.copy_(torch.where(valid, new, old))


def clip_factor(squared_norm: Tensor, largest: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_."""
    return (largest / (squared_norm.sqrt() + 1e-6)).clamp(max=1)


def tally(
    step: Step,
    state: State,
    fired: Tensor,
    n_tokens: int,
    found: tuple[Tensor, Tensor, Tensor],
    auxk_loss: Tensor | None = None,
    penalty: Tensor | None = None,
    code_size: Tensor | None = None,
) -> Metrics:
    """Count, and say what the step found, see `saefast.reference.tally_`.

    fired [F]: tokens of the batch in which each latent is active; found: loss, FVU, squared norm of the gradients.
    """
    counts = state.num_tokens_since_fired, state.fired, fired, step.plan.train.dead_feature_threshold
    return Metrics(*step.ops.tally_(*counts, n_tokens, *found, auxk_loss, penalty, code_size))
