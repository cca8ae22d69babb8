"""Random sparse codes in both layouts, for the tests of the ops that read them."""

import torch
from torch import Tensor

Code = tuple[Tensor, Tensor, Tensor | None]  # acts, indices, row_offsets


def fixed_code(B: int, F: int, K: int, seed: int = 0) -> Code:
    """[B, K]: acts > 0, distinct latents within a token."""
    rng = torch.Generator().manual_seed(seed)
    indices = torch.rand(B, F, generator=rng).argsort(dim=1)[:, :K].to(torch.int32).contiguous()
    return torch.randn(B, K, generator=rng).abs() + 0.01, indices, None


def ragged_code(counts: list[int], F: int, unused: int = 3, seed: int = 0) -> Code:
    """[N]: acts > 0, distinct latents within a token. The unused entries at the end look like used ones."""
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.rand(F, generator=rng).argsort()[:count] for count in counts]
    rows.append(torch.arange(unused) % F)
    indices = torch.cat(rows).to(torch.int32)
    row_offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    return torch.randn(len(indices), generator=rng).abs() + 0.01, indices, row_offsets


def code_to(code: Code, device: str) -> Code:
    acts, indices, row_offsets = code
    return acts.to(device), indices.to(device), None if row_offsets is None else row_offsets.to(device)
