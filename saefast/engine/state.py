"""Everything a training step changes, all on one device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saefast.reference import Params
from saefast.storage import Matrix, Vector, Weights, allocate, join_fp32


@dataclass
class State:
    weights: Weights
    num_tokens_since_fired: Tensor  # [F] int64
    fired: Tensor  # [F] int64, tokens in which the latent was active, of the last `fired_tokens`
    counter: Tensor  # [] int64, `step` on the device
    fired_tokens: int = 0
    step: int = 0
    dead_capacity: int = 0  # rows reserved for dead latents until the next count, see `saefast.engine.auxk`
    dead_ahead: int | None = (
        None  # of a checkpoint on a GPU: what was counted for the interval that begins then
    )
    dense: bool = False  # whether the next code is, see `saefast.engine.plan.stays_dense`
    extra: dict[str, Vector] = field(default_factory=dict)  # what the architecture trains besides
    smallest: Tensor | None = None  # [], if asked for: `Architecture.smallest` of the last batch

    @classmethod
    def fresh(
        cls,
        params: Params,
        param_dtype: str = "fp32",
        state_dtype: str = "fp32",
        compute_dtype: torch.dtype | None = None,
        extra: dict[str, Tensor] | None = None,
        low: Sequence[Tensor | None] = (None, None),
    ) -> "State":
        """A state around `params`, which are trained in place where param_dtype is "fp32", and the `extra` ones;
        moments are zero. low: where W_enc and W_dec are those of `storage.narrowed` already."""
        compute_dtype = compute_dtype or params.W_enc.dtype
        enc, dec = (
            allocate(W, param_dtype, state_dtype, compute_dtype, below)
            for W, below in zip((params.W_enc, params.W_dec), low, strict=True)
        )
        b_enc, b_dec = (
            Vector(b, torch.zeros_like(b), torch.zeros_like(b)) for b in (params.b_enc, params.b_dec)
        )
        since, fired = (torch.zeros_like(params.b_enc, dtype=torch.int64) for _ in range(2))
        counter = torch.zeros((), dtype=torch.int64, device=since.device)
        vectors = {n: Vector(t, torch.zeros_like(t), torch.zeros_like(t)) for n, t in (extra or {}).items()}
        return cls(Weights(enc, dec, b_enc, b_dec), since, fired, counter, extra=vectors)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: every tensor that cannot be computed from the others."""
        found: dict[str, Tensor | None] = {
            "num_tokens_since_fired": self.num_tokens_since_fired,
            "fired": self.fired,
        }
        for name, matrix in (("W_enc", self.weights.enc), ("W_dec", self.weights.dec)):
            found |= {f"params.{name}": matrix.weight, f"low.{name}": matrix.low}
            found |= {f"exp_avg.{name}": matrix.exp_avg, f"exp_avg_sq.{name}": matrix.exp_avg_sq}
            found |= {f"scales.{name}": matrix.scales}
        vectors = {"b_enc": self.weights.b_enc, "b_dec": self.weights.b_dec} | self.extra
        for name, vector in vectors.items():
            found |= {f"params.{name}": vector.value}
            found |= {f"exp_avg.{name}": vector.exp_avg, f"exp_avg_sq.{name}": vector.exp_avg_sq}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def refresh(self) -> None:
        """Bring what is computed from the others up to date: after the tensors or `step` were set from outside."""
        for matrix in (self.weights.enc, self.weights.dec):
            if matrix.shadow is not matrix.weight:
                matrix.shadow.copy_(matrix.weight)
        self.counter.fill_(self.step)

    @property
    def params(self) -> Params:
        """The parameters as the forward pass sees them."""
        enc, dec, b_enc, b_dec = self.weights
        return Params(enc.weight, b_enc.value, dec.weight, b_dec.value)

    def exported(self) -> Params:
        """The parameters as precise as they are kept: with "split" and "split24" joined to fp32, on the CPU."""
        enc, dec, b_enc, b_dec = self.weights
        return Params(_whole(enc), b_enc.value, _whole(dec), b_dec.value)


def _whole(matrix: Matrix) -> Tensor:
    return matrix.weight if matrix.low is None else join_fp32(matrix.weight.cpu(), matrix.low.cpu())
