"""What both sides of the parity runs share: the rows and their order, the sizes, what each peer is asked to do.

The peers' defaults are for runs a hundred times as long. What counts steps or tokens is scaled down to these 500
steps (the warm-ups, the decay, the window after which a latent is dead, BatchTopK's average); the learning rates are
the peers' rules or were tuned on a pilot run of the peer. The rest is as their trainers have it by default.

PARITY_SHAPE=2048,4608 in the environment takes another batch size and number of latents, for the times.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import open_source

SHAPE = os.environ.get("PARITY_SHAPE", "256,1152")
B, D_SAE = map(int, SHAPE.split(","))
K, STEPS = 32, 500
WARMUP, DECAY, SPARSITY_WARMUP = 25, 100, 50  # steps: 5, 20 and 10 %
DEAD_TOKENS = 40 * B  # 40 batches, for those that count tokens and those that count batches
GROUPS = tuple(D_SAE * n // 32 for n in (1, 2, 4, 8, 17))  # Matryoshka, latents of each group
THRESHOLD_RATE = 0.01  # of BatchTopK's average
SEEDS = (0, 1, 2)
Encode = Callable[[Tensor], Tensor]


class Recipe(NamedTuple):
    """One trainer of a peer."""

    library: str
    kind: str
    units: str  # what the rows are divided by, see `scale_of`
    lr: float
    sparsity: float = 0.0  # the coefficient of its penalty

    @property
    def with_k(self) -> bool:
        return not self.sparsity


DL, SP, SL = "dictionary_learning", "sparsify", "SAELens"
RECIPES = {
    "DL Standard": Recipe(DL, "Standard", "rms", 1e-3, 0.06),
    "DL TopK": Recipe(DL, "TopK", "rms", 2e-3),
    "DL BatchTopK": Recipe(DL, "BatchTopK", "rms", 2e-3),
    "DL JumpReLU": Recipe(DL, "JumpReLU", "rms", 1e-3, 1.0),
    "DL JumpReLU formula": Recipe(DL, "JumpReLU formula", "rms", 1e-3, 1.0),
    "DL Gated": Recipe(DL, "Gated", "rms", 1e-3, 0.2),
    "DL Matryoshka": Recipe(DL, "Matryoshka", "rms", 2e-3),
    "DL Matryoshka formula": Recipe(DL, "Matryoshka formula", "rms", 2e-3),
    "SP TopK Adam": Recipe(SP, "adam", "none", 2e-3),
    "SP TopK signum": Recipe(SP, "signum", "none", 5e-3),
    "SL TopK": Recipe(SL, "TopK", "sqrt_d", 2e-3),
    "SL BatchTopK": Recipe(SL, "BatchTopK", "sqrt_d", 2e-3),
    "SL JumpReLU": Recipe(SL, "JumpReLU", "sqrt_d", 2e-3, 3.0),
    "SL Standard": Recipe(SL, "Standard", "sqrt_d", 1e-3, 2.5),
}


def read(folder: str) -> Tensor:
    return torch.cat([rows.float() for rows in open_source(folder).rows()])


def scale_of(units: str, x: Tensor) -> float:
    """The peers' normalisations: dictionary_learning's E||x||^2 = 1, SAELens's E||x|| = sqrt(d_in), sparsify's none."""
    norms = x.norm(dim=1).double()
    return {
        "none": 1.0,
        "rms": 1 / float(norms.square().mean().sqrt()),
        "sqrt_d": x.shape[1] ** 0.5 / float(norms.mean()),
    }[units]


def batch_indices(seed: int, n_rows: int, steps: int = STEPS) -> Iterator[Tensor]:
    """Rows of each batch: all rows once in the order of a seed, then again in another."""
    generator = torch.Generator().manual_seed(1000 + seed)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < B:
            left = torch.cat([left, torch.randperm(n_rows, generator=generator)])
        batch, left = left[:B], left[B:]
        yield batch


@torch.no_grad()
def score(encode: Encode, decode: Encode, x: Tensor) -> dict[str, float]:
    """x [n, d_in] of held-out rows; encode gives dense activations. FVU is over all rows at once."""
    squared = active = 0.0
    ever = torch.zeros(D_SAE, dtype=torch.bool)
    for rows in x.split(2048):
        acts = encode(rows)
        squared += float((decode(acts) - rows).double().square().sum())
        active += float((acts != 0).sum())
        ever |= (acts != 0).any(dim=0)
    variance = float((x - x.mean(dim=0)).double().square().sum())
    return {"fvu": squared / variance, "l0": active / len(x), "dead": 1 - float(ever.double().mean())}
