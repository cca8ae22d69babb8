"""The specification: every op of a TopK training step in plain PyTorch, and the CPU fallback.

Shapes use fixed letters: B tokens, D = d_in, F = d_sae, K = k. `W_enc` and `W_dec` are both [F, D], one
contiguous row per latent. The forward pass and the loss are

    pre_acts    = (x - b_dec) @ W_enc.T + b_enc                               [B, F]
    top_acts    = relu of the K largest pre_acts of each row                  [B, K]
    x_hat       = b_dec + sum_j top_acts[:, j] * W_dec[top_indices[:, j]]     [B, D]
    loss        = FVU(x_hat, x) + auxk_alpha * AuxK                           (Gao et al. 2024, arXiv 2406.04093)

Only the encoder is a dense product: everything after the selection touches the K active rows of each token.
Gradients are written out by hand; tests compare them with autograd of the dense formula in fp64.
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "reference"


class Params(NamedTuple):
    """The four parameters of an SAE."""

    W_enc: Tensor  # [F, D]
    b_enc: Tensor  # [F]
    W_dec: Tensor  # [F, D], rows of unit norm
    b_dec: Tensor  # [D]


class AuxK(NamedTuple):
    """The auxiliary loss and what it adds to the gradients."""

    loss: Tensor  # [] unweighted
    grads: Params  # W_enc, b_enc, W_dec hold the rows of `dead` only; b_dec is whole


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """[B, D], [F, D], [F], [D] -> pre_acts [B, F]. b_dec is subtracted before the product, not folded into it."""
    return torch.addmm(b_enc, x - b_dec, W_enc.T)


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pre_acts [B, F] -> top_acts [B, K] (after ReLU), top_indices [B, K] int32.

    The K largest of each row in descending order; among equal values the smaller index wins, both in what is
    selected and in the order. Selection comes before the ReLU, so a row with fewer than K positive values
    keeps some latents with activation 0: they are not active and get no gradient.
    """
    n_latents = pre_acts.shape[1]
    # One more than k: where the (k+1)-th equals the k-th, torch.topk's choice between them is arbitrary.
    values, indices = pre_acts.topk(min(k + 1, n_latents), dim=1)
    if n_latents > k:
        tied = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)
        values, indices = values[:, :k], indices[:, :k]
        if len(tied):
            ordered = pre_acts[tied].sort(dim=1, descending=True, stable=True)
            values[tied], indices[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    by_index = indices.argsort(dim=1)
    values, indices = values.gather(1, by_index), indices.gather(1, by_index)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return values.relu_(), indices.gather(1, by_value).to(torch.int32)


def decode(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """[B, K], [B, K] int32, [F, D], [D] -> x_hat [B, D], reading only the K rows of each token."""
    return F.embedding_bag(top_indices, W_dec, per_sample_weights=top_acts, mode="sum") + b_dec


def total_variance(x: Tensor) -> Tensor:
    """[B, D] -> []: sum over the batch of ||x - mean(x)||^2, the denominator of FVU.

    A batch without variance (one row, or equal rows) gives its number of entries, so the loss stays finite.
    """
    variance = (x - x.mean(dim=0)).square().sum()
    return torch.where(variance > 0, variance, x.numel())


def fvu(x_hat: Tensor, x: Tensor) -> Tensor:
    """[B, D], [B, D] -> []: fraction of variance unexplained, ||x_hat - x||^2 / ||x - mean(x)||^2 over the batch."""
    return (x_hat - x).square().sum() / total_variance(x)


def normalized_mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """[B, D], [B, D] -> []: mean over the rows of ||x_hat - x||^2 / ||x||^2, OpenAI's normalised MSE; a metric."""
    return ((x_hat - x).square().sum(dim=1) / x.square().sum(dim=1)).mean()


def recon_loss(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """x_hat, x [B, D] -> fvu [], grad_x_hat [B, D]. The denominator of FVU does not depend on x_hat."""
    error, scale = x_hat - x, total_variance(x)
    return error.square().sum() / scale, error.mul_(2 / scale)


def grad_top_acts(grad_x_hat: Tensor, W_dec: Tensor, top_acts: Tensor, top_indices: Tensor) -> Tensor:
    """grad_x_hat [B, D] -> [B, K]: <grad_x_hat[b], W_dec[top_indices[b, j]]>, zero where the activation is 0."""
    B, K = top_indices.shape
    row_starts = torch.arange(0, B * K + 1, K, dtype=torch.int32, device=top_indices.device)
    with warnings.catch_warnings():  # torch calls its CSR layout beta on first use
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            row_starts, top_indices.flatten(), torch.zeros_like(top_acts).flatten(), (B, W_dec.shape[0])
        )
        products = torch.sparse.sampled_addmm(pattern, grad_x_hat, W_dec.T)
    return products.values().view(B, K) * (top_acts > 0)


def group_by_latent(top_indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor]:
    """top_indices [B, K] -> offsets [F + 1] int32, pairs [B * K] int32.

    `pairs[offsets[f]:offsets[f + 1]]` are the positions in `top_indices.flatten()` that hold latent f, in
    ascending order; token and slot are its quotient and remainder by K. The order makes sums reproducible.
    """
    flat = top_indices.flatten()
    counts = torch.bincount(flat, minlength=d_sae)
    offsets = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return offsets, flat.argsort(stable=True).to(torch.int32)


def param_grads(
    x: Tensor,
    params: Params,
    top_acts: Tensor,
    top_indices: Tensor,
    grad_x_hat: Tensor,
    grad_acts: Tensor,
) -> Params:
    """Gradients of the loss from those of x_hat [B, D] and of the active pre-activations `grad_acts` [B, K].

    Each row of the weight gradients is a sum over the tokens in which its latent is active, taken in token
    order. b_dec enters twice, as output bias and subtracted from the input; its second term uses
    sum_b (grad_pre_acts[b] @ W_enc) = grad_b_enc @ W_enc.
    """
    W_enc, _, W_dec, b_dec = params
    d_sae, K = W_dec.shape[0], top_indices.shape[1]
    offsets, pairs = group_by_latent(top_indices, d_sae)
    tokens = torch.div(pairs, K, rounding_mode="floor")

    def sum_rows(rows: Tensor, weights: Tensor) -> Tensor:
        """out[f] = sum over the pairs of latent f of weights[pair] * rows[token]."""
        return F.embedding_bag(
            tokens,
            rows,
            offsets,
            mode="sum",
            per_sample_weights=weights.flatten()[pairs],
            include_last_offset=True,
        )

    grad_b_enc = torch.zeros_like(params.b_enc)
    grad_b_enc += torch.segment_reduce(grad_acts.flatten()[pairs], "sum", offsets=offsets.long(), initial=0)
    return Params(
        W_enc=sum_rows(x - b_dec, grad_acts),
        b_enc=grad_b_enc,
        W_dec=sum_rows(grad_x_hat, top_acts),
        b_dec=grad_x_hat.sum(dim=0) - grad_b_enc @ W_enc,
    )


def auxk(x: Tensor, x_hat: Tensor, params: Params, dead: Tensor, k_aux: int) -> AuxK:
    """AuxK: dead latents learn to explain the residual e = x - x_hat (arXiv 2406.04093, section 2.4).

        e_hat = sum over the k_aux largest pre-activations among the dead latents of act * W_dec row
        loss  = ||e_hat - e||^2 / ||e - mean(e)||^2

    dead: [n_dead] int64 indices of the dead latents. e counts as a constant. Unlike sparsify (1.3.3), the
    gradient reaches the encoder; unlike openai's code, b_dec is not added to e_hat (paper's form).
    k_aux is large and the dead are few, so dense products over the dead rows beat the sparse ops.
    """
    W_enc, b_enc, W_dec = params.W_enc[dead], params.b_enc[dead], params.W_dec[dead]
    pre_acts = encode(x, W_enc, b_enc, params.b_dec)
    if k_aux < len(dead):
        top_acts, top_indices = topk(pre_acts, k_aux)
        acts = torch.zeros_like(pre_acts).scatter_(1, top_indices.long(), top_acts)
    else:
        acts = pre_acts.relu_()
    loss, grad_e_hat = recon_loss(acts @ W_dec, x - x_hat)
    grad_acts = (grad_e_hat @ W_dec.T) * (acts > 0)
    grad_b_enc = grad_acts.sum(dim=0)
    grads = Params(grad_acts.T @ (x - params.b_dec), grad_b_enc, acts.T @ grad_e_hat, -(grad_b_enc @ W_enc))
    return AuxK(loss, grads)


def project_rows_(grad_W_dec: Tensor, W_dec: Tensor) -> Tensor:
    """Remove from each row of the gradient its part along the unit-norm decoder row, in place.

    That part only changes the norm, which `normalize_rows_` undoes; left in, it would distort Adam's moments
    ("Towards Monosemanticity", appendix on autoencoder training).
    """
    return grad_W_dec.addcmul_((grad_W_dec * W_dec).sum(dim=1, keepdim=True), W_dec, value=-1)


def normalize_rows_(W_dec: Tensor) -> Tensor:
    """Scale each row of W_dec to unit norm, in place. A zero row stays zero."""
    return W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(W_dec.dtype).tiny))


def adam_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """One Adam step in place (Kingma & Ba 2015, arXiv 1412.6980), as `torch.optim.Adam`; step counts from 1.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  param -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    return param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))
