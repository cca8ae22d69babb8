"""The same function with other numbers: what a format has no field for goes into the weights."""

from dataclasses import replace

import torch
from torch import Tensor

from saefast.errors import check
from saefast.formats.contents import S, SAELike, as_read


class Folding:
    """A copy of an SAE that is brought, step by step, into a form that a format can express.

    Sums and products are computed in fp64, so that the result differs from the original by one rounding.

    Attributes:
        config, tensors: of the SAE as it is now. The tensors of the original are never changed.
        notes: a line for each thing that was done.
    """

    def __init__(self, sae: SAELike, target: str) -> None:
        self.config, self.target, self.origin = sae.config, target, sae.origin
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in sae.tensors.items():
            wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
            self.tensors[name] = tensor.detach().cpu().to(wide)
        self.notes: list[str] = []
        self.as_it_was = True  # whether `written` keeps every dtype
        self.need(sae.config.layers == 1, "crosscoders")

    def need(self, ok: bool, what: str) -> None:
        """Unless `ok`, raise InputError: the format has no `what`."""
        check(ok, f"sae: the format {self.target} has no {what}: got {self.config}")

    def set(self, **tensors: Tensor) -> None:
        """Replace these tensors, in the dtype of the parameters."""
        dtype = self.tensors["W_enc"].dtype
        self.tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def wide(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def written(self) -> dict[str, Tensor]:
        """The tensors in the dtypes in which they were read, see `as_read`; a note says where that was not possible."""
        out, widened = as_read(self.tensors, self.origin)
        if widened and self.origin is not None:
            was = ", ".join(dict.fromkeys(self.origin.dtypes[name] for name in widened))
            wide = str(self.tensors["W_enc"].dtype).removeprefix("torch.")
            self.notes.append(
                f"{', '.join(widened)} in {wide}: {was}, in which they were read, would round them"
            )
        self.as_it_was = not widened
        return out

    def unit_rows(self) -> None:
        """Remove `scale_by_norm`: W_dec gets unit rows, W_enc and b_enc are multiplied by the norms that its rows had.
        Which latents are selected and the thresholds stay the same; activations are multiplied by the norms."""
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
        """Remove `input_norm` "scale": its factors go into W_enc, W_dec, b_dec and W_skip. Activations stay the same."""
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
        """Set `pre_bias`, whether b_dec is subtracted from the input: b_enc takes W_enc b_dec up, or gives it back.
        Activations stay the same."""
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
        """Express ReLU, or BatchTopK and Matryoshka with their threshold, as JumpReLU. Activations stay the same."""
        kind = self.config.activation
        if kind == "jumprelu":
            return
        self.need(kind in ("relu", "batch_topk", "matryoshka"), f"activation {kind!r}")
        threshold = (
            self.tensors["threshold"].clamp_min(0)
            if kind != "relu"
            else torch.zeros((), dtype=torch.float32, device="cpu")
        )
        self.set(threshold=threshold.expand(self.config.d_sae).contiguous())
        self.config = replace(self.config, activation="jumprelu", k=None, group_sizes=())
        self.notes.append(f"{kind} as JumpReLU with one threshold for all latents")


def folded(sae: S) -> S:
    """A copy, of the type of `sae`, that computes the same and can be trained: the scales of the input are part of its
    weights, and so are the norms of decoder rows with which JumpReLU's thresholds are compared.

    Raises:
        InputError: rows that are normalised one by one ("layer_norm", "constant_norm") cannot be folded.
    """
    fold = Folding(sae, "of an SAE that can be trained")
    per_row = sae.config.input_norm in ("layer_norm", "constant_norm")
    fold.need(not per_row, "normalisation of each row: normalise the data instead")
    fold.unscaled()
    if fold.config.activation == "jumprelu":
        fold.unit_rows()
    made = type(sae).of(fold.config, fold.tensors)
    made.metadata = dict(sae.metadata)
    return made
