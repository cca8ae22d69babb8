"""What a run does before its first step: in which units it trains, and what it does with the SAE that it is given.

A fresh SAE (`SAE.fresh`) is fitted to the data: b_dec to its centre, the encoder to a good length, thresholds into its units.
Of one that was made before nothing that a user can see is changed, whatever its parameters are. Where a run keeps decoder
rows at unit norm and those of the SAE have another, their norms go into the encoder, if that is the same function;
otherwise it is refused.
"""

import logging
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture
from saefast.engine.state import State
from saefast.errors import check
from saefast.sae.inference import spread
from saefast.storage import load_weight, scale_rows_
from saefast.train.resample import parts

ROWS_AT_ONCE = 2**14
UNIT_WITHIN = {torch.float32: 1e-4, torch.float64: 1e-4}  # rows of 16 bits: SAME_WITHIN
SAME_WITHIN = 1e-2  # norms that differ by no more are one number, rounded to 16 bits
log = logging.getLogger("saefast")


class Frame(NamedTuple):
    """Rows as the engine sees them, row * factor - shift, and the parameters that the SAE has for it.

    factor: [row_width], the scales of the SAE (`SAEConfig.scales`); None: 1.
    shift: [row_width], the centre of the data, where the encoder has no b_dec to subtract (`SAEConfig.pre_bias`): without
        it the gradient of W_enc is mostly that of the centre. None: 0.
    """

    factor: Tensor | None = None
    shift: Tensor | None = None

    def rows(self, rows: Tensor) -> Tensor:
        if self.factor is not None:
            rows = rows * self.factor
        return rows if self.shift is None else rows - self.shift

    def parameters(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the SAE, made of those that the engine trains, by name."""
        if self.shift is None:
            return tensors
        d_in, width_out = tensors["W_enc"].shape[1], tensors["W_dec"].shape[1]
        b_dec, shift = tensors["b_dec"], self.shift.to(tensors["W_enc"].device)
        before = _product(tensors["W_enc"], shift[:d_in])
        moved = {"b_enc": tensors["b_enc"] - before.to(b_dec), "b_dec": b_dec + shift[-width_out:].to(b_dec)}
        if "W_skip" in tensors:
            moved["b_dec"] = moved["b_dec"] - _product(tensors["W_skip"], shift[:d_in]).to(b_dec)
        if "b_mag" in tensors:  # gated: its magnitudes have a bias of their own
            moved["b_mag"] = tensors["b_mag"] - tensors["r_mag"].exp() * before.to(b_dec)
        return tensors | moved


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix [F, D] @ vector [D] in fp64, a few rows at a time."""
    return torch.cat([rows.double() @ vector.double() for rows in matrix.split(ROWS_AT_ONCE)])


def factors(sae: SAEConfig, like: Tensor) -> Tensor | None:
    """`Frame.factor` of an SAE, in the dtype and on the device of `like`."""
    if sae.scales is None:
        return None
    into, out = sae.scales[: sae.layers], sae.scales[sae.layers :]
    parts = [spread(into, sae.d_in, like)] + ([spread(out, sae.d_out, like)] if sae.d_out else [])
    return torch.cat(parts)


def scale_of(part: Tensor, train: TrainConfig) -> float:
    """What rows [n, D] are multiplied by, see `TrainConfig.normalize_input`; 1 where they have no norm."""
    if train.normalize_input is False:
        return 1.0
    part = part.double()
    if train.normalize_input == "mean_norm":
        norm = float(part.norm(dim=1).mean())
    else:
        squared = float(part.square().sum(dim=1).mean())
        if train.normalize_input is True and len(part) > 1:
            centred = squared - float(part.mean(dim=0).square().sum())
            squared = centred if centred > 1e-12 * squared else squared  # equal rows: as they are
        norm = math.sqrt(squared)
    return train.norm_of_rows(part.shape[1]) / norm if norm > 0 else 1.0


def layer_scales(sample: Tensor, sae: SAEConfig, train: TrainConfig) -> tuple[float, ...]:
    """sample [n, row_width] -> `SAEConfig.scales` by which the layers of a crosscoder count alike."""
    parts = sample[:, : sae.d_in].chunk(sae.layers, dim=1)
    into = tuple(scale_of(part, train) for part in parts)
    if sae.d_out is None:
        return into * 2
    return into + tuple(scale_of(part, train) for part in sample[:, sae.d_in :].chunk(sae.layers, dim=1))


def unit_rows_(
    state: State, sae: SAEConfig, train: TrainConfig, arch: Architecture, frozen: Collection[str]
) -> None:
    """Give the decoder rows unit norm, and their norms to the encoder, so that the SAE computes what it did.

    Raises:
        InputError: it would not: the selection is by the size of the pre-activations, and the norms differ.
    """
    if not train.unit_norm:
        return
    enc, dec = state.weights.enc, state.weights.dec
    norms = torch.cat([load_weight(part).norm(dim=1, dtype=torch.float64) for part in parts(dec)])
    if not bool((norms > 0).any()):
        return
    norms = norms.masked_fill(norms == 0, float(norms[norms > 0].mean()))  # a row of zeros stays one
    low, high = float(norms.min()), float(norms.max())
    if max(abs(low - 1), abs(high - 1)) <= UNIT_WITHIN.get(dec.weight.dtype, SAME_WITHIN):
        return
    expected = (
        f"unit_norm: expected False for this SAE, whose decoder rows have norms from {low:.4g} to {high:.4g}"
    )
    why = f"{sae.activation!r} selects by pre_acts, which unit rows would change"
    in_order = arch.unbounded or sae.scale_by_norm  # of any norms, the same latents are selected
    same = in_order or high / low - 1 <= SAME_WITHIN
    check(same, f"{expected} ({why}); got True")
    held = sorted({"W_enc", "b_enc", *state.extra} & set(frozen))
    check(not held, f"{expected} ({', '.join(held)} may not change: requires_grad is False); got True")
    scale_rows_(dec, 1 / norms)
    if not in_order:  # one factor for all keeps the selection; what a 16-bit file rounded is left out
        norms = norms.mean().expand_as(norms)
    scale_rows_(enc, norms)
    norms = norms.to(state.weights.b_enc.value)
    state.weights.b_enc.value.mul_(norms)
    arch.enlarge_(state.extra, sae, train, norms)
    if max(abs(low - 1), abs(high - 1)) > SAME_WITHIN:
        log.warning(
            f"decoder rows had norms from {low:.4g} to {high:.4g}; the norms went into the encoder, and the SAE computes "
            "what it did (unit_norm False leaves them)"
        )
