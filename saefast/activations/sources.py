"""Activation sources: anything that yields tensors [n, d_in], any n, row after row in a fixed order.

`Trainer.fit` takes any iterable of such tensors; `as_source` wraps it. A source that can also start in the middle
and fetch single rows (`TensorSource`, `ShardSource`) resumes without re-reading and keeps checkpoints small.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.errors import InputError, check
from saefast.storage import FP32

CHUNK = 8192  # rows a random-access source yields at a time


class Source:
    """Base of the sources. Each iteration is one pass over the rows: always the same rows in the same order."""

    d_in: int
    random_access = False
    """Whether `take` works; then a checkpoint of the buffer stores row numbers instead of rows."""

    def __iter__(self) -> Iterator[Tensor]:
        return self.rows()

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        """Tensors [n, d_in] from row `start` to the end of the pass."""
        raise NotImplementedError

    def take(self, index: Tensor) -> Tensor:
        """index [m] int64 -> rows [m, d_in]."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the run folder records of this source."""
        return {"type": type(self).__name__}

    def mark(self, row: int) -> dict[str, int]:
        """What a checkpoint holds besides the number of the next row, for `go_on`, where finding that row is costly."""
        return {}

    def go_on(self, mark: dict[str, Any]) -> None:
        """After a resume, before `rows` is called: what `mark` gave when the checkpoint was written."""


class TensorSource(Source):
    """A tensor [n, d_in] in memory or memory-mapped."""

    random_access = True

    def __init__(self, tensor: Tensor, name: str = "source", path: Path | None = None) -> None:
        check(tensor.ndim == 2, f"{name}: expected shape [n, d_in], got {list(tensor.shape)}")
        ok = tensor.layout == torch.strided and not tensor.is_meta
        check(ok, f"{name}: expected rows in memory, got {tensor.layout} on {tensor.device}")
        check(tensor.is_floating_point(), f"{name}: expected a floating-point dtype, got {tensor.dtype}")
        got = f"an empty tensor {list(tensor.shape)}"
        check(tensor.numel() > 0, f"{name}: expected at least one row, got {got}")
        self.tensor, self.path, self.d_in = tensor, path, tensor.shape[1]

    def __len__(self) -> int:
        return len(self.tensor)

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        for i in range(start, len(self.tensor), CHUNK):
            yield self.tensor[i : i + CHUNK]

    def take(self, index: Tensor) -> Tensor:
        return self.tensor[index]

    def describe(self) -> dict[str, Any]:
        return {"type": "tensor", "path": str(self.path) if self.path else None, "n_tokens": len(self)}


class IterableSource(Source):
    """Any iterable of tensors [n, d_in]. To resume, it is read again from its start and the rows seen are dropped."""

    def __init__(self, iterable: Iterable[Tensor], d_in: int) -> None:
        kind = type(iterable).__name__
        check(isinstance(iterable, Iterable), f"source: expected an iterable of tensors, got {kind}")
        self.iterable, self.d_in = iterable, d_in

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        seen = 0
        for chunk in self.iterable:
            if not isinstance(chunk, Tensor) or chunk.ndim != 2 or chunk.shape[1] != self.d_in:
                got = list(chunk.shape) if isinstance(chunk, Tensor) else type(chunk).__name__
                raise InputError(f"source: expected tensors [n, {self.d_in}], got {got}")
            check(chunk.is_floating_point(), f"source: expected a floating-point dtype, got {chunk.dtype}")
            if seen + len(chunk) > start:
                yield chunk[max(0, start - seen) :]
            seen += len(chunk)


class SyntheticSource(Source):
    """Sparse combinations of known directions: x = offset + sum of n_active random directions times activations.

    Args:
        d_in: width of the rows.
        n_features: number of true directions, which have unit norm.
        n_active: number of directions in each row.
        n_tokens: rows in a pass.
        noise: standard deviation of Gaussian noise.
        seed: of everything that is random.

    `directions` [n_features, d_in] is the ground truth. Activations are uniform in [0.5, 1.5].
    """

    random_access = True

    def __init__(
        self, d_in: int, n_features: int, n_active: int, n_tokens: int, noise: float = 0.0, seed: int = 0
    ) -> None:
        in_range = 0 < n_active <= n_features
        check(in_range, f"n_active: expected 1 to n_features = {n_features}, got {n_active}")
        self.d_in, self.n_features, self.n_active = d_in, n_features, n_active
        self.n_tokens, self.noise, self.seed = n_tokens, noise, seed
        generator = torch.Generator("cpu").manual_seed(seed)
        directions = torch.randn(n_features, d_in, generator=generator, **FP32)
        self.directions = torch.nn.functional.normalize(directions, dim=1)
        self.offset = torch.randn(d_in, generator=generator, **FP32) / d_in**0.5

    def __len__(self) -> int:
        return self.n_tokens

    def _block(self, block: int) -> Tensor:
        """Rows block * CHUNK to (block + 1) * CHUNK - 1. Each block has its own seed, so that any block can be made."""
        n = min(CHUNK, self.n_tokens - block * CHUNK)
        generator = torch.Generator("cpu").manual_seed(hash((self.seed, block)) % 2**63)
        active = (
            torch.rand(n, self.n_features, generator=generator, **FP32).topk(self.n_active, dim=1).indices
        )
        acts = torch.rand(n, self.n_active, generator=generator, **FP32) + 0.5
        sums = torch.nn.functional.embedding_bag(active, self.directions, per_sample_weights=acts, mode="sum")
        return self.offset + sums + self.noise * torch.randn(n, self.d_in, generator=generator, **FP32)

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        for block in range(start // CHUNK, -(-self.n_tokens // CHUNK)):
            yield self._block(block)[max(0, start - block * CHUNK) :]

    def take(self, index: Tensor) -> Tensor:
        out = torch.empty(len(index), self.d_in, **FP32)
        for block in (index // CHUNK).unique().tolist():
            chosen = index // CHUNK == block
            out[chosen] = self._block(block)[index[chosen] - block * CHUNK]
        return out


def as_source(source: Iterable[Tensor] | Tensor, d_in: int) -> Source:
    """Wrap `source` if it is not a Source yet, and check its width against d_in."""
    if isinstance(source, Tensor):
        source = TensorSource(source)
    elif not isinstance(source, Source):
        source = IterableSource(source, d_in)
    check(source.d_in == d_in, f"source: expected activations of width d_in = {d_in}, got {source.d_in}")
    return source
