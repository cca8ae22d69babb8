"""The best formulation of the step in stock PyTorch ops: sparse after the selection, torch's fused Adam, no C++ of ours."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class StockStep:
    """The same step as `plain.PlainStep`: call it with x, get the FVU before the update.

    Decode by embedding_bag, the gradient of the activations by sampled_addmm on a CSR pattern, those of the weights by
    embedding_bag over the entries sorted by latent, one output of the encoder that is used again and again.
    """

    def __init__(
        self, params: Sequence[Tensor], k: int, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        self.params = [param.detach().clone().requires_grad_() for param in params]
        self.k = k
        self.adam = torch.optim.Adam(self.params, lr=lr, betas=betas, eps=eps, fused=True)
        self.pre_acts: Tensor | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = (param.detach() for param in self.params)
        (B, k), d_sae = (len(x), self.k), len(b_enc)
        if self.pre_acts is None or self.pre_acts.shape != (B, d_sae):
            self.pre_acts = x.new_empty(B, d_sae)
        centred = x - b_dec
        torch.addmm(b_enc, centred, W_enc.T, out=self.pre_acts)
        acts, indices = self.pre_acts.topk(k, dim=1, sorted=False)
        acts.relu_()
        error = F.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=acts).add_(b_dec).sub_(x)
        variance = (x - x.mean(dim=0)).square_().sum()
        fvu = error.square().sum() / variance

        grad = error * (2 / variance)
        starts = torch.arange(0, B * k + 1, k, device=x.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR layout beta
            pattern = torch.sparse_csr_tensor(starts, indices.flatten(), x.new_zeros(B * k), (B, d_sae))
            grad_acts = torch.sparse.sampled_addmm(pattern, grad, W_dec.T).values() * (acts.flatten() > 0)
        order = indices.flatten().argsort(stable=True)
        tokens = torch.div(order, k, rounding_mode="floor")
        offsets = F.pad(torch.bincount(indices.flatten(), minlength=d_sae).cumsum(0), (1, 0))
        bag = {"offsets": offsets, "mode": "sum", "include_last_offset": True}
        grad_W_dec = F.embedding_bag(tokens, grad, per_sample_weights=acts.flatten()[order], **bag)
        grad_W_dec.addcmul_((grad_W_dec * W_dec).sum(dim=1, keepdim=True), W_dec, value=-1)
        grad_b_enc = torch.zeros_like(b_enc).index_add_(0, indices.flatten(), grad_acts)
        self.params[0].grad = F.embedding_bag(tokens, centred, per_sample_weights=grad_acts[order], **bag)
        self.params[1].grad = grad_b_enc
        self.params[2].grad = grad_W_dec
        self.params[3].grad = grad.sum(dim=0) - grad_b_enc @ W_enc
        self.adam.step()
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        return fvu
