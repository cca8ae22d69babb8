"""The code of a batch, and what comes back for its entries."""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast.reference import row_starts
from saefast.storage import Vector

Extra = dict[str, Vector]  # the parameters that an architecture has besides the four of every SAE


class Code(NamedTuple):
    """The entries of a sparse code (the layouts are those of `saefast.reference`), or a dense code [B, F]."""

    acts: Tensor  # >= 0
    indices: Tensor | None  # None: dense
    row_offsets: Tensor | None
    pre_acts: Tensor  # what acts were made of; what lies past the end of a ragged code is -inf
    listed: Tensor  # > 0 where an entry takes part in the gradient, though its activation may be 0
    size: Tensor | None = None  # [] entries found, more than listed if some did not fit; None: as many
    mean_l0: Tensor | None = None  # [] of the whole batch, where this is the code of a part of it
    norms: Tensor | None = None  # [F] of the decoder rows, where a threshold is for pre_acts times them

    @property
    def layout(self) -> tuple[Tensor, Tensor | None]:
        """indices and row_offsets of a sparse code."""
        assert self.indices is not None
        return self.indices, self.row_offsets

    def of(self, per_latent: Tensor) -> Tensor:
        """[F] -> the number of each entry's latent; [F] itself for a dense code, which broadcasts."""
        return per_latent if self.indices is None else per_latent[self.indices.long()]

    def tokens(self) -> Tensor:
        """The token of each entry of a sparse code, flat, int64."""
        assert self.indices is not None
        positions = torch.arange(self.indices.numel(), dtype=torch.int64, device=self.indices.device)
        if self.row_offsets is None:
            return torch.div(positions, self.indices.shape[1], rounding_mode="floor")
        return (
            torch.searchsorted(row_starts(self.indices, self.row_offsets).long(), positions, right=True) - 1
        )


class Backward(NamedTuple):
    """What an architecture makes of the entries of a code on the way back."""

    grad_pre: Tensor  # in the shape of the code: gradient with respect to each pre-activation
    penalty: Tensor  # [] added to the loss
    norms: Tensor | None = None  # [F]: gradient with respect to the norm of each decoder row
    extra: dict[str, Tensor] | None = None  # and to the extra parameters, [F]
    bias: Tensor | None = None  # [F]: and to b_enc alone
    push: Tensor | None = None  # [F]: as if every token had one more entry of each latent with this grad_pre


def active_latents(code: Code, fires: Tensor, n_latents: int) -> Tensor:
    """[F] bool: the latents of which an entry of a sparse code fires."""
    assert code.indices is not None
    none = n_latents  # the place of the others, one past the end
    latents = code.indices.masked_fill(~fires, none).flatten().long()
    return torch.zeros(none + 1, dtype=torch.bool, device=latents.device).index_fill_(0, latents, True)[:none]


def where(mask: Tensor, values: Tensor) -> Tensor:
    """`values` where `mask`, else 0. (torch.where would first copy its 0 to the device.)"""
    return values.masked_fill(~mask, 0)
