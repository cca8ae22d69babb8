"""The oracle: the same training step as dense formulas under autograd, with torch.optim.Adam. No op of ours."""

import torch
from torch import Tensor


def topk_mask(pre_acts: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row, ties to the smaller index."""
    order = pre_acts.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(pre_acts).scatter(1, order, 1.0)


def forward(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    pre_acts = (x - b_dec) @ W_enc.T + b_enc
    return (pre_acts * topk_mask(pre_acts.detach(), k)).relu() @ W_dec + b_dec


def fvu(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).square().sum() / (x - x.mean(dim=0)).square().sum()


def auxk(
    x: Tensor,
    x_hat: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    dead: Tensor,
    k_aux: int,
):
    residual = (x - x_hat).detach()
    pre_acts = ((x - b_dec) @ W_enc.T + b_enc).masked_fill(~dead, -torch.inf)
    k_aux = min(k_aux, int(dead.sum()))
    mask = topk_mask(pre_acts.detach(), k_aux)
    e_hat = (pre_acts.masked_fill(~dead, 0) * mask).relu() @ W_dec
    return fvu(e_hat, residual)


class Trainer:
    """Dense autograd + torch.optim.Adam + decoder-gradient projection + unit-norm decoder + AuxK + exact clipping."""

    def __init__(
        self, params, k, lr, eps, betas=(0.9, 0.999), bias_scale=1.0, clip=None, aux=None, fused=False
    ):
        self.params = [p.detach().clone().requires_grad_() for p in params]
        W_enc, b_enc, W_dec, b_dec = self.params
        groups = [
            {"params": [W_enc, W_dec], "lr": lr, "eps": eps},
            {"params": [b_enc, b_dec], "lr": lr / bias_scale, "eps": eps * bias_scale},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=betas, fused=fused)
        self.k, self.clip, self.aux = k, clip, aux
        self.since_fired = torch.zeros(len(b_enc), dtype=torch.int64)

    def set_lr(self, lr, bias_scale=1.0):
        for group, scale in zip(self.optimizer.param_groups, (1.0, bias_scale)):
            group["lr"] = lr / scale

    def step(self, x: Tensor) -> float:
        W_enc, b_enc, W_dec, b_dec = self.params
        x_hat = forward(x, *self.params, self.k)
        loss = main = fvu(x_hat, x)
        if self.aux:  # (alpha, k_aux, threshold)
            dead = self.since_fired >= self.aux[2]
            if dead.any():
                loss = main + self.aux[0] * auxk(x, x_hat, *self.params, dead, self.aux[1])
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.params, self.clip)
            pre_acts = (x - b_dec) @ W_enc.T + b_enc
            fired = ((pre_acts * topk_mask(pre_acts, self.k)) > 0).any(dim=0)
            self.since_fired += len(x)
            self.since_fired[fired] = 0
        self.optimizer.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return main.item()
