"""One optimizer step without an autograd graph: forward, backward, update. The same file for every backend and
architecture.

Nothing here waits for the device, and every shape is known beforehand: on a GPU the whole step is one CUDA graph.
"""

from torch import Tensor

from saefast.backend import Backend
from saefast.engine.architecture import Step
from saefast.engine.architectures import architecture_of
from saefast.engine.auxk import revive
from saefast.engine.branch import Branch
from saefast.engine.code import Code, active_latents
from saefast.engine.dense_step import dense_step
from saefast.engine.entry_grads import EntryGrads, entry_grads
from saefast.engine.numbers import coefficients, number
from saefast.engine.plan import Plan
from saefast.engine.reconstruct import reconstruct
from saefast.engine.stages import (
    Metrics,
    OptimizerStep,
    apply_grads_,
    centre,
    grad_of_skip,
    squared_norm_of,
    tally,
)
from saefast.engine.state import State

__all__ = ["Metrics", "train_step"]


def train_step(
    ops: Backend, state: State, x: Tensor, plan: Plan, numbers: Tensor, optimizer: OptimizerStep | None = None
) -> Metrics:
    """Train on x [B, d_in], in place; of a transcoder x is [B, d_in + d_out], with the target behind the input.

    Args:
        ops: a backend, see `saefast.load_backend`.
        numbers: of this step, see `saefast.engine.numbers`, on the device of the state.
        optimizer: in place of the fused Adam, see `saefast.engine.stages.OptimizerStep`.
    """
    arch, train, step = architecture_of(plan.sae), plan.train, step_of(ops, state, plan, numbers)
    state.counter += 1
    batch = centre(step, x)
    if plan.dense:
        return dense_step(step, state, arch, batch, optimizer)

    code = arch.select(step, batch.centred)
    if state.smallest is not None:
        state.smallest.copy_(arch.smallest(code))
    branch = Branch(x)
    if alone := arch.update_finds_gradient(
        plan
    ):  # then grouping needs nothing else, and runs beside the decoder
        with branch:
            entries = without_penalty(step, code)
    run = reconstruct(step, code, batch.target)
    _, loss, grad_scale, fvu = ops.losses(run.weighted, batch.variance, batch.of_mse)
    if plan.nested:
        fvu = run.squares / batch.variance
    aux = revive(step, batch, run.whole, lambda: active_latents(run.code, run.active(), len(step.silent_for)))
    if aux.error is not None:
        run = run._replace(error=run.error + aux.error)
    if aux.weighted is not None:
        loss, grad_scale = loss + aux.weighted, grad_scale + 0 * aux.weighted  # 0 times NaN or Inf is NaN
    branch.join()
    if not alone:
        entries = entry_grads(step, arch, run, batch.centred, batch.target, grad_scale)
    if entries.penalty is not None:
        loss, grad_scale = loss + entries.penalty, grad_scale + 0 * entries.penalty
    extra_grads = entries.extra | grad_of_skip(step, batch, run.error, grad_scale)

    grads, groups = None, entries.groups
    assert groups is not None
    code_of_error = run.code.acts, *run.code.layout
    inputs = step.weights, batch.centred, run.error, *code_of_error, groups, grad_scale, aux.grads, numbers
    if train.grad_clip is None and optimizer is None:
        squared = ops.update_(*inputs, state.counter, entries.given)
    else:
        grads, squared = ops.row_grads(*inputs, entries.given)
    squared = squared_norm_of(step, arch, extra_grads, squared)
    apply_grads_(step, arch, grads, extra_grads, squared, grad_scale, optimizer)
    arch.observe_(step, arch.seen(step, code), grad_scale)

    found = loss, fvu, squared
    return tally(step, state, entries.fired, len(x), found, aux.loss, entries.penalty, code.size)


def step_of(ops: Backend, state: State, plan: Plan, numbers: Tensor) -> Step:
    """What the stages of a step read."""
    c, silent_for = coefficients(numbers), state.num_tokens_since_fired
    return Step(ops, state.weights, state.extra, plan, numbers, c, silent_for, state.counter)


def without_penalty(step: Step, code: Code) -> EntryGrads:
    """Where the update finds the gradients of the entries by itself, with at most a constant of an L1 penalty."""
    indices, row_offsets = code.layout
    groups = step.ops.group_by_latent(code.acts, indices, len(step.silent_for), row_offsets)
    penalty = number(step.numbers, "l1") * code.acts.sum() if step.plan.train.penalty == "l1" else None
    return EntryGrads(None, groups, groups[0].diff(), {}, penalty)
