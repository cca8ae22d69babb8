"""Operands of the encoder: centred, W_enc, b_enc; and the comparison of what it selects."""

import torch
from torch import Tensor

from tests.helpers.kernels import DEVICE


def operands(B: int, D: int, F: int, seed: int = 0, kind: str = "random") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centred, W_enc = torch.randn(B, D, generator=generator), torch.randn(F, D, generator=generator)
    b_enc = torch.randn(F, generator=generator)
    if kind == "ties":  # small integers: exact products, few distinct values
        centred, W_enc, b_enc = (t.round().clamp(-1, 1) for t in (centred, W_enc, b_enc))
    elif kind == "negative":
        b_enc -= 1000
    elif kind == "zero":
        W_enc, b_enc = torch.zeros_like(W_enc), torch.zeros_like(b_enc)
    elif kind == "hot":
        b_enc[:: max(1, F // 3)] += 1000
    return centred, W_enc, b_enc


def assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...], name: str = "") -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), name


KINDS = ["random", "ties", "negative", "zero", "hot"]


def integers(
    B: int, D: int, F: int, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    centred, W_enc, b_enc = (torch.randint(-3, 4, size, generator=rng) for size in ((B, D), (F, D), (F,)))
    return centred.to(dtype).to(DEVICE), W_enc.to(dtype).to(DEVICE), b_enc.float().to(DEVICE)


def normals(
    B: int, D: int, F: int, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    centred, W_enc, b_enc = (torch.randn(size, generator=rng).to(DEVICE) for size in ((B, D), (F, D), (F,)))
    return centred.to(dtype), W_enc.to(dtype), b_enc
