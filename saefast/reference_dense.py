"""The part of `saefast.reference` that is dense on purpose: AuxK over the compacted dead latents, and ReLU codes in
which so many latents are active that gathering their rows would cost more than multiplying by all of them."""

import torch
from torch import Tensor

from saefast.reference_select import rounded_pre_acts, topk


def keep_topk(pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
    """pre_acts [B, C] -> [B, C]: relu of the k largest of the first `count` [] columns of each row, 0 elsewhere."""
    masked = pre_acts.masked_fill(
        torch.arange(pre_acts.shape[1], device=pre_acts.device) >= count, -torch.inf
    )
    if k >= pre_acts.shape[1]:
        return masked.relu_()
    top_acts, top_indices = topk(masked, k)
    return torch.zeros_like(pre_acts).scatter_(1, top_indices.long(), top_acts)


def relu_encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> acts = relu(pre_acts) [B, F] in centred's dtype, their sum [] fp32, active tokens of each latent [F] int32."""
    acts = rounded_pre_acts(centred, W_enc, b_enc).relu_()
    wide = torch.promote_types(acts.dtype, torch.float32)
    return acts, acts.sum(dtype=wide), (acts > 0).sum(dim=0, dtype=torch.int32)


def dense_error(acts: Tensor, W_dec: Tensor, target: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """acts [B, F], W_dec [F, D], target [B, D] -> acts @ W_dec - sign * target in target's dtype; squares of rows [B]."""
    wide = torch.promote_types(acts.dtype, torch.float32)
    error = acts.to(wide) @ W_dec.to(wide) - sign * target.to(wide)
    return error.to(target.dtype), error.square().sum(dim=1)


def dense_grad_acts(error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
    """error [B, D], W_dec [F, D], acts [B, F], addend [] or [F] -> error @ W_dec.T + addend where active, 0 elsewhere."""
    wide = torch.promote_types(acts.dtype, torch.float32)
    return ((error.to(wide) @ W_dec.to(wide).T + addend) * (acts > 0)).to(acts.dtype)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """left [B, F], right [B, D] -> left.T @ right [F, D], summed and kept in at least fp32."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return left.to(wide).T @ right.to(wide)
