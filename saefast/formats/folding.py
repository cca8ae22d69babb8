"""The same function with other numbers: what a format has no field for goes into the weights."""

from dataclasses import replace

import torch
from torch import Tensor

from saefast.errors import check
from saefast.sae import SAE


class Folding:
    """A copy of an SAE that is brought, step by step, into a form that a format can express.

    Sums and products are in fp64, so that what comes out differs from what went in by one rounding.

    Attributes:
        config, tensors: of the SAE as it is now; the tensors of the SAE itself are never changed.
        notes: what was done, a line each.
    """

    def __init__(self, sae: SAE, target: str) -> None:
        self.config, self.target = sae.config, target
        self.tensors: dict[str, Tensor] = {name: p.detach().cpu() for name, p in sae.named_parameters()}
        self.notes: list[str] = []
        self.need(sae.config.layers == 1, "crosscoders")

    def need(self, ok: bool, what: str) -> None:
        """Refuse an SAE that the format has no `what` for."""
        check(ok, f"sae: the format {self.target} has no {what}: got {self.config}")

    def set(self, **tensors: Tensor) -> None:
        """In the precision of the parameters."""
        dtype = self.tensors["W_enc"].dtype
        self.tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def wide(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def unit_rows(self) -> None:
        """scale_by_norm: W_dec gets unit rows, W_enc and b_enc are multiplied by their norms. What is selected, and
        thresholds, stay; activations are multiplied by the norms."""
        if not self.config.scale_by_norm:
            return
        norms = self.wide("W_dec").norm(dim=1).clamp_min(1e-8)
        self.set(
            W_dec=self.wide("W_dec") / norms[:, None],
            W_enc=self.wide("W_enc") * norms[:, None],
            b_enc=self.wide("b_enc") * norms,
        )
        self.config = replace(self.config, scale_by_norm=False)
        self.notes.append("norms of the decoder rows into W_enc and b_enc: activations are that much larger")

    def unscaled(self) -> None:
        """input_norm "scale": into W_enc, W_dec, b_dec (and W_skip). Activations stay."""
        if self.config.scales is None:
            return
        self.unit_rows()
        into, out = self.config.scales
        self.set(
            W_enc=self.wide("W_enc") * into, W_dec=self.wide("W_dec") / out, b_dec=self.wide("b_dec") / out
        )
        if "W_skip" in self.tensors:
            self.set(W_skip=self.wide("W_skip") * (into / out))
        self.config = replace(self.config, input_norm="none", scales=None)
        self.notes.append("the scale of the input into W_enc, W_dec and b_dec")

    def centred(self, pre_bias: bool) -> None:
        """Whether b_dec is subtracted from the input: W_enc b_dec moves from or into b_enc. Activations stay."""
        if self.config.pre_bias == pre_bias:
            return
        same = self.config.width_out == self.config.d_in
        self.need(same, "encoder without the subtraction of b_dec, and the output has another width")
        moved = self.wide("W_enc") @ self.wide("b_dec")
        moved = moved if pre_bias else -moved
        self.set(b_enc=self.wide("b_enc") + moved)
        if self.config.activation == "gated":
            self.set(b_mag=self.wide("b_mag") + self.wide("r_mag").exp() * moved)
        d_out = None if pre_bias else self.config.d_out
        self.config = replace(self.config, pre_bias=pre_bias, d_out=d_out)
        self.notes.append("W_enc b_dec into b_enc")

    def jumprelu(self) -> None:
        """ReLU, and BatchTopK with the threshold that it has outside training, as JumpReLU. Activations stay."""
        kind = self.config.activation
        if kind == "jumprelu":
            return
        self.need(kind in ("relu", "batch_topk", "matryoshka"), f"activation {kind!r}")
        threshold = self.tensors["threshold"].clamp_min(0) if kind != "relu" else torch.zeros(())
        self.set(threshold=threshold.expand(self.config.d_sae).contiguous())
        self.config = replace(self.config, activation="jumprelu", k=None, group_sizes=())
        self.notes.append(f"{kind} as JumpReLU with one threshold for all latents")

    def done(self) -> SAE:
        return SAE.of(self.config, self.tensors)


def folded(sae: SAE) -> SAE:
    """A copy that computes the same and can be trained: scales of the input, and the norms that JumpReLU's thresholds
    are compared with, are in the weights.

    Raises:
        InputError: rows that are normalised one by one ("layer_norm", "constant_norm") cannot be folded.
    """
    fold = Folding(sae, "of an SAE that can be trained")
    per_row = sae.config.input_norm in ("layer_norm", "constant_norm")
    fold.need(not per_row, "normalisation of each row: normalise the data instead")
    fold.unscaled()
    if fold.config.activation == "jumprelu":
        fold.unit_rows()
    made = fold.done()
    made.metadata = dict(sae.metadata)
    return made
