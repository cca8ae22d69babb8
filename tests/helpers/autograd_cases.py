"""Inputs, a loss of the user's own and the dense formula, for the tests of `saefast.autograd`."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from tests.helpers import dense

NAMES = ("x", "W_enc", "b_enc", "W_dec", "b_dec")
CASES = {  # B, D, F, K
    "usual": (7, 5, 13, 3),
    "wide": (33, 24, 80, 8),
    "one token": (1, 8, 12, 3),
    "k 1": (9, 6, 10, 1),
    "k all": (6, 4, 9, 9),  # about half of the entries are negative, so not active
    "one latent": (5, 3, 1, 1),
    "one column": (5, 1, 6, 2),
}


def leaves(B, D, F, K, dtype=torch.float64, device="cpu", seed=0) -> list[Tensor]:
    """x, W_enc, b_enc, W_dec, b_dec with gradients on."""
    rng = torch.Generator().manual_seed(seed)
    sizes = (B, D), (F, D), (F,), (F, D), (D,)
    return [torch.randn(*s, generator=rng).to(device, dtype).requires_grad_() for s in sizes]


def fresh(tensors: list[Tensor], dtype=None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for t in tensors]


def own_loss(x: Tensor, x_hat: Tensor, top_acts: Tensor) -> Tensor:
    """Not FVU: the divergence of two distributions, an L1 penalty and a term that pulls inactive entries too."""
    divergence = kl_div(log_softmax(x_hat, dim=1), softmax(x.detach(), dim=1), reduction="sum")
    return divergence + 0.1 * top_acts.sum() + (top_acts - 1).square().mean()


def dense_forward(x, W_enc, b_enc, W_dec, b_dec, k):
    """x_hat of `dense.forward`, and the k activations of each token from the dense pre-activations."""
    pre_acts = (x - b_dec) @ W_enc.T + b_enc
    order = pre_acts.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return dense.forward(x, W_enc, b_enc, W_dec, b_dec, k), pre_acts.gather(1, order).relu(), order


def gradients(forward, tensors: list[Tensor], k: int) -> list[Tensor]:
    x_hat, top_acts, _ = forward(*tensors, k)
    return list(torch.autograd.grad(own_loss(tensors[0], x_hat, top_acts), tensors))


def assert_same(got, want, names=NAMES, rtol=1e-10, atol=1e-12) -> None:
    for name, a, b in zip(names, got, want):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
