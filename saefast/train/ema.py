"""The exponential moving average of all parameters, as in OpenAI's code for Gao et al. 2024 (arXiv 2406.04093).

    average <- decay * average + (1 - decay) * parameter    from 0, every step
    what is used: average / (1 - decay^steps)

OpenAI takes decay = 0.999, and calls it before its optimizer steps, so that its average is one step behind; call
`update` there for the same numbers. One copy in fp32 (fp64 of an fp64 SAE), whatever the weights are kept in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from saefast.errors import InputError, check
from saefast.reference import normalize_rows_
from saefast.storage import Matrix, load_weight

ROWS_AT_ONCE = 2**12
PREFIX, STEPS = "ema.", "ema.steps"

Parameter = Tensor | Matrix


class Ema:
    """Starts from zero.

    Args:
        params: by name; only their shapes, dtypes and device are read. Tensors are fp32 (or fp64); a Matrix of any
            param_dtype is averaged as precisely as it is kept.
        decay: in [0, 1).
    """

    def __init__(self, params: Mapping[str, Parameter], decay: float) -> None:
        check(0 <= decay < 1, f"ema_decay: expected a number from 0 to below 1, got {decay!r}")
        self.decay = decay
        self._sums = {name: _zeros(param) for name, param in params.items()}
        self._steps = torch.zeros((), dtype=torch.int64, device="cpu")

    @property
    def steps(self) -> int:
        return int(self._steps)

    @torch.no_grad()
    def update(self, params: Mapping[str, Parameter]) -> None:
        """Take the parameters as they are now, of the names and shapes of the first, into the average. Nothing waits."""
        assert params.keys() == self._sums.keys(), f"{list(params)} != {list(self._sums)}"
        whole: dict[str, Tensor] = {}
        for name, param in params.items():
            if isinstance(param, Tensor):
                whole[name] = param
            elif param.weight.dtype == self._sums[name].dtype:
                whole[name] = param.weight
            else:
                _lerp_rows_(self._sums[name], param, 1 - self.decay)
        if whole:
            torch._foreach_lerp_([self._sums[name] for name in whole], list(whole.values()), 1 - self.decay)
        self._steps += 1

    @torch.no_grad()
    def averaged(self, unit_norm: bool) -> dict[str, Tensor]:
        """The average as new tensors. unit_norm: of the rows of W_dec, which an average of unit rows is shorter than.

        Raises:
            InputError: before the first `update`.
        """
        if not self.steps:
            raise InputError("ema: expected at least one step, got none: there is nothing to average")
        sums = list(self._sums.values())
        means = torch._foreach_div(sums, 1 - self.decay**self.steps)
        found = dict(zip(self._sums, means, strict=True))
        if unit_norm:
            normalize_rows_(found["W_dec"])
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by flat names; the tensors themselves, so that it may be copied back into them."""
        return {f"{PREFIX}{name}": total for name, total in self._sums.items()} | {STEPS: self._steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()`; other names are ignored. Raises InputError if one is missing or does not fit."""
        for name, target in self.tensors().items():
            found = list(tensors[name].shape) if name in tensors else None
            check(found == list(target.shape), f"{name}: expected shape {list(target.shape)}, got {found}")
            target.copy_(tensors[name])


@contextmanager
def held_at(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it `params` hold `values`, say `Ema.averaged` or `Optimizer.averaged`; then their own bits again."""
    own = {name: param.clone() for name, param in params.items()}
    try:
        for name, param in params.items():
            param.copy_(values[name])
        yield
    finally:
        for name, param in params.items():
            param.copy_(own[name])


def _zeros(param: Parameter) -> Tensor:
    like = param if isinstance(param, Tensor) else param.weight
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _lerp_rows_(average: Tensor, matrix: Matrix, weight: float) -> None:
    """A few rows at a time: the whole matrix in fp32 would be a second copy."""
    for start in range(0, len(average), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = Matrix(*(None if tensor is None else tensor[rows] for tensor in matrix))  # type: ignore[arg-type]
        average[rows].lerp_(load_weight(part), weight)
