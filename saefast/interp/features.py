"""The strongest latents of an SAE, and the places in the text where each is most active."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.activations.shards import ShardSource
from saefast.backend import load_backend
from saefast.errors import check
from saefast.sae import SAE
from saefast.sae.inference import encode


class Example(NamedTuple):
    """One place where a latent is active."""

    act: float
    tokens: list[int]  # ids of the tokens around it
    position: int  # where in `tokens` the token is on which it is active


class Feature(NamedTuple):
    """A latent with its strongest examples, at most one from each context, in descending order."""

    latent: int
    energy: float  # share of the sum of all squared activations
    density: float  # share of tokens it is active on
    examples: list[Example]


def strongest_features(
    sae: SAE, source: ShardSource, n_features: int = 10, n_examples: int = 5, max_density: float = 0.005
) -> list[Feature]:
    """The latents that carry most of the activation energy, and where they are most active.

    Args:
        source: shards made from text (`saefast cache`); read twice, in bounded memory.
        max_density: latents that are active on more than this share of the tokens are left out, because they say
            little about any one token.

    Raises:
        InputError: the source holds no text, or has another width.
    """
    is_text = "contexts" in source.shard(0)
    check(is_text, f"source: expected shards made from text, {source.folder} has no token ids")
    d_sae = sae.config.d_sae
    energy, count = (torch.zeros(d_sae, dtype=torch.float64, device="cpu") for _ in range(2))
    n_tokens = 0
    for _, acts, indices in _codes(sae, source):
        energy += torch.bincount(indices.flatten(), acts.double().square().flatten(), minlength=d_sae)
        count += torch.bincount(indices[acts > 0], minlength=d_sae)
        n_tokens += len(acts)
    total, density = energy.sum(), count / n_tokens
    chosen = energy.masked_fill(density > max_density, 0).topk(min(n_features, d_sae)).indices.tolist()

    # For each latent, the token of every context on which it is most active: (activation, row) by (shard, context).
    best: dict[int, dict[tuple[int, int], tuple[float, int]]] = {latent: {} for latent in chosen}
    for first_row, acts, indices in _codes(sae, source):
        shard = (
            int(
                torch.searchsorted(
                    source.starts, torch.tensor(first_row, dtype=torch.int64, device="cpu"), right=True
                )
            )
            - 1
        )
        context_of = source.shard(shard)["context"]
        for latent, found in best.items():
            token, slot = ((indices == latent) & (acts > 0)).nonzero(as_tuple=True)
            for i, act in zip(token.tolist(), acts[token, slot].tolist(), strict=True):
                key = (shard, int(context_of[first_row + i - int(source.starts[shard])]))
                if act > found.get(key, (0.0, 0))[0]:
                    found[key] = (act, first_row + i)
    features = []
    for latent, found in best.items():
        top = sorted(found.values(), reverse=True)[:n_examples]
        examples = [Example(act, *source.context(row)) for act, row in top]
        features.append(Feature(latent, float(energy[latent] / total), float(density[latent]), examples))
    return features


def _codes(sae: SAE, source: ShardSource, rows_at_once: int = 4096) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, top_acts, top_indices) over the source; no piece crosses a shard."""
    params = sae.params
    ops = load_backend("auto", params.W_enc.device.type)
    first_row = 0
    for chunk in source:
        for x in chunk.split(rows_at_once):
            acts, indices = encode(ops, params, sae.extra, sae.config, x.to(params.b_dec))
            yield first_row, acts.cpu(), indices.cpu()
            first_row += len(x)
