"""A step whose code is kept as a matrix [B, F], `TrainConfig.micro_batch_size` rows at a time.

Every part of the loss and of its gradients is a sum over tokens once three numbers of the whole batch are known: its
variance, its number of rows, and (for the penalty "target_l0") its mean L0. So the pieces give what the whole batch
gives, up to the rounding of sums, and only one piece of what is as wide as the dictionary is in memory.
"""

import torch
from torch import Tensor

from saefast.engine.architecture import Architecture, Step, Whole
from saefast.engine.auxk import revive
from saefast.engine.entry_grads import entry_grads
from saefast.engine.numbers import number
from saefast.engine.reconstruct import Forward, reconstruct
from saefast.engine.stages import (
    Batch,
    Metrics,
    OptimizerStep,
    apply_grads_,
    grad_of_skip,
    squared_norm_of,
    tally,
)
from saefast.engine.state import State
from saefast.reference import Aux, Given, Grads, project_rows_, squared_norm
from saefast.storage import load_weight


def dense_step(
    step: Step, state: State, arch: Architecture, batch: Batch, optimizer: OptimizerStep | None
) -> Metrics:
    """The rest of `saefast.engine.step.train_step` after the centring: the gradients come before AuxK here, and exist."""
    whole = whole_pass(step, arch, batch)
    aux = revive(step, batch, whole.error, lambda: whole.fired > 0)
    _, loss, grad_scale, fvu = step.ops.losses(whole.squares, batch.variance, batch.of_mse)
    if aux.weighted is not None:
        loss, grad_scale = loss + aux.weighted, grad_scale + 0 * aux.weighted  # 0 times NaN or Inf is NaN
    extra_grads = whole.extra | grad_of_skip(step, batch, whole.error, grad_scale)
    loss, grad_scale = loss + whole.penalty, grad_scale + 0 * whole.penalty

    grads, squared = with_auxk(step, whole.grads, aux.grads)
    squared = squared_norm_of(step, arch, extra_grads, squared)
    apply_grads_(step, arch, grads, extra_grads, squared, grad_scale, optimizer)
    arch.observe_(step, whole.seen, grad_scale)

    found = loss, fvu, squared
    return tally(step, state, whole.fired, len(batch.x), found, aux.loss, whole.penalty)


def whole_pass(step: Step, arch: Architecture, batch: Batch) -> Whole:
    """Forward and backward of all rows, some at a time."""
    rows, grad_scale = step.plan.rows_at_once(len(batch.centred)), 2 * batch.loss_scale
    mean_l0 = arch.mean_l0(step, batch.centred, rows)
    first, *others = zip(batch.centred.split(rows), batch.target.split(rows), strict=True)

    def one(centred: Tensor, target: Tensor) -> Whole:
        found = arch.whole_pass(step, centred, target, grad_scale)
        return found or general_pass(step, arch, centred, target, grad_scale, mean_l0)

    total = one(*first)
    errors = [total.error]
    for piece in others:
        part = one(*piece)
        errors.append(part.error)
        for grad, added in zip(total.grads, part.grads, strict=True):
            grad += added
        total = total._replace(
            squares=total.squares + part.squares,
            penalty=total.penalty + part.penalty,
            fired=total.fired + part.fired,
            seen=None if part.seen is None or total.seen is None else total.seen + part.seen,
            extra={name: grad + part.extra[name] for name, grad in total.extra.items()},
        )
    return total._replace(error=torch.cat(errors) if others else errors[0])


def general_pass(
    step: Step,
    arch: Architecture,
    centred: Tensor,
    target: Tensor,
    grad_scale: Tensor,
    mean_l0: Tensor | None,
) -> Whole:
    code = arch.select(step, centred)._replace(mean_l0=mean_l0)
    run = reconstruct(step, code, target)
    found = entry_grads(step, arch, run, centred, target, grad_scale)
    assert found.given is not None and found.penalty is not None
    grads = products(step, centred, run, found.given, grad_scale)
    seen = arch.seen(step, code)
    return Whole(run.error, run.squares.sum(), found.penalty, found.fired, seen, found.extra, grads)


def products(step: Step, centred: Tensor, run: Forward, given: Given, grad_scale: Tensor) -> Grads:
    """The gradients of the four parameters. In units of the error until the end: 16-bit formats."""
    ops, weights = step.ops, step.weights
    n_tokens, dtype = len(centred), weights.b_enc.value.dtype
    in_units = (given.grad_pre / grad_scale).to(centred.dtype)
    grad_W_enc = ops.outer_sum(in_units, centred).mul_(grad_scale).addr_(given.push, given.push_row)
    grad_W_dec = ops.outer_sum(run.code.acts, run.error).mul_(grad_scale)
    blocks = load_weight(weights.dec).unflatten(1, (given.pull.shape[1], -1))
    grad_W_dec += (given.pull[:, :, None] * blocks).flatten(1)
    grad_b_enc = given.grad_pre.sum(dim=0, dtype=dtype) + given.push * n_tokens
    grad_b_dec = run.error.sum(dim=0, dtype=dtype) * grad_scale
    if step.plan.sae.pre_bias:
        grad_b_dec -= grad_b_enc @ load_weight(weights.enc)
    return grad_W_enc, grad_b_enc + given.bias, grad_W_dec, grad_b_dec


def with_auxk(step: Step, grads: Grads, aux: Aux | None) -> tuple[Grads, Tensor]:
    """As `row_grads` leaves them: what AuxK adds, W_dec's part along its rows taken out; and the squared norm."""
    grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec = grads
    if aux is not None:  # the slot -1 takes a row of zeros
        for whole, part in ((grad_W_enc, aux.W_enc), (grad_b_enc, aux.b_enc), (grad_W_dec, aux.W_dec)):
            whole += torch.cat([part, torch.zeros_like(part[:1])])[aux.slots.long()]
        grad_b_dec += aux.b_dec
    if step.plan.train.unit_norm:
        project_rows_(grad_W_dec, load_weight(step.weights.dec))
    return grads, squared_norm(grads, number(step.numbers, "bias_norm"))
