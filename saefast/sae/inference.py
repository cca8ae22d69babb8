"""The code of a trained SAE, for every architecture. No batch decides here what is active: BatchTopK has its threshold.

Codes come in the fixed layout [B, L], L = k or the most that any token has; an activation of 0 is none.

Some projects normalise each row before they encode it, and undo that after decoding (SAEConfig.input_norm):
"layer_norm" (x - mean) / (std + 1e-5), std with n - 1 (openai, SAELens); "constant_norm" x * sqrt(d_in) / ||x|| (SAELens,
llamascopium "token-wise"); "scale" by a constant (llamascopium "dataset-wise").
"""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.backend import launched
from saefast.config.sae import SAEConfig
from saefast.engine.architectures.group_max import group_max
from saefast.reference import Params, topk


class Normed(NamedTuple):
    """Rows as they are encoded, and how to get back: x_hat * scale + shift."""

    x: Tensor  # [B, d_in]
    scale: Tensor | float  # [B, 1]
    shift: Tensor | float  # [B, 1]

    def undo(self, x_hat: Tensor) -> Tensor:
        return x_hat * self.scale + self.shift


def normed(config: SAEConfig, x: Tensor) -> Normed | None:
    """None where nothing is done to the rows."""
    if config.input_norm == "layer_norm":
        mean = x.mean(dim=1, keepdim=True)
        std = x.std(dim=1, keepdim=True)
        return Normed((x - mean) / (std + 1e-5), std, mean)
    if config.input_norm == "constant_norm":
        norm = x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        factor = math.sqrt(config.d_in) / norm
        return Normed(x * factor, 1 / factor, 0.0)
    if config.scales is not None:
        return Normed(x * config.scales[0], 1 / config.scales[1], 0.0)
    return None


@launched
def decode(
    ops: ModuleType, params: Params, extra: dict[str, Tensor], config: SAEConfig, acts: Tensor, indices: Tensor, x: Tensor
) -> Tensor:  # fmt: skip
    """acts, indices [B, L] of `encode` and its x [B, d_in] -> x_hat [B, d_out]."""
    x_hat = ops.decode(acts, indices, params.W_dec, params.b_dec)
    return finish(config, x_hat, x, extra)


def finish(config: SAEConfig, x_hat: Tensor, x: Tensor, extra: dict[str, Tensor]) -> Tensor:
    """What comes after the decoder: the skip connection, and the undoing of the normalisation."""
    rows = normed(config, x)
    if config.skip:
        x_hat = x_hat + (x if rows is None else rows.x) @ extra["W_skip"].T
    return x_hat if rows is None else rows.undo(x_hat)


@launched
def encode(
    ops: ModuleType, params: Params, extra: dict[str, Tensor], config: SAEConfig, x: Tensor
) -> tuple[Tensor, Tensor]:
    """x [B, d_in] -> acts, indices [B, L], by the ops of a backend, with products in the format of W_enc."""
    W_enc, b_enc = params.W_enc, params.b_enc
    x = x if (rows := normed(config, x)) is None else rows.x
    subtracted = params.b_dec if config.pre_bias else params.b_dec.new_zeros(config.d_in)
    centred, _ = ops.centre(x, subtracted, W_enc.dtype)
    norms = params.W_dec.norm(dim=1, dtype=b_enc.dtype) if config.scale_by_norm else None
    if config.activation == "topk":
        acts, indices = ops.encode_topk(centred, W_enc, b_enc, config.top_k, norms)
        return (acts if norms is None else acts / norms[indices.long()]), indices
    if config.activation == "group_max":
        code = group_max(ops, W_enc, b_enc, centred, config.top_k)
        assert code.indices is not None
        return code.acts, code.indices
    pre_acts, indices, row_offsets = ops.encode_threshold(
        centred, W_enc, b_enc, threshold(config, extra, norms, b_enc)
    )
    if config.activation == "gated":
        latents = indices.long()
        pre_acts = extra["r_mag"][latents].exp() * (pre_acts - b_enc[latents]) + extra["b_mag"][latents]
    return padded(pre_acts.relu(), indices, row_offsets)


def threshold(config: SAEConfig, extra: dict[str, Tensor], norms: Tensor | None, b_enc: Tensor) -> Tensor:
    """What a pre-activation must pass, [] or [F]."""
    if config.activation in ("relu", "gated"):
        return torch.zeros_like(b_enc[0])
    bound = extra["threshold"].clamp_min(0)
    return bound if norms is None else bound / norms


def padded(acts: Tensor, indices: Tensor, row_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The ragged layout -> [B, L] both, L the longest row; the rest is activation 0 of latent 0."""
    counts = row_offsets.diff().long()
    longest = int(counts.max()) if len(counts) else 0
    inside = torch.arange(longest, device=acts.device) < counts[:, None]
    out_acts, out_indices = acts.new_zeros(inside.shape), indices.new_zeros(inside.shape)
    out_acts[inside], out_indices[inside] = acts[: int(row_offsets[-1])], indices[: int(row_offsets[-1])]
    return out_acts, out_indices


def dense_acts(pre_acts: Tensor, params: Params, extra: dict[str, Tensor], config: SAEConfig) -> Tensor:
    """pre_acts [B, F] -> acts [B, F], in plain torch: differentiable where the function is."""
    norms = params.W_dec.norm(dim=1) if config.scale_by_norm else None
    if config.activation in ("topk", "group_max"):
        if config.activation == "topk":
            scaled = pre_acts if norms is None else pre_acts * norms
            chosen = topk(scaled.detach(), config.top_k)[1].long()
        else:
            groups = pre_acts.detach().unflatten(1, (config.top_k, -1))
            size = groups.shape[2]
            chosen = groups.argmax(dim=2) + size * torch.arange(config.top_k, device=pre_acts.device)
        return pre_acts.relu() * torch.zeros_like(pre_acts).scatter_(1, chosen, 1.0)
    active = pre_acts > threshold(config, extra, norms, params.b_enc)
    if config.activation == "gated":
        pre_acts = extra["r_mag"].exp() * (pre_acts - params.b_enc) + extra["b_mag"]
    return torch.where(active, pre_acts.relu(), 0)


def listed(acts: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Dense acts [B, F] -> the fixed layout, largest first."""
    longest = k or int((acts > 0).sum(dim=1).amax()) if len(acts) else k or 0
    values, indices = acts.topk(longest, dim=1)
    return values, indices.to(torch.int32)
