"""Known ground truth: sparse sums of known directions, and how many of them a dictionary finds.

Rows are mean + sum of a few random unit directions, more of them than there are dimensions, with coefficients in [0.5, 1.5]. A
direction is found if a row of W_dec has a cosine with it of at least `FOUND`. The control trains the same SAE without b_dec: it
has to explain the mean by latents, which then point elsewhere.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.activations.sources import Source
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.sae import SAE
from saefast.train.trainer import Trainer

FOUND = 0.95
MEAN_NORM = 10.0  # five times that of what varies; at 3 TopK without b_dec finds 99.5 % of the directions after 2 M tokens


class Recovery(NamedTuple):
    """Of one dictionary, trained on rows whose directions are known."""

    found: float  # share of the directions with a cosine of at least FOUND
    median_cosine: float  # of the directions with their nearest latents
    fvu: float  # of the last batch


class Planted(Source):
    """Rows [n, d] without end: mean + coefficients times the rows of `directions` [m, d]."""

    def __init__(self, d_in: int, n_directions: int, active: float, mean_norm: float, seed: int = 0) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        directions = torch.randn(n_directions, d_in, generator=generator, dtype=torch.float32, device="cpu")
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        mean = torch.randn(d_in, generator=generator, dtype=torch.float32, device="cpu")
        self.mean = mean_norm * mean / mean.norm()
        self.d_in, self.share, self.seed = d_in, active / n_directions, seed

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        number, each = start // 8192, 8192
        while True:
            generator = torch.Generator("cpu").manual_seed(self.seed + 1 + number)
            shape = each, len(self.directions)
            draw, size = (
                torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2)
            )
            found = self.mean + ((draw < self.share) * (0.5 + size)) @ self.directions
            yield found[start - number * each if number * each < start else 0 :]
            number += 1


def recovery(
    d_in: int = 64, n_directions: int = 192, active: float = 4.0, tokens: int = 2_000_000, seed: int = 0
) -> dict[str, Recovery]:
    """Train TopK, ReLU with an L1 penalty, and the control without b_dec; a few seconds each on a CPU."""
    source = Planted(d_in, n_directions, active, MEAN_NORM, seed)
    usual: dict[str, Any] = {
        "total_tokens": tokens,
        "batch_size": 2048,
        "lr": 3e-3,
        "decay_fraction": 0.5,
        "seed": seed,
    }
    usual |= {"dead_feature_threshold": 100_000, "normalize_input": False, "buffer_tokens": 32_768}
    k = round(active)
    shapes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "topk": ({"k": k}, {}),
        "l1": ({"activation": "relu"}, {"penalty": "l1", "loss": "mse", "sparsity_coefficient": 0.1}),
        "topk, without b_dec": ({"k": k, "pre_bias": False}, {"init_b_dec": "none", "lr_b_dec": 0.0}),
    }
    found = {}
    for name, (shape, options) in shapes.items():
        sae = SAE(SAEConfig(d_in=d_in, d_sae=2 * n_directions, **shape), seed)
        trainer = Trainer(sae, TrainConfig(**(usual | options)))
        trainer.fit(source)
        found[name] = measured(sae, source)
    return found


def measured(sae: SAE, source: Planted) -> Recovery:
    cosine = (source.directions @ sae.W_dec.detach().T / sae.W_dec.detach().norm(dim=1)).amax(dim=1)
    x = next(source.rows(2**30))
    error = (sae(x).x_hat.detach() - x).square().sum()
    return Recovery(
        float((cosine >= FOUND).float().mean()),
        float(cosine.median()),
        float(error / (x - x.mean(dim=0)).square().sum()),
    )
