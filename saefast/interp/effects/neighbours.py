"""Which latents are alike in their weights, and along which coordinates of the activations they write."""

from typing import Literal

import torch
from torch import Tensor

from saefast.errors import check
from saefast.interp.effects.ranking import top_of
from saefast.interp.effects.types import Alignment, Neighbours
from saefast.sae import SAE

ROWS, COLUMNS = 1024, 8192  # of a block of cosines: 32 MiB, and about twice that while the largest are found


@torch.no_grad()
def neighbours(
    sae: SAE, other: SAE | None = None, n: int = 10, side: Literal["decoder", "encoder"] = "decoder"
) -> Neighbours:
    """For each latent the n of largest cosine of their rows of W_dec (or W_enc), exact; of equal ones the smaller index.

    2 F G d FLOP for F latents against G of width d, and bounded memory besides the weights: a block of cosines, and a copy
    of both matrices in fp32. 100,000 latents of width 576 are 1.2e13 FLOP: some minutes on two cores.

    Args:
        other: the SAE to look in; default: the same one, in which no latent is its own neighbour.

    Raises:
        InputError: another width than that of `other`, n < 1, or another side.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    check(side in ("decoder", "encoder"), f"side: expected 'decoder' or 'encoder', got {side!r}")
    rows = _unit(sae.W_dec if side == "decoder" else sae.W_enc)
    among = rows
    if other is not None:
        among = _unit(other.W_dec if side == "decoder" else other.W_enc).to(rows.device)
    want = f"an SAE with {side} width {rows.shape[1]}"
    check(among.shape[1] == rows.shape[1], f"other: expected {want}, got {among.shape[1]}")
    is_zero = ~among.any(dim=1)
    found: list[tuple[Tensor, Tensor]] = []
    for first, block in zip(range(0, len(rows), ROWS), rows.split(ROWS), strict=True):
        values, indices = (
            block.new_full((len(block), n), -torch.inf),
            is_zero.new_full((len(block), n), -1).long(),
        )
        for start, columns in zip(range(0, len(among), COLUMNS), among.split(COLUMNS), strict=True):
            cosine = block @ columns.T
            cosine[:, is_zero[start : start + len(columns)]] = -torch.inf
            cosine[~block.any(dim=1)] = -torch.inf
            if other is None:
                own = torch.arange(first, first + len(block), dtype=torch.int64, device=block.device) - start
                inside = (own >= 0) & (own < len(columns))
                cosine[inside.nonzero().squeeze(1), own[inside]] = -torch.inf
            best, at = top_of(cosine, n)
            best = torch.where(at >= 0, best, -torch.inf)
            at = torch.where(at >= 0, at + start, -1)
            values, indices = _merged(torch.cat([values, best], dim=1), torch.cat([indices, at], dim=1), n)
        found.append((indices, torch.where(indices >= 0, values, 0)))
    indices, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(indices.to("cpu", torch.int32), values.float().cpu())


def _merged(values: Tensor, indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of those found so far and those of a later block, in this order: of equal ones the earlier stay."""
    best, at = top_of(values, n)
    return torch.where(at >= 0, best, -torch.inf), torch.where(
        at >= 0, indices.gather(1, at.clamp(min=0)), -1
    )


def _unit(weight: Tensor) -> Tensor:
    """Rows of length 1 in fp32 at least; rows of zeros stay."""
    rows = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    largest = rows.abs().amax(dim=1, keepdim=True)  # so that no square is too small or too large
    rows = rows / torch.where(largest > 0, largest, 1)
    norm = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1)


@torch.no_grad()
def alignment(sae: SAE, n: int = 10) -> Alignment:
    """The n coordinates with the largest |W_dec| of each latent, of equal ones the smaller; those of 0 are left out.

    One pass over W_dec. With the SAE of an MLP's hidden activations a coordinate is a neuron.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    parts = []
    for rows in sae.W_dec.detach().split(ROWS):
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        size = rows.abs()
        _, indices = top_of(torch.where(size > 0, size, -torch.inf), n)
        values = torch.where(indices >= 0, rows.gather(1, indices.clamp(min=0)), 0)
        total = size.sum(dim=1, keepdim=True)
        parts.append((indices, values, values.abs() / torch.where(total > 0, total, 1)))
    indices, values, l1 = (torch.cat(part) for part in zip(*parts, strict=True))
    return Alignment(indices.to("cpu", torch.int32), values.float().cpu(), l1.float().cpu())
