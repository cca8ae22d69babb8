"""The code of a trained SAE, for every architecture. No batch decides here what is active: BatchTopK has its threshold.

Codes come in the fixed layout [B, L], L = k or the most that any token has; an activation of 0 is none.

Some projects normalise each row before they encode it, and undo that after decoding (SAEConfig.input_norm):
"layer_norm" (x - mean) / (std + 1e-5), std with n - 1 (openai, SAELens); "constant_norm" x * sqrt(d_in) / ||x|| (SAELens,
llamascopium "token-wise"); "scale" by a constant (llamascopium "dataset-wise"), of a crosscoder by one for each layer. Norm
and std are computed in fp64, so that no row is too large or too small. A row that has none (zeros; equal numbers) is encoded
as zeros and reconstructed as itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.backend import Backend, launched
from saefast.config.sae import SAEConfig
from saefast.engine.architectures import architecture_of
from saefast.reference import Params


class Normed(NamedTuple):
    """Rows as they are encoded, and how to get back: x_hat * scale + shift."""

    x: Tensor  # [B, d_in]
    scale: Tensor | float  # [B, 1] or [d_out]
    shift: Tensor | float  # [B, 1]

    def undo(self, x_hat: Tensor) -> Tensor:
        return x_hat * self.scale + self.shift


def normed(config: SAEConfig, x: Tensor) -> Normed | None:
    """None where nothing is done to the rows."""
    if config.input_norm == "layer_norm":
        wide = x.double()
        mean = wide.mean(dim=1, keepdim=True)
        std = torch.linalg.vector_norm(wide - mean, dim=1, keepdim=True) / math.sqrt(max(1, config.d_in - 1))
        return Normed(((wide - mean) / (std + 1e-5)).to(x.dtype), std.to(x.dtype), mean.to(x.dtype))
    if config.input_norm == "constant_norm":
        scale = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64) / math.sqrt(config.d_in)
        rows = torch.where(scale > 0, x / torch.where(scale > 0, scale, 1), 0)
        return Normed(rows.to(x.dtype), scale.to(x.dtype), 0.0)
    if config.scales is not None:
        into, out = scales_of(config, x)
        return Normed(x * into, 1 / out, 0.0)
    return None


def scales_of(config: SAEConfig, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """`SAEConfig.scales` as factors of rows [B, d_in] and [B, d_out], in the dtype and on the device of `like`."""
    assert config.scales is not None
    into, out = config.scales[: config.layers], config.scales[config.layers :]
    if config.layers == 1:
        return into[0], out[0]
    return spread(into, config.d_in, like), spread(out, config.width_out, like)


def spread(numbers: Sequence[float], width: int, like: Tensor) -> Tensor:
    """One number for each equal part of a row -> [width]."""
    return like.new_tensor(numbers).repeat_interleave(width // len(numbers))


@launched
def decode(
    ops: Backend,
    params: Params,
    extra: dict[str, Tensor],
    config: SAEConfig,
    acts: Tensor,
    indices: Tensor,
    x: Tensor,
) -> Tensor:
    """acts, indices [B, L] of `encode` and its x [B, d_in] -> x_hat [B, d_out]."""
    x_hat = ops.decode(acts, indices, params.W_dec, params.b_dec)
    return finish(config, x_hat, x, extra)


def finish(config: SAEConfig, x_hat: Tensor, x: Tensor, extra: dict[str, Tensor]) -> Tensor:
    """What comes after the decoder: the skip connection, and the undoing of the normalisation."""
    rows = normed(config, x)
    if config.skip:
        x_hat = x_hat + (x if rows is None else rows.x) @ extra["W_skip"].T
    return x_hat if rows is None else rows.undo(x_hat)


def in_data_units(config: SAEConfig, part: Tensor, x: Tensor) -> Tensor:
    """What acts * W_dec adds up to for rows x, a part of the reconstruction or a difference of two -> the same in the units of
    the activations: with the normalisation undone. x [B, d_in], part [B, d_out]."""
    if config.scales is not None:
        return part / scales_of(config, part)[1]
    rows = normed(config, x)
    return part if rows is None else part * rows.scale


@launched
def encode(
    ops: Backend, params: Params, extra: dict[str, Tensor], config: SAEConfig, x: Tensor
) -> tuple[Tensor, Tensor]:
    """x [B, d_in] -> acts, indices [B, L], by the ops of a backend, with products in the format of W_enc."""
    W_enc, b_enc = params.W_enc, params.b_enc
    x = x if (rows := normed(config, x)) is None else rows.x
    subtracted = params.b_dec if config.pre_bias else params.b_dec.new_zeros(config.d_in)
    centred, _ = ops.centre(x, subtracted, W_enc.dtype)
    norms = params.W_dec.norm(dim=1, dtype=b_enc.dtype) if config.scale_by_norm else None
    return architecture_of(config).encode(ops, centred, params, extra, config, norms)


def dense_acts(pre_acts: Tensor, params: Params, extra: dict[str, Tensor], config: SAEConfig) -> Tensor:
    """pre_acts [B, F] -> acts [B, F], in plain torch: differentiable where the function is."""
    norms = params.W_dec.norm(dim=1) if config.scale_by_norm else None
    return architecture_of(config).dense_acts(pre_acts, params, extra, config, norms)


def listed(acts: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Dense acts [B, F] -> the fixed layout, largest first; of equal ones the smaller index first."""
    longest = k or int((acts > 0).sum(dim=1).amax()) if len(acts) else k or 0
    indices = acts.topk(longest, dim=1).indices.sort(dim=1).values
    values, by_value = acts.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, by_value).to(torch.int32)
