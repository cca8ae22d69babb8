"""Forward and backward of a code kept as a matrix [B, F], `Plan.micro_batch_size` rows at a time.

Every part of the loss and of its gradients is a sum over tokens once three numbers of the whole batch are known: its
variance, its number of rows, and (for the penalty "target_l0") its mean L0. So the pieces give what the whole batch
gives, up to the rounding of sums, and only one piece of what is as wide as the dictionary is in memory.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architectures import jumprelu
from saefast.engine.backward import entry_grads
from saefast.engine.forward import Forward, reconstruct
from saefast.engine.plan import Coefficients, Plan
from saefast.engine.state import State
from saefast.reference import Aux, Given, Grads, project_rows_, squared_norm
from saefast.storage import Weights, load_weight, row_norms


class DensePass(NamedTuple):
    """Of a whole batch."""

    error: Tensor  # x_hat - target [B, D_out]
    squares: Tensor  # [] its squared norm
    penalty: Tensor  # []
    fired: Tensor  # [F]: tokens in which the latent is active
    seen: Tensor | None  # what the architecture observes, see `train_step`
    extra: dict[str, Tensor]  # gradients of the extra parameters
    grads: Grads  # of the four, without AuxK, before the projection


def dense_pass(
    ops: ModuleType, arch: ModuleType, state: State, centred: Tensor, goal: Tensor, plan: Plan, c: Coefficients,
    grad_scale: Tensor,
) -> DensePass:  # fmt: skip
    """centred [B, D_in], goal [B, D_out]; grad_scale []: of the error."""
    weights, extra, rows = state.weights, state.extra, plan.micro_batch_size or max(len(centred), 1)
    pieces = list(zip(centred.split(rows), goal.split(rows), strict=True))
    mean_l0 = None
    if plan.penalty == "target_l0" and len(pieces) > 1:
        codes = ((arch.select(ops, weights, extra, x, plan, c), len(x)) for x, _ in pieces)
        active = [jumprelu.number_open(code, extra, plan, n_tokens) for code, n_tokens in codes]
        mean_l0 = torch.stack(active).sum().to(c.sparsity.dtype) / len(centred)

    def one(x: Tensor, target: Tensor) -> DensePass:
        code = arch.select(ops, weights, extra, x, plan, c)._replace(mean_l0=mean_l0)
        run = reconstruct(ops, code, plan, weights.dec.shadow, weights.b_dec.value, target)
        found = entry_grads(ops, arch, state, run, plan, c, grad_scale, target, x)
        grads = products(ops, weights, x, run, found.given, grad_scale, plan)
        seen = arch.seen(code, plan, c) if hasattr(arch, "seen") else None
        return DensePass(run.error, run.squares, found.penalty, found.fired, seen, found.extra, grads)

    simple = plan.activation == "relu" and plan.penalty in ("none", "l1")
    # the Triton kernel adds one number, not one of each latent
    constant = simple and (not plan.norm_weighted or (ops.NAME != "triton" and plan.layers == 1))

    def of(x: Tensor, target: Tensor) -> DensePass:
        return plain_relu(ops, weights, x, target, plan, c, grad_scale) if constant else one(x, target)

    first, *others = pieces
    total = of(*first)
    errors = [total.error]
    for piece in others:
        part = of(*piece)
        errors.append(part.error)
        for whole, grad in zip(total.grads, part.grads, strict=True):
            whole += grad
        total = total._replace(
            squares=total.squares + part.squares,
            penalty=total.penalty + part.penalty,
            fired=total.fired + part.fired,
            seen=None if part.seen is None or total.seen is None else total.seen + part.seen,
            extra={name: grad + part.extra[name] for name, grad in total.extra.items()},
        )
    return total._replace(error=torch.cat(errors) if others else errors[0])


def plain_relu(
    ops: ModuleType, weights: Weights, centred: Tensor, target: Tensor, plan: Plan, c: Coefficients, grad_scale: Tensor
) -> DensePass:  # fmt: skip
    """ReLU without a penalty or with one that is linear in the activations, which the ops add in passing: at first half of
    all latents are active, and each pass over [B, F] less counts."""
    b_enc, W_dec = weights.b_enc.value, weights.dec.shadow
    acts, total, fired = ops.relu_encode(centred, weights.enc.shadow, b_enc)
    error, squares = ops.dense_error(acts, W_dec, (target - weights.b_dec.value).to(plan.compute_dtype))
    grad_W_dec = ops.outer_sum(acts, error).mul_(grad_scale)
    slope = c.sparsity * c.scale if plan.penalty == "l1" else torch.zeros_like(c.sparsity)
    weight, penalty = slope, slope * total
    if plan.norm_weighted:
        norms, sums = row_norms(weights.dec).to(b_enc.dtype), acts.sum(dim=0, dtype=b_enc.dtype)
        weight, penalty = slope * norms, slope * (norms * sums).sum()
        pull = slope * sums / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        grad_W_dec += pull[:, None] * load_weight(weights.dec)
    in_units = ops.dense_grad_acts(error, W_dec, acts, (weight / grad_scale).to(b_enc.dtype))
    grad_W_enc = ops.outer_sum(in_units, centred).mul_(grad_scale)
    grad_b_enc = in_units.sum(dim=0, dtype=b_enc.dtype) * grad_scale
    grad_b_dec = error.sum(dim=0, dtype=b_enc.dtype) * grad_scale
    if plan.pre_bias:
        grad_b_dec -= grad_b_enc @ load_weight(weights.enc)
    grads = grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec
    return DensePass(error, squares.sum(), penalty, fired, None, {}, grads)


def products(
    ops: ModuleType, weights: Weights, centred: Tensor, run: Forward, given: Given, grad_scale: Tensor, plan: Plan
) -> Grads:  # fmt: skip
    """The gradients of the four parameters. In units of the error until the end: 16-bit formats."""
    n_tokens, dtype = len(centred), weights.b_enc.value.dtype
    in_units = (given.grad_pre / grad_scale).to(centred.dtype)
    grad_W_enc = ops.outer_sum(in_units, centred).mul_(grad_scale).addr_(given.push, given.push_row)
    grad_W_dec = ops.outer_sum(run.code.acts, run.error).mul_(grad_scale)
    blocks = load_weight(weights.dec).unflatten(1, (given.pull.shape[1], -1))
    grad_W_dec += (given.pull[:, :, None] * blocks).flatten(1)
    grad_b_enc = given.grad_pre.sum(dim=0, dtype=dtype) + given.push * n_tokens
    grad_b_dec = run.error.sum(dim=0, dtype=dtype) * grad_scale
    if plan.pre_bias:
        grad_b_dec -= grad_b_enc @ load_weight(weights.enc)
    return grad_W_enc, grad_b_enc + given.bias, grad_W_dec, grad_b_dec


def with_auxk(
    grads: Grads, aux: Aux | None, weights: Weights, plan: Plan, bias_norm: Tensor
) -> tuple[Grads, Tensor]:
    """As `row_grads` leaves them: what AuxK adds, W_dec's part along its rows taken out; and the squared norm."""
    grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec = grads
    if aux is not None:  # the slot -1 takes a row of zeros
        for whole, part in ((grad_W_enc, aux.W_enc), (grad_b_enc, aux.b_enc), (grad_W_dec, aux.W_dec)):
            whole += torch.cat([part, torch.zeros_like(part[:1])])[aux.slots.long()]
        grad_b_dec += aux.b_dec
    if plan.unit_norm:
        project_rows_(grad_W_dec, load_weight(weights.dec))
    return grads, squared_norm(grads, bias_norm)
