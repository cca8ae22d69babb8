"""Plain PyTorch: a TopK training step as it is usually written, and the best formulation of it in stock ops."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.runs import Pair, Side
from benchmarks.shapes import Shape

KINDS = ("TopK",)  # the trainers that the drop-in is measured for


class PlainStep:
    """Dense activations under autograd, and torch's fused Adam.

    Call it with x [B, d_in]; it returns the FVU before the update.

    Args:
        params: W_enc [d_sae, d_in], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; they are copied.
    """

    def __init__(
        self, params: Sequence[Tensor], k: int, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        self.params = [param.detach().clone().requires_grad_() for param in params]
        self.k = k
        self.adam = torch.optim.Adam(self.params, lr=lr, betas=betas, eps=eps, fused=True)

    def fvu(self, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec, b_dec = self.params
        pre_acts = torch.addmm(b_enc, x - b_dec, W_enc.T)
        top_acts, top_indices = pre_acts.topk(self.k, dim=1)
        acts = torch.zeros_like(pre_acts).scatter(1, top_indices, top_acts.relu())
        x_hat = torch.addmm(b_dec, acts, W_dec)
        return (x_hat - x).square().sum() / (x - x.mean(dim=0)).square().sum()

    def __call__(self, x: Tensor) -> Tensor:
        fvu, W_dec = self.fvu(x), self.params[2]
        self.adam.zero_grad()
        fvu.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
            self.adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return fvu.detach()


class StockStep:
    """The same step as `PlainStep`, sparse after the selection, without any C++ of ours.

    Decode by embedding_bag, the gradient of the activations by sampled_addmm on a CSR pattern, those of the weights by
    embedding_bag over the entries sorted by latent, and one buffer for the pre-activations that is used in every step.
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


def pair(kind: str, shape: Shape, rows: Tensor) -> Pair:
    """The loops of docs/drop-in/pytorch.md."""
    import saefast.autograd
    import saefast.optim

    def parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        W_dec = F.normalize(torch.randn(shape.F, shape.D), dim=1)
        start = W_dec.clone(), torch.zeros(shape.F), W_dec, rows.mean(dim=0)
        return [torch.nn.Parameter(value) for value in start]

    def stock() -> Side:
        W_enc, b_enc, W_dec, b_dec = params = parameters()
        optimizer = torch.optim.Adam(params, lr=1e-3)

        def step(x: Tensor) -> float:
            top = ((x - b_dec) @ W_enc.T + b_enc).topk(shape.K)
            acts = torch.zeros(len(x), shape.F).scatter(1, top.indices, top.values.relu())
            x_hat = acts @ W_dec + b_dec
            loss = (x_hat - x).square().sum(dim=1).mean()
            loss.backward()
            assert W_dec.grad is not None
            with torch.no_grad():
                W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            with torch.no_grad():
                W_dec.div_(W_dec.norm(dim=1, keepdim=True))
            optimizer.zero_grad()
            return loss.item()

        return Side(step)

    def ours() -> Side:
        W_enc, b_enc, W_dec, b_dec = params = parameters()
        optimizer = saefast.optim.Adam(params, lr=1e-3, unit_norm=[W_dec], max_grad_norm=1.0)

        def step(x: Tensor) -> float:
            x_hat, _, _ = saefast.autograd.sae_forward(x, W_enc, b_enc, W_dec, b_dec, shape.K)
            loss = (x_hat - x).square().sum(dim=1).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return Side(step)

    return stock(), ours()
