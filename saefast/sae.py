"""The SAE as an ordinary `nn.Module`: parameters, encode, decode, forward, save and load."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saefast import reference
from saefast.config import SAEConfig
from saefast.errors import InputError, check
from saefast.files import load_tensors, read_json, save_tensors, write_json

WEIGHTS, CONFIG = "sae.safetensors", "config.json"
ROWS_AT_ONCE = 2**14


class SAEOutput(NamedTuple):
    """Result of `SAE.forward`."""

    x_hat: Tensor  # [B, d_in] reconstruction
    fvu: Tensor  # [] fraction of variance unexplained, over this batch
    top_acts: Tensor  # [B, k]
    top_indices: Tensor  # [B, k] int32


class SAE(nn.Module):
    """A TopK sparse autoencoder; differentiable by autograd, on any device.

    x_hat = b_dec + sum over the k active latents of act * W_dec[latent],  act = relu(W_enc (x - b_dec) + b_enc)

    Args:
        config: sizes and activation.
        seed: seed of the initial weights. W_dec has random unit rows, W_enc is a copy of it (its transpose in the
            field's [d_in, d_sae] layout), biases are 0; `Trainer.fit` moves b_dec to the centre of the data.
        device, weight_dtype: of the parameters, and of W_enc and W_dec (biases are fp32). They are made a few rows at
            a time, so that a dictionary that fills the device needs no second copy anywhere.

    The parameters are always in the units of the data, before, during and after training.
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
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.empty(config.d_sae, config.d_in, device=device, dtype=weight_dtype)
        for rows in W_dec.split(ROWS_AT_ONCE):
            rows.copy_(reference.normalize_rows_(torch.randn(rows.shape, generator=generator)))
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae, device=device))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in, device=device))

    @property
    def params(self) -> reference.Params:
        """The parameters without autograd, sharing memory with the module."""
        return reference.Params(self.W_enc.data, self.b_enc.data, self.W_dec.data, self.b_dec.data)

    def check_input(self, x: Tensor) -> None:
        """Raise InputError unless x is [B, d_in] with the dtype and device of the parameters."""
        d_in, weight = self.config.d_in, self.W_enc
        ok = isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == d_in
        check(ok, f"x: expected a tensor [B, {d_in}], got {list(getattr(x, 'shape', [type(x).__name__]))}")
        dtype = self.b_dec.dtype  # W_enc and W_dec may be kept in bf16
        check(x.dtype == dtype, f"x: expected dtype {dtype}, got {x.dtype}")
        check(x.device == weight.device, f"x: expected device {weight.device}, got {x.device}")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, d_in] -> top_acts [B, k] in descending order, top_indices [B, k] int32."""
        self.check_input(x)
        return reference.topk(reference.encode(x, self.W_enc, self.b_enc, self.b_dec), self.config.k)

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """top_acts [B, k'], top_indices [B, k'] integers below d_sae, any k' -> x_hat [B, d_in]."""
        check(
            top_acts.ndim == 2 and top_acts.shape == top_indices.shape,
            f"top_indices: expected the shape of top_acts {list(top_acts.shape)}, got {list(top_indices.shape)}",
        )
        return reference.decode(top_acts, top_indices, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> SAEOutput:
        """x [B, d_in] -> SAEOutput(x_hat, fvu, top_acts, top_indices)."""
        top_acts, top_indices = self.encode(x)
        x_hat = self.decode(top_acts, top_indices)
        return SAEOutput(x_hat, reference.fvu(x_hat, x), top_acts, top_indices)

    def save_pretrained(self, path: str | Path, params: reference.Params | None = None) -> None:
        """Write `sae.safetensors` and `config.json` into the folder `path`, each atomically, with a checksum.

        params: written in place of the module's own, for a trainer that keeps them more precisely.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, asdict(self.config))
        save_tensors(folder / WEIGHTS, (params or self.params)._asdict(), asdict(self.config))

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> "SAE":
        """Load a folder of `save_pretrained` (or the folder of a finished run).

        Raises:
            InputError: a file is missing or corrupt, or the weights do not fit the config.
        """
        folder = Path(path)
        try:
            config = SAEConfig(**read_json(folder / CONFIG))
        except TypeError as error:
            raise InputError(f"{folder / CONFIG}: expected the fields of SAEConfig, got {error}") from None
        if not (folder / WEIGHTS).exists():
            raise InputError(
                f"{folder / WEIGHTS}: expected a file, found none (a run that is not finished has none)"
            )
        tensors, _, _ = load_tensors(folder / WEIGHTS)
        sae = cls(config)
        for name, param in sae.params._asdict().items():
            found = list(tensors[name].shape) if name in tensors else None
            if found != list(param.shape):
                raise InputError(
                    f"{folder / WEIGHTS}: {name}: expected shape {list(param.shape)}, got {found}"
                )
        others = ", ".join(sorted(tensors.keys() - set(sae.params._fields)))
        check(not others, f"{folder / WEIGHTS}: expected the tensors of an SAE only, got also {others}")
        sae.load_state_dict(tensors)
        return sae.to(device)


def geometric_median(x: Tensor, max_iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """x [n, d_in] -> [d_in], the point with the least sum of distances to the rows, by Weiszfeld's algorithm.

    Unlike the mean it hardly moves for a few rows of huge norm. Stops when a step is below tolerance * ||point||.
    """
    point = x.mean(dim=0)
    for _ in range(max_iterations):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-12)
        previous, point = point, (weights / weights.sum()) @ x
        if (point - previous).norm() <= tolerance * point.norm():
            break
    return point
