"""The baseline: a TopK training step as it is usually written, dense activations under autograd and torch's Adam."""

from collections.abc import Sequence

import torch
from torch import Tensor


class PlainStep:
    """The same step as `saefast.engine.step.train_step` in plain PyTorch: call it with x, get the FVU before the update.

    Args:
        params: W_enc [F, D], b_enc [F], W_dec [F, D], b_dec [D]; copied.
        bias_scale: the biases' learning rate is divided and their epsilon multiplied by it (input normalisation).
        auxk: (alpha, k_aux, dead_feature_threshold), or None.
        fused: torch's fused Adam, the fastest it has.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        k: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        bias_scale: float = 1.0,
        auxk: tuple[float, int, int] | None = None,
        fused: bool = True,
    ) -> None:
        self.params = [param.detach().clone().requires_grad_() for param in params]
        W_enc, b_enc, W_dec, b_dec = self.params
        self.k, self.bias_scale, self.auxk = k, bias_scale, auxk
        self.since_fired = torch.zeros(len(b_enc), dtype=torch.int64, device=b_enc.device)
        groups = [
            {"params": [W_enc, W_dec], "lr": lr, "eps": eps},
            {"params": [b_enc, b_dec], "lr": lr / bias_scale, "eps": eps * bias_scale},
        ]
        self.adam = torch.optim.Adam(groups, betas=betas, fused=fused)

    def set_lr(self, lr: float) -> None:
        for group, scale in zip(self.adam.param_groups, (1.0, self.bias_scale), strict=True):
            group["lr"] = lr / scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        W_enc, b_enc, W_dec, b_dec = self.params
        pre_acts = torch.addmm(b_enc, x - b_dec, W_enc.T)
        acts = keep_topk(pre_acts, self.k)
        x_hat = torch.addmm(b_dec, acts, W_dec)
        fvu = ((x_hat - x).square().sum()) / (x - x.mean(dim=0)).square().sum()
        return fvu, pre_acts, acts, x_hat

    def fvu(self, x: Tensor) -> Tensor:
        return self.forward(x)[0]

    def __call__(self, x: Tensor) -> Tensor:
        W_dec = self.params[2]
        if not self.auxk:
            loss = fvu = self.fvu(x)
        else:
            fvu, pre_acts, acts, x_hat = self.forward(x)
            loss = fvu + self.auxk_loss(pre_acts, (x - x_hat).detach())
            self.since_fired += len(x)
            self.since_fired[(acts > 0).any(dim=0)] = 0
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
            self.adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return fvu.detach()

    def auxk_loss(self, pre_acts: Tensor, residual: Tensor) -> Tensor:
        assert self.auxk
        alpha, k_aux, threshold = self.auxk
        dead = (self.since_fired >= threshold).nonzero().squeeze(1)
        if not len(dead):
            return residual.new_zeros(())
        e_hat = keep_topk(pre_acts[:, dead], min(k_aux, len(dead))) @ self.params[2][dead]
        return alpha * (e_hat - residual).square().sum() / (residual - residual.mean(dim=0)).square().sum()


def keep_topk(pre_acts: Tensor, k: int) -> Tensor:
    """pre_acts [B, n] -> the same with ReLU and everything but the k largest of each row set to 0."""
    top_acts, top_indices = pre_acts.topk(k, dim=1)
    return torch.zeros_like(pre_acts).scatter(1, top_indices, top_acts.relu())
