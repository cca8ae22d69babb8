"""The tokens on which latents are most active: a short name for each where there is no explanation yet."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from saefast.interp.records import Records


class TopTokens(NamedTuple):
    """What one latent is active on. The mass of a token id is the sum of the activations on all tokens with that id."""

    tokens: list[int]  # ids of the largest mass, the largest first; of equal ones the smaller id
    shares: list[float]  # of the mass of the latent
    effective: float  # 1 / (sum of the squares of all shares): 1 for a latent of a single token; 0 if it is never active


def token_masses(records: Records, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids on which a latent is active, ascending, and the mass of each, [n] int64 and [n] float64."""
    slots, acts = records.entries(latent)
    ids, place = np.unique(records.text.contexts.reshape(-1)[slots], return_inverse=True)
    return ids.astype(np.int64), np.bincount(place, acts.astype(np.float64), len(ids))


def top_tokens(records: Records, latents: Iterable[int], n: int = 5) -> list[TopTokens]:
    """Those of each latent, from all its activations."""
    found = []
    for latent in latents:
        ids, mass = token_masses(records, int(latent))
        share = mass / mass.sum() if len(mass) else mass
        first = np.argsort(-share, kind="stable")[:n]
        effective = 1 / float((share**2).sum()) if len(share) else 0.0
        found.append(TopTokens(ids[first].tolist(), share[first].tolist(), effective))
    return found
