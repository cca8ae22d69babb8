"""AuxK: dead latents learn to explain what the others leave (Gao et al. 2024, arXiv 2406.04093, section 2.4).

    e     = x - x_hat, a constant
    e_hat = sum over the k_aux largest pre-activations among the dead latents of act * W_dec row
    loss  = ||e_hat - e||^2 / ||e - mean(e)||^2

The activations go through ReLU unless `auxk_relu` is False (SAELens). Where the code is chosen by the norm of the decoder
row, so are they. With `auxk_detached` False e is no constant (llamascopium), so that x_hat learns from this loss too.

k_aux is large and the dead are few, so dense products over their compacted rows beat the sparse ops. Unlike sparsify
(1.3.3), the gradient reaches the encoder; unlike openai's code, b_dec is not added to e_hat (the paper's form).

How many latents are dead is known on the device only, but shapes must be known on the host. `capacity` asks once in
a while: a latent can be dead within the next n tokens only if it is silent for threshold - n already, so those are
counted and room is made for all of them. It is never too small, and nothing waits in between.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.plan import Plan
from saefast.reference import Aux
from saefast.storage import Weights


class Dead(NamedTuple):
    """The dead latents, compacted."""

    latents: Tensor  # [C] int64; the first `number` are the dead in ascending order, the rest is latent 0
    number: Tensor  # [] int64
    slots: Tensor  # [F] int32: the place of each latent in `latents`, -1 if it is not dead


def capacity(num_tokens_since_fired: Tensor, threshold: int, tokens_ahead: int, exact: bool) -> int:
    """Room for all latents that can be dead before `tokens_ahead` more tokens were seen. Waits for the device.

    exact: no more than that; else 128 times a power of two, so that there are few different shapes.
    """
    n = int((num_tokens_since_fired >= threshold - tokens_ahead).sum())
    if n == 0 or exact:
        return n
    rounded = 128
    while rounded < n:
        rounded *= 2
    return min(rounded, len(num_tokens_since_fired))


def find_dead(num_tokens_since_fired: Tensor, threshold: int, capacity: int) -> Dead:
    dead = num_tokens_since_fired >= threshold
    places = dead.cumsum(0) - 1
    listed = dead & (places < capacity)
    slots = places.masked_fill(~listed, -1)
    # every latent writes its number to its place, those that have none to one past the end
    latents = places.new_zeros(capacity + 1)
    latents.scatter_(0, places.masked_fill(~listed, capacity), torch.arange(len(dead), device=dead.device))
    return Dead(latents[:capacity], listed.sum(), slots.to(torch.int32))


def largest(scores: Tensor, k: int, count: Tensor) -> Tensor:
    """[B, C] -> [B, C]: 1 at the k largest of the first `count` [] columns of each row, 0 elsewhere."""
    counted = torch.arange(scores.shape[1], device=scores.device) < count
    chosen = scores.masked_fill(~counted, -torch.inf).topk(min(k, scores.shape[1]), sorted=False).indices
    return torch.zeros_like(scores).scatter_(1, chosen, 1.0) * counted


def auxk(
    ops: ModuleType,
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
    rows = plan.micro_batch_size or max(len(centred), 1)
    norms = W_dec.norm(dim=1, dtype=b_enc.dtype).to(W_dec.dtype) if plan.scale_by_norm else None

    def piece(x: Tensor, off: Tensor) -> tuple[Tensor, ...]:
        """-> squared error, and the gradients in units of the error, of some rows."""
        pre_acts = torch.addmm(b_enc.to(x.dtype), x, W_enc.T)
        if plan.auxk_relu:
            listed = ops.keep_topk(pre_acts if norms is None else pre_acts * norms, plan.k_aux, dead.number)
            acts = listed if norms is None else listed / norms
        else:
            listed = largest(pre_acts if norms is None else pre_acts * norms, plan.k_aux, dead.number)
            acts = pre_acts * listed
        aux_error, squares = ops.dense_error(acts, W_dec, off, sign=-1.0)
        if left is not None:
            left.append(aux_error)
        grad_acts = ops.dense_grad_acts(aux_error, W_dec, listed, squares.new_zeros(()))
        return (
            squares.sum(), ops.outer_sum(grad_acts, x), grad_acts.sum(dim=0, dtype=b_enc.dtype),
            ops.outer_sum(acts, aux_error),
        )  # fmt: skip

    first, *others = zip(centred.split(rows), error.split(rows), strict=True)
    sums = piece(*first)
    for part in others:
        for whole, added in zip(sums, piece(*part), strict=True):
            whole += added
    squares, grad_W_enc, grad_b_enc, grad_W_dec = sums

    if plan.auxk_scale == "residual":
        _, variance = ops.centre(error, no_bias, error.dtype)
        scale = 1 / variance
    else:
        scale = loss_scale
    if plan.auxk_ramp:
        scale = scale * (dead.number.to(scale.dtype) / plan.k_aux).clamp_max(1)
    loss = (squares * scale).masked_fill(dead.number == 0, 0.0)
    scale = 2 * plan.auxk_alpha * scale
    grad_b_enc = grad_b_enc * scale
    aux = Aux(
        slots=dead.slots,
        W_enc=grad_W_enc.mul_(scale),
        b_enc=grad_b_enc,
        W_dec=grad_W_dec.mul_(scale),
        b_dec=-(grad_b_enc @ W_enc.to(b_enc.dtype)) if plan.pre_bias else no_bias,
    )
    return loss, aux
