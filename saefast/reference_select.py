"""The part of `saefast.reference` that selects: pre-activations to a sparse code."""

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

_arena = threading.local()


def rounded_pre_acts(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Summed in at least fp32, kept in the dtype of the operands, as the kernels keep it."""
    wide = torch.promote_types(centred.dtype, torch.float32)
    return torch.addmm(b_enc.to(wide), centred.to(wide), W_enc.to(wide).T).to(centred.dtype)


def lent_pre_acts(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """`rounded_pre_acts`, valid until this thread's next call: in fp32 on the CPU, in memory that is used again.

    Fresh memory of a hundred megabytes comes from the kernel page by page, a tenth of the product's time.
    """
    operands = centred, W_enc, b_enc
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    if recorded or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in operands):
        return rounded_pre_acts(*operands)
    shape = len(centred), len(W_enc)
    if getattr(_arena, "memory", None) is None or len(_arena.memory) < math.prod(shape):
        _arena.memory = torch.empty(math.prod(shape))
    return torch.addmm(b_enc, centred, W_enc.T, out=_arena.memory[: math.prod(shape)].view(shape))


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pre_acts [B, F] -> top_acts [B, K] (after ReLU), top_indices [B, K] int32.

    The K largest of each row in descending order; among equal values the smaller index wins, both in what is
    selected and in the order. (Other backends select the same and may order otherwise.) Selection comes before
    the ReLU, so a row with fewer than K positive values keeps some latents with activation 0: they are not
    active and get no gradient.
    """
    n_latents = pre_acts.shape[1]
    # One more than k: where the (k+1)-th equals the k-th, torch.topk's choice between them is arbitrary.
    values, indices = pre_acts.topk(min(k + 1, n_latents), dim=1)
    if not (values[:, 1:] == values[:, :-1]).any():  # as good as always: in order, and nothing to choose
        return values[:, :k].relu(), indices[:, :k].to(torch.int32)
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


def batch_topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F] -> acts [B * K] (after ReLU), indices [B * K] int32, row_offsets [B + 1] int32.

    The B * K largest of the whole batch (Bussmann et al. 2024, arXiv 2412.06410); among equal values the smaller
    row, then the smaller index wins. Entries of a row are in ascending order of index.
    """
    B, n_latents = pre_acts.shape
    chosen = pre_acts.flatten().sort(descending=True, stable=True).indices[: B * k].sort().values
    rows = torch.div(chosen, n_latents, rounding_mode="floor")
    row_offsets = F.pad(torch.bincount(rows, minlength=B).cumsum(0), (1, 0)).to(torch.int32)
    return pre_acts.flatten()[chosen].relu(), (chosen % n_latents).to(torch.int32), row_offsets


def above_threshold(
    pre_acts: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F], threshold [] or [F] -> acts [N], indices [N] int32, row_offsets [B + 1] int32.

    The entries with pre_acts > threshold as they are, without ReLU, in ascending order of index: threshold 0 is
    ReLU, a vector is JumpReLU (arXiv 2407.14435; pass theta - bandwidth / 2 to get the band of its
    straight-through gradient too), the number that BatchTopK learnt is its inference.

    Args:
        capacity: N. None counts first, which waits for the device. With a number nothing waits, and what does not
            fit is left out: `row_offsets[B]` is the number found, larger than N then, and the caller must check it.
    """
    # expanded: a 0-dimensional tensor would be rounded to the format of pre_acts before it is compared
    token, latent = (pre_acts > threshold.expand(pre_acts.shape[1])).nonzero(as_tuple=True)
    acts, n_found = pre_acts[token, latent], len(token)
    row_offsets = torch.bincount(token, minlength=len(pre_acts)).cumsum(0)
    capacity = n_found if capacity is None else capacity
    fill = max(0, capacity - n_found)
    acts, indices = F.pad(acts[:capacity], (0, fill)), F.pad(latent[:capacity], (0, fill)).to(torch.int32)
    return acts, indices, F.pad(row_offsets, (1, 0)).to(torch.int32)
