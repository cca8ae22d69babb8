"""The specification: every op of a training step in plain PyTorch, and the CPU fallback.

Shapes use fixed letters: B tokens, D = d_in, F = d_sae, K = k. `W_enc` and `W_dec` are both [F, D], one
contiguous row per latent. The forward pass and the loss are

    pre_acts    = (x - b_dec) @ W_enc.T + b_enc                               [B, F]
    top_acts    = relu of the K largest pre_acts of each row                  [B, K]
    x_hat       = b_dec + sum_j top_acts[:, j] * W_dec[top_indices[:, j]]     [B, D]
    loss        = FVU(x_hat, x) + auxk_alpha * AuxK                           (Gao et al. 2024, arXiv 2406.04093)

Only the encoder is a dense product: everything after the selection touches the active rows of each token.
Gradients are written out by hand; tests compare them with autograd of the dense formula in fp64.

**The sparse code.** Active latents are `acts` and `indices` (int32). In the fixed layout both are [B, K] and
`row_offsets` is None. In the ragged layout both are [N] and token b has the entries `row_offsets[b]` to
`row_offsets[b + 1]`; entries from `row_offsets[B]` on are unused. An activation of 0 is not active. `row_offsets` must
not pass N: see `above_threshold` for the one op that can return more.

**NaN** in the pre-activations is selected, like +inf, by every backend, so that it reaches the loss.

**Units.** `error = x_hat - x` is kept unscaled, in the dtype of the products; the gradient of FVU is
`grad_scale * error` with `grad_scale = 2 / total_variance`, a number on the device that enters at the very end,
so that 16-bit formats neither overflow nor vanish. A grad_scale of NaN says that this step must change nothing.

A backend is a module with these functions (see `saefast.backend.OPS`). Groups and gradients travel as plain tuples,
so that the kernels depend on nothing but tensors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saefast.reference_dense import dense_error, dense_grad_acts, keep_topk, outer_sum, relu_encode
from saefast.reference_select import above_threshold, batch_topk, lent_pre_acts, rounded_pre_acts, topk
from saefast.reference_update import (
    Params,
    adam_rows_,
    grad_top_acts,
    group_by_latent,
    normalize_rows_,
    project_rows_,
    row_grads,
    row_starts,
    sum_entries,
    update_,
)

NAME = "reference"
LEAST_ROWS, PRE_ACTS = 256, 2**26  # of a product
__all__ = [
    "NAME", "Params", "above_threshold", "adam_rows_", "batch_topk", "centre", "decode", "decode_error", "dense_error",
    "dense_grad_acts", "encode", "encode_batch_topk", "encode_dense", "encode_threshold", "encode_topk", "fvu",
    "grad_top_acts",
    "group_by_latent", "keep_topk", "normalize_rows_", "normalized_mse", "outer_sum", "project_rows_", "relu_encode",
    "row_grads", "sum_entries", "topk", "total_variance", "update_",
]  # fmt: skip


def centre(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [B, D], b_dec [D] -> x - b_dec [B, D], subtracted before it is rounded to `dtype`; total_variance(x) []."""
    whole = x.to(b_dec.dtype)
    return (whole - b_dec).to(dtype), total_variance(whole)


def total_variance(x: Tensor) -> Tensor:
    """[B, D] -> []: sum over the batch of ||x - mean(x)||^2, the denominator of FVU.

    A batch without variance (one row, or equal rows) gives its number of entries, so the loss stays finite.
    """
    variance = (x - x.mean(dim=0)).square().sum()
    return torch.where(variance == 0, x.numel(), variance)  # NaN stays NaN


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """[B, D], [F, D], [F], [D] -> pre_acts [B, F]. b_dec is subtracted before the product, not folded into it."""
    return torch.addmm(b_enc, x - b_dec, W_enc.to(x.dtype).T)


def encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None, rescore: int = 0
) -> tuple[Tensor, Tensor]:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> `topk` of the pre-activations, acts in b_enc's dtype.

    Args:
        scale: [F], multiplies the pre-activations (SAELens selects by pre_acts * ||W_dec row||).
        rescore: with 16-bit operands, select k + rescore by the rounded pre-activations and take the k largest of
            them by products summed and kept in fp32. 0 leaves it out.
    """
    rows = max(LEAST_ROWS, PRE_ACTS // len(W_enc))
    parts = [_encode_topk(part, W_enc, b_enc, k, scale, rescore) for part in centred.split(rows)]
    top_acts, top_indices = zip(*parts, strict=True)
    return torch.cat(top_acts).to(b_enc.dtype), torch.cat(top_indices)


def _encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None, rescore: int
) -> tuple[Tensor, Tensor]:
    """Rows depend on nothing but themselves, so those of a large batch may come a few at a time."""
    pre_acts = lent_pre_acts(centred, W_enc, b_enc)
    if scale is not None:
        pre_acts = (pre_acts * scale).to(centred.dtype)
    top_acts, top_indices = topk(pre_acts, min(k + rescore, len(W_enc)))
    if rescore:
        rows = W_enc[top_indices.long()].to(b_enc.dtype)
        exact = torch.einsum("bd,bkd->bk", centred.to(b_enc.dtype), rows) + b_enc[top_indices.long()]
        if scale is not None:
            exact = exact * scale[top_indices.long()]
        top_acts, slots = topk(exact, k)
        top_indices = top_indices.gather(1, slots.long())
    return top_acts, top_indices


def encode_batch_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `encode_topk`, with `batch_topk` for the selection; acts in b_enc's dtype."""
    pre_acts = rounded_pre_acts(centred, W_enc, b_enc)
    if scale is not None:
        pre_acts = (pre_acts * scale).to(centred.dtype)
    acts, indices, row_offsets = batch_topk(pre_acts, k)
    return acts.to(b_enc.dtype), indices, row_offsets


def encode_dense(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> pre_acts [B, F] in centred's dtype, for codes in which
    so many latents are active that nothing is gained by a list of them."""
    return rounded_pre_acts(centred, W_enc, b_enc)


def encode_threshold(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `encode_topk`, with `above_threshold` for the selection; acts in b_enc's dtype."""
    acts, indices, row_offsets = above_threshold(rounded_pre_acts(centred, W_enc, b_enc), threshold, capacity)
    return acts.to(b_enc.dtype), indices, row_offsets


def decode(
    acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """A code, [F, D], [D] -> x_hat [B, D], reading only the rows of active latents."""
    starts = row_starts(indices, row_offsets)
    used = int(starts[-1]) if row_offsets is not None else indices.numel()
    rows = W_dec.to(b_dec.dtype)
    return b_dec + F.embedding_bag(
        indices.flatten()[:used], rows, starts, mode="sum", include_last_offset=True,
        per_sample_weights=acts.flatten()[:used].to(rows.dtype),
    )  # fmt: skip


def decode_error(
    acts: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A code, [F, D], [D], x [B, D] -> error = x_hat - x [B, D] in `dtype`, ||error||^2 of each row [B].

    x_hat is not rounded before x is subtracted; the squares are of the error before it is rounded.
    """
    error = decode(acts, indices, W_dec, b_dec, row_offsets) - x
    return error.to(dtype), error.square().sum(dim=1)


def fvu(x_hat: Tensor, x: Tensor) -> Tensor:
    """[B, D], [B, D] -> []: fraction of variance unexplained, ||x_hat - x||^2 / ||x - mean(x)||^2 over the batch."""
    return (x_hat - x).square().sum() / total_variance(x)


def normalized_mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """[B, D], [B, D] -> []: mean over the rows of ||x_hat - x||^2 / ||x||^2, OpenAI's normalised MSE; a metric."""
    return ((x_hat - x).square().sum(dim=1) / x.square().sum(dim=1)).mean()
