"""The SAE as an ordinary `nn.Module`: parameters, encode, decode, forward, save and load."""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from saefast import formats, reference
from saefast.config.sae import SAEConfig
from saefast.engine.architectures import extra_parameters
from saefast.errors import check
from saefast.formats import saefast as own_format
from saefast.formats.contents import Origin
from saefast.sae.inference import dense_acts, finish, listed, normed, scales_of
from saefast.storage import FP32

ROWS_AT_ONCE = 2**14
S = TypeVar("S", bound="SAE")


class SAEOutput(NamedTuple):
    """Result of `SAE.forward`."""

    x_hat: Tensor  # [B, d_out] reconstruction
    fvu: Tensor  # [] at least fp32: `reference.fvu` of this batch; NaN for a transcoder without a target
    top_acts: Tensor  # [B, L]
    top_indices: Tensor  # [B, L] int32


class SAE(nn.Module):
    """A sparse autoencoder of any architecture; differentiable by autograd, on any device.

    x_hat = b_dec + sum over the active latents of act * W_dec[latent],  pre_acts = W_enc (x - b_dec) + b_enc

    Which latents are active, and how strongly, is a function of the pre-activations, see `saefast.engine.architectures`.
    The straight-through gradients of JumpReLU exist in `Trainer` only: autograd gives its threshold no gradient.

    Args:
        config: sizes and architecture.
        seed: seed of the initial weights. W_dec has random unit rows. W_enc is a copy of it (the transpose, in the usual
            [d_in, d_sae] layout), or has its own random unit rows if input and output differ in width. Biases are 0;
            `Trainer.fit` moves b_dec to the centre of the data.
        device: of the parameters.
        weight_dtype: of W_enc and W_dec; biases are fp32. The matrices are made a few rows at a time, so that a
            dictionary that fills the device needs no second copy anywhere.

    The parameters are always in the units of the data, before, during and after training. (Those of JumpReLU are from
    the first step on.)

    Attributes:
        metadata: plain values that are saved with it: "model_name", "hook_name" where they are known.
        origin: what is known of the file of another project that it comes from, see `saefast.formats.Origin`; else None.
    """

    def __init__(
        self,
        config: SAEConfig,
        seed: int = 0,
        device: str | torch.device = "cpu",
        weight_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.origin: Origin | None = None
        generator = torch.Generator("cpu").manual_seed(seed)

        def unit_rows(width: int) -> Tensor:
            matrix = torch.empty(config.d_sae, width, device=device, dtype=weight_dtype)
            for rows in matrix.split(ROWS_AT_ONCE) if not matrix.is_meta else ():
                rows.copy_(reference.normalize_rows_(torch.randn(rows.shape, generator=generator, **FP32)))
            return matrix

        self.W_dec = nn.Parameter(unit_rows(config.width_out))
        same = config.width_out == config.d_in
        self.W_enc = nn.Parameter(self.W_dec.detach().clone() if same else unit_rows(config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae, dtype=torch.float32, device=device))
        self.b_dec = nn.Parameter(torch.zeros(config.width_out, dtype=torch.float32, device=device))
        for name, value in extra_parameters(config, device).items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=value.ndim > 0))
        self._first_rows = self._some_rows()

    @classmethod
    def of(cls, config: SAEConfig, tensors: dict[str, Tensor]) -> Self:
        """An SAE whose parameters are these tensors, by name and of the right shapes. They are not copied."""
        sae = cls(config, device="meta")
        sae.load_state_dict(tensors, assign=True)
        return sae

    def _some_rows(self) -> Tensor:
        """A copy of a few rows of W_dec, by which weights are told apart."""
        rows = self.W_dec.detach()[:: -(-self.config.d_sae // 16)]
        return rows if rows.is_meta else rows.to("cpu", copy=True)

    @property
    def fresh(self) -> bool:
        """Whether W_dec is still what the constructor drew: neither trained, nor loaded, nor set by hand."""
        if self._first_rows.is_meta or self.W_dec.is_meta:
            return False
        return torch.equal(self._some_rows(), self._first_rows.to(self.W_dec.dtype))

    @property
    def params(self) -> reference.Params:
        """The parameters without autograd, sharing memory with the module."""
        return reference.Params(self.W_enc.data, self.b_enc.data, self.W_dec.data, self.b_dec.data)

    @property
    def extra(self) -> dict[str, Tensor]:
        """The parameters that the architecture has besides these, without autograd, sharing memory."""
        own = reference.Params._fields
        return {name: param.data for name, param in self.named_parameters() if name not in own}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name, without autograd, sharing memory."""
        return self.params._asdict() | self.extra

    def check_input(self, x: Tensor, name: str = "x", width: int | None = None) -> None:
        """Raise InputError unless x is [B, width] (default d_in) with the dtype and device of the parameters."""
        width, weight = width or self.config.d_in, self.W_enc
        ok = isinstance(x, Tensor) and x.layout == torch.strided and x.ndim == 2 and x.shape[1] == width
        check(ok, f"{name}: expected a tensor [B, {width}], got {_described(x)}")
        dtype = self.b_dec.dtype  # W_enc and W_dec may be kept in bf16
        check(x.dtype == dtype, f"{name}: expected dtype {dtype}, got {x.dtype}")
        check(x.device == weight.device, f"{name}: expected device {weight.device}, got {x.device}")

    def rows(self, x: Tensor, target: Tensor | None) -> Tensor:
        """x [B, d_in] and, for a transcoder, target [B, d_out] -> rows [B, row_width] as `Trainer.fit` reads them.

        Raises:
            InputError: x or target does not fit the SAE.
        """
        self.check_input(x)
        d_out = self.config.d_out
        check(d_out is None or target is not None, f"target: expected a tensor [B, {d_out}], got None")
        self._check_target(x, target)
        return x if target is None else torch.cat([x, target], dim=1)

    def _check_target(self, x: Tensor, target: Tensor | None) -> None:
        if target is not None:
            why = "the SAE reconstructs its input (d_out is None)"
            check(self.config.d_out is not None, f"target: expected None, {why}, got one")
            self.check_input(target, "target", self.config.d_out)
            check(len(target) == len(x), f"target: expected {len(x)} rows as x, got {len(target)}")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, d_in] -> top_acts [B, L], largest first, top_indices [B, L] int32. L is k; for architectures without a
        bound it is the most that a token has active. An activation of 0 is not active."""
        self.check_input(x)
        if self.config.activation == "topk" and not self.config.scale_by_norm:
            return reference.topk(self.pre_acts(x), self.config.top_k)
        extra = {name: getattr(self, name) for name in self.extra}
        params = reference.Params(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        return listed(dense_acts(self.pre_acts(x), params, extra, self.config), self.config.k_of_token)

    def pre_acts(self, x: Tensor) -> Tensor:
        """x [B, d_in] -> [B, d_sae]."""
        x = x if (rows := normed(self.config, x)) is None else rows.x
        subtracted = self.b_dec if self.config.pre_bias else self.b_dec.new_zeros(())
        return reference.encode(x, self.W_enc, self.b_enc, subtracted)

    def decode(self, top_acts: Tensor, top_indices: Tensor, x: Tensor | None = None) -> Tensor:
        """top_acts [B, L], top_indices [B, L] integers (int32 or int64) below d_sae, any L -> x_hat [B, d_out].

        x: [B, d_in], needed for what a skip transcoder adds, and where rows are normalised (`input_norm`).
        """
        ok = isinstance(top_acts, Tensor) and top_acts.ndim == 2
        check(ok, f"top_acts: expected a tensor [B, L], got {_described(top_acts)}")
        ok, want = (
            isinstance(top_indices, Tensor) and top_acts.shape == top_indices.shape,
            list(top_acts.shape),
        )
        check(ok, f"top_indices: expected the shape of top_acts {want}, got {_described(top_indices)}")
        ok = top_indices.dtype in (torch.int32, torch.int64)
        check(ok, f"top_indices: expected dtype torch.int32 or torch.int64, got {top_indices.dtype}")
        if top_indices.device.type == "cpu" and top_indices.numel():  # elsewhere it would wait for the device
            least, most = (int(value) for value in top_indices.aminmax())
            ok, d_sae = least >= 0 and most < self.config.d_sae, self.config.d_sae
            check(ok, f"top_indices: expected 0 to d_sae - 1 = {d_sae - 1}, got {least} to {most}")
        x_hat = reference.decode(top_acts, top_indices, self.W_dec, self.b_dec)
        if not self.config.skip and self.config.input_norm in ("none", "scale"):
            return x_hat if self.config.scales is None else x_hat * (1 / scales_of(self.config, x_hat)[1])
        given = x is not None
        check(given, "x: expected the input (a skip transcoder, or rows that are normalised), got None")
        assert x is not None
        self.check_input(x)
        check(len(x) == len(top_acts), f"x: expected {len(top_acts)} rows as top_acts, got {len(x)}")
        return finish(self.config, x_hat, x, {name: getattr(self, name) for name in self.extra})

    def forward(self, x: Tensor, target: Tensor | None = None) -> SAEOutput:
        """x [B, d_in] -> SAEOutput(x_hat, fvu, top_acts, top_indices). The fvu of a transcoder needs its target [B, d_out]."""
        top_acts, top_indices = self.encode(x)
        self._check_target(x, target)
        x_hat = self.decode(top_acts, top_indices, x)
        goal = target if self.config.d_out is not None else x
        fvu = x_hat.new_full((), torch.nan) if goal is None else reference.fvu(x_hat, goal)
        return SAEOutput(x_hat, fvu, top_acts, top_indices)

    def save_pretrained(self, path: str | Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Write `sae.safetensors` and `config.json` into the folder `path`, each atomically, with a checksum.

        tensors: all parameters by name, written in place of the module's own: a trainer may hold more precise ones.
        """
        own_format.write(self, Path(path), tensors)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", format: str | None = None
    ) -> Self:
        """Load a folder of `save_pretrained` or of a finished run, or an SAE of another project.

        Args:
            path: a folder or file, or "organisation/repository/folder" on the Hugging Face Hub (with the extra `hub`).
            format: one of `saefast.formats.FORMATS`; None looks at the files.

        Raises:
            InputError: a file is missing, corrupt or would run code, the weights do not fit the config, or the SAE
                computes what saefast does not.
        """
        found = formats.load(path, format)
        sae = cls.of(found.config, found.tensors)
        sae.metadata, sae.origin = found.metadata, found.origin
        return sae.to(device)


def _described(x: Any) -> str:
    """What was given in place of a tensor, or its shape."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__} {list(getattr(x, 'shape', []))}".removesuffix(" []")
    return str(list(x.shape)) if x.layout == torch.strided else f"{x.layout} {list(x.shape)}"


@torch.no_grad()
def geometric_median(x: Tensor, max_iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """x [n, d_in] -> [d_in], the point whose distances to the rows have the smallest sum, by Weiszfeld's algorithm.

    Unlike the mean, it hardly depends on a few rows of huge norm. It stops when a step is below tolerance * ||point||.
    """
    point = x.mean(dim=0)
    for _ in range(max_iterations):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-12)
        with torch.autocast(x.device.type, enabled=False):
            previous, point = point, (weights / weights.sum()) @ x
        if (point - previous).norm() <= tolerance * point.norm():
            break
    return point
