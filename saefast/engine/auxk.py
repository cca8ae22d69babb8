"""AuxK: dead latents learn to explain what the others leave (Gao et al. 2024, arXiv 2406.04093, section 2.4).

    e     = x - x_hat, a constant
    e_hat = sum over the k_aux largest pre-activations among the dead latents of act * W_dec row
    loss  = ||e_hat - e||^2 / ||e - mean(e)||^2

The activations go through ReLU unless `auxk_relu` is False (SAELens). Where the code is chosen by the norm of the decoder
row, so are they. With `auxk_detached` False e is no constant (llamascopium), so that x_hat learns from this loss too.

k_aux is large and the dead are few, so dense products over their compacted rows beat the sparse ops. Unlike sparsify
(1.3.3), the gradient reaches the encoder; unlike openai's code, b_dec is not added to e_hat (the paper's form).

How many latents are dead is known on the device only, but shapes must be known on the host. It is asked once in a while: a
latent can be dead within the next n tokens only if it is silent for threshold - n already, so those are counted
(`can_be_dead`) and room is made for all of them. It is never too small. On a GPU the count that an interval needs is asked
for one interval before, so that nothing waits for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.engine.architecture import Step
from saefast.engine.plan import Plan
from saefast.engine.stages import Batch
from saefast.reference import Aux
from saefast.storage import Weights, positive


class Revival(NamedTuple):
    """AuxK of a batch."""

    loss: Tensor | None = None  # [] unweighted; 0 if nothing is dead, None where AuxK is left out
    weighted: Tensor | None = None  # [] what it adds to the loss
    grads: Aux | None = None  # alpha times its gradients
    error: Tensor | None = (
        None  # [B, D_out]: what it adds to the error of x_hat, where that is no constant to it
    )


class Dead(NamedTuple):
    """The dead latents, compacted."""

    latents: Tensor  # [C] int64; the first `number` are the dead in ascending order, the rest is latent 0
    number: Tensor  # [] int64
    slots: Tensor  # [F] int32: the place of each latent in `latents`, -1 if it is not dead


def can_be_dead(num_tokens_since_fired: Tensor, threshold: int, tokens_ahead: int) -> Tensor:
    """[] int64: how many latents can be dead before `tokens_ahead` more tokens were seen."""
    return (num_tokens_since_fired >= threshold - tokens_ahead).sum()


def capacity(num_tokens_since_fired: Tensor, threshold: int, tokens_ahead: int) -> int:
    """Room for all latents that can be dead before `tokens_ahead` more tokens were seen. Waits for the device."""
    return int(can_be_dead(num_tokens_since_fired, threshold, tokens_ahead))


def rounded(n: int, d_sae: int) -> int:
    """Room for n latents: 128 times a power of two, so that there are few different shapes; all latents at most."""
    return n and min(d_sae, 128 << max(0, (n - 1).bit_length() - 7))


def find_dead(num_tokens_since_fired: Tensor, threshold: int, capacity: int) -> Dead:
    dead = num_tokens_since_fired >= threshold
    places = dead.cumsum(0) - 1
    listed = dead & (places < capacity)
    slots = places.masked_fill(~listed, -1)
    # every latent writes its number to its place, those that have none to one past the end
    latents = places.new_zeros(capacity + 1)
    numbers = torch.arange(len(dead), dtype=torch.int64, device=dead.device)
    latents.scatter_(0, places.masked_fill(~listed, capacity), numbers)
    return Dead(latents[:capacity], listed.sum(), slots.to(torch.int32))


def largest(scores: Tensor, k: int, count: Tensor) -> Tensor:
    """[B, C] -> [B, C]: 1 at the k largest of the first `count` [] columns of each row, 0 elsewhere."""
    counted = torch.arange(scores.shape[1], dtype=torch.int64, device=scores.device) < count
    chosen = scores.masked_fill(~counted, -torch.inf).topk(min(k, scores.shape[1]), sorted=False).indices
    return torch.zeros_like(scores).scatter_(1, chosen, 1.0) * counted


def revive(step: Step, batch: Batch, error: Tensor, active: Callable[[], Tensor]) -> Revival:
    """error [B, D_out]: of the reconstruction. active: gives the latents that are active in this batch, [F] bool."""
    plan, train, silent_for = step.plan, step.plan.train, step.silent_for
    if not plan.dead_capacity:
        return Revival()
    if train.count_before_auxk:
        silent_for = (silent_for + len(error)).masked_fill(active(), 0)
    dead = find_dead(silent_for, train.dead_feature_threshold, plan.dead_capacity)
    left: list[Tensor] | None = None if train.auxk_detached else []
    loss, grads = auxk(step.ops, step.weights, batch.centred, error, dead, plan, batch.loss_scale, left)
    if left is None:
        return Revival(loss, train.auxk_alpha * loss, grads)
    share = train.auxk_alpha * (dead.number > 0).to(
        error.dtype
    )  # the gradient of x_hat is that of both errors
    return Revival(loss, train.auxk_alpha * loss, grads, share * torch.cat(left))


def auxk(
    ops: Backend,
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    dead: Dead,
    plan: Plan,
    loss_scale: Tensor,
    left: list[Tensor] | None = None,
) -> tuple[Tensor, Aux]:
    """centred [B, D], error [B, D_out] -> loss [] (unweighted; 0 if nothing is dead), alpha times its gradients.

    loss_scale []: what the main loss multiplies its squared error by, for auxk_scale "loss".
    left: takes the errors e_hat - e, in pieces that make [B, D_out].
    """
    W_enc, W_dec = weights.enc.shadow[dead.latents], weights.dec.shadow[dead.latents]
    b_enc, no_bias = weights.b_enc.value[dead.latents], torch.zeros_like(weights.b_dec.value)
    rows = plan.rows_at_once(len(centred))
    norms = W_dec.norm(dim=1, dtype=b_enc.dtype).to(W_dec.dtype) if plan.sae.scale_by_norm else None

    def piece(x: Tensor, off: Tensor) -> tuple[Tensor, ...]:
        """-> squared error, and the gradients in units of the error, of some rows."""
        pre_acts = torch.addmm(b_enc.to(x.dtype), x, W_enc.T)
        if plan.train.auxk_relu:
            listed = ops.keep_topk(pre_acts if norms is None else pre_acts * norms, plan.k_aux, dead.number)
            acts = listed if norms is None else listed / positive(norms)
        else:
            listed = largest(pre_acts if norms is None else pre_acts * norms, plan.k_aux, dead.number)
            acts = pre_acts * listed
        aux_error, squares = ops.dense_error(acts, W_dec, off, sign=-1.0)
        if left is not None:
            left.append(aux_error)
        grad_acts = ops.dense_grad_acts(aux_error, W_dec, listed, squares.new_zeros(()))
        grad_W_enc, grad_W_dec = ops.outer_sum(grad_acts, x), ops.outer_sum(acts, aux_error)
        return squares.sum(), grad_W_enc, grad_acts.sum(dim=0, dtype=b_enc.dtype), grad_W_dec

    first, *others = zip(centred.split(rows), error.split(rows), strict=True)
    sums = piece(*first)
    for part in others:
        for whole, added in zip(sums, piece(*part), strict=True):
            whole += added
    squares, grad_W_enc, grad_b_enc, grad_W_dec = sums

    if plan.train.auxk_scale == "residual":
        _, variance = ops.centre(error, no_bias, error.dtype)
        scale = 1 / variance
    else:
        scale = loss_scale
    if plan.train.auxk_ramp:
        scale = scale * (dead.number.to(scale.dtype) / plan.k_aux).clamp_max(1)
    loss = (squares * scale).masked_fill(dead.number == 0, 0.0)
    scale = 2 * plan.train.auxk_alpha * scale
    grad_b_enc = grad_b_enc * scale
    aux = Aux(
        slots=dead.slots,
        W_enc=grad_W_enc.mul_(scale),
        b_enc=grad_b_enc,
        W_dec=grad_W_dec.mul_(scale),
        b_dec=-(grad_b_enc @ W_enc.to(b_enc.dtype)) if plan.sae.pre_bias else no_bias,
    )
    return loss, aux
