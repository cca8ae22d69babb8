"""One optimizer step without an autograd graph: forward, backward, update. The same file for every backend."""

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.reference import Params


class Hyper(NamedTuple):
    """What a step needs besides state and data.

    Input normalisation: training on s * x, with s^2 = d_in / E||x||^2, and folding s into the weights afterwards
    leaves W_enc and W_dec as they are and divides b_enc and b_dec by s. FVU does not see s. So the same run in
    the data's own units is this one with the biases' learning rate divided by s and their epsilon multiplied by
    s: nothing has to be folded, and the SAE is usable at every step.
    """

    k: int
    lr: float
    betas: tuple[float, float]
    eps: float
    input_scale: float  # s; 1 without input normalisation
    grad_clip: float | None
    auxk_alpha: float
    k_aux: int
    dead_feature_threshold: int


@dataclass
class State:
    """What a step changes, all on one device."""

    params: Params
    exp_avg: Params
    exp_avg_sq: Params
    num_tokens_since_fired: Tensor  # [F] int64
    fired: Tensor  # [F] int64, tokens in which the latent was active, of the last `fired_tokens`
    fired_tokens: int = 0
    step: int = 0

    @classmethod
    def fresh(cls, params: Params) -> "State":
        exp_avg, exp_avg_sq = (Params(*(torch.zeros_like(p) for p in params)) for _ in range(2))
        since, fired = (torch.zeros_like(params.b_enc, dtype=torch.int64) for _ in range(2))
        return cls(params, exp_avg, exp_avg_sq, since, fired)


class Metrics(NamedTuple):
    """Of one step, before its update. Tensors are 0-dimensional and on the device, so nothing waits for them."""

    loss: Tensor  # fvu + auxk_alpha * auxk_loss
    fvu: Tensor
    l0: Tensor  # mean number of active latents per token
    dead_frac: Tensor  # share of latents not active for dead_feature_threshold tokens
    auxk_loss: Tensor  # unweighted; 0 when nothing is dead
    grad_norm: Tensor  # global, before clipping
    lr: float


def train_step(ops: ModuleType, state: State, x: Tensor, hyper: Hyper) -> Metrics:
    """Train on x [B, D], in place. `ops` is a backend: see `saefast.load_backend`."""
    params = state.params
    W_enc, b_enc, W_dec, b_dec = params

    top_acts, top_indices = ops.topk(ops.encode(x, W_enc, b_enc, b_dec), hyper.k)
    x_hat = ops.decode(top_acts, top_indices, W_dec, b_dec)
    fvu, grad_x_hat = ops.recon_loss(x_hat, x)

    grad_acts = ops.grad_top_acts(grad_x_hat, W_dec, top_acts, top_indices)
    grads = ops.param_grads(x, params, top_acts, top_indices, grad_x_hat, grad_acts)

    dead = (state.num_tokens_since_fired >= hyper.dead_feature_threshold).nonzero().squeeze(1)
    auxk_loss = torch.zeros_like(fvu)
    if hyper.auxk_alpha and len(dead):
        aux = ops.auxk(x, x_hat, params, dead, hyper.k_aux)
        auxk_loss = aux.loss
        for grad, addend in zip(grads[:3], aux.grads[:3], strict=True):
            grad[dead] += hyper.auxk_alpha * addend  # rows of `dead` are distinct
        grads.b_dec.add_(aux.grads.b_dec, alpha=hyper.auxk_alpha)

    ops.project_rows_(grads.W_dec, W_dec)
    scales = (1.0, hyper.input_scale, 1.0, hyper.input_scale)  # in the order of Params
    grad_norm = torch.stack([grad.norm() / scale for grad, scale in zip(grads, scales, strict=True)]).norm()
    if hyper.grad_clip is not None:
        factor = (hyper.grad_clip / (grad_norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
        for grad in grads:
            grad *= factor

    state.step += 1
    for param, grad, m, v, scale in zip(params, grads, state.exp_avg, state.exp_avg_sq, scales, strict=True):
        lr, eps = hyper.lr / scale, hyper.eps * scale
        ops.adam_(param, grad, m, v, step=state.step, lr=lr, betas=hyper.betas, eps=eps)
    ops.normalize_rows_(W_dec)

    active = top_acts > 0
    fired = torch.bincount(top_indices.flatten(), active.flatten(), minlength=len(b_enc)).long()
    state.fired += fired
    state.fired_tokens += len(x)
    state.num_tokens_since_fired += len(x)
    state.num_tokens_since_fired[fired > 0] = 0
    return Metrics(
        loss=fvu + hyper.auxk_alpha * auxk_loss,
        fvu=fvu,
        l0=active.sum() / len(x),
        dead_frac=torch.tensor(len(dead) / len(b_enc)),
        auxk_loss=auxk_loss,
        grad_norm=grad_norm,
        lr=hyper.lr,
    )
