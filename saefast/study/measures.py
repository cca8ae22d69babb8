"""The stages that measure dictionaries by themselves: ground truth, exactness, density sets, neurons."""

from functools import cache
from typing import Any

import numpy as np
import torch

from saefast.interp.density import DensitySets, density_sets
from saefast.interp.neuron_basis import neuron_basis
from saefast.interp.pictures import draw_densities
from saefast.study.exactness import projection, resampled
from saefast.study.recovery import recovery
from saefast.study.world import World

LADDER = ("A0", "A1", "A2")
BRUTE = 64  # latents whose density is counted a second time, from the encoder


def ground_truth(world: World) -> dict[str, Any]:
    """How many planted directions are found."""
    found = recovery(tokens=world.scale.recovery_tokens)
    return {name: one._asdict() for name, one in found.items()}


def exactness(world: World) -> dict[str, Any]:
    """Gradient projection and unit norm of A/1, and every clause of resampling."""
    x = next(world.source("A", "heldout").rows())
    return {"projection": projection(world.sae("A1"), x)._asdict(), "resampled": resampled()._asdict()}


@cache
def sets_of(world: World, name: str) -> DensitySets:
    return density_sets(world.records(name), world.sae(name))


def live(world: World, name: str) -> np.ndarray:
    """[F] bool: alive and outside the ultra-low cluster. Of neurons: those that are ever active."""
    if name.startswith("neurons-"):
        counts: np.ndarray = world.records(name).table(["count"])["count"].to_numpy() > 0
        return counts
    return sets_of(world, name).live


def densities(world: World) -> dict[str, Any]:
    """The sets of each dictionary of the ladder, of today's and of the control, and a picture; densities counted twice."""
    sets = {name: sets_of(world, name) for name in (*LADDER, "A1k", "S1")}
    draw_densities({name: sets[name] for name in LADDER}, world.picture("densities"))
    return {name: one.numbers() for name, one in sets.items()} | {
        "brute_force": _brute_force(world, sets["A1"])
    }


@torch.no_grad()
def _brute_force(world: World, sets: DensitySets) -> dict[str, Any]:
    """Densities of some latents of A/1 from the encoder, beside those of the records."""
    source, sae, wanted = world.source("A", "heldout"), world.sae("A1"), world.records("A1").n_rows
    latents = torch.linspace(0, sae.config.d_sae - 1, BRUTE, dtype=torch.float64, device="cpu").long()
    W, b = sae.W_enc[latents], sae.b_enc[latents]
    counts, seen = torch.zeros(BRUTE, dtype=torch.int64, device="cpu"), 0
    for rows in source.rows():
        some = rows[: wanted - seen].to(sae.b_dec)
        seen += len(some)
        counts += ((some - sae.b_dec) @ W.T + b > 0).sum(dim=0)
        if seen >= wanted:
            break
    apart = np.abs(counts.numpy() - sets.counts[latents.numpy()])
    return {"latents": BRUTE, "tokens": seen, "largest_difference": int(apart.max())}


def neurons(world: World) -> dict[str, Any]:
    """How many neurons a latent of A/1 writes to, and how well the best one does for it."""
    found = neuron_basis(
        world.records("A1"), world.records("neurons-A"), world.sae("A1"), alive=live(world, "A1")
    )
    return found.numbers()
