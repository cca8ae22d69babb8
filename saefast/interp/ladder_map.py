"""One map of all dictionaries of a ladder, and what its clusters have in common.

found = ladder_map(saes, alive)
common_tokens(found, ladder)[0]          # the latents of a cluster, from every dictionary, and their tokens
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from saefast.errors import check
from saefast.interp.atlas import Atlas, atlas
from saefast.interp.records import Records
from saefast.interp.top_tokens import token_masses
from saefast.interp.vocabulary import Vocabulary, visible
from saefast.sae import SAE


class LadderMap(NamedTuple):
    """Row r is latent r - first[level] of dictionary `level[r]`."""

    atlas: Atlas  # of all rows
    level: np.ndarray  # [sum of F] int32, 0 the smallest dictionary
    first: np.ndarray  # [dictionaries + 1] int64, where the rows of each begin

    def rows(self, level: int, latents: np.ndarray) -> np.ndarray:
        """Of these latents of a dictionary."""
        return np.asarray(self.first[level] + latents)


class Cluster(NamedTuple):
    """Latents that HDBSCAN put together."""

    number: int  # in `Atlas.clusters`
    members: list[tuple[int, int]]  # (dictionary, latent), ascending
    tokens: list[int]  # the largest share of the activation of a member on them, in the mean over the members
    shares: list[float]

    def as_json(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """With a vocabulary, tokens as text, too."""
        text = {"text": [visible(vocabulary.raw[token]) for token in self.tokens]} if vocabulary else {}
        return self._asdict() | text


def ladder_map(
    saes: Sequence[SAE],
    alive: Sequence[np.ndarray],
    seed: int = 0,
    min_dist: float | None = None,
    **options: Any,
) -> LadderMap:
    """UMAP and HDBSCAN of the rows of W_dec of all of them together, see `saefast.interp.atlas.atlas`.

    Args:
        saes: of the same place of the same model, from the smallest to the largest.
        alive: of each, [F] bool, the latents that have a place.
        min_dist: default: 0.05 for two dictionaries, 0.01 for more, as in "Towards Monosemanticity".
        options: others of `atlas`.

    Raises:
        InputError: different widths, masks of other lengths, or what `atlas` refuses.
    """
    widths = {sae.W_dec.shape[1] for sae in saes}
    check(len(widths) == 1, f"saes: expected decoders of one width, got {sorted(widths)}")
    sizes, lengths = [sae.config.d_sae for sae in saes], [len(one) for one in alive]
    check(sizes == lengths, f"alive: expected masks of {sizes} latents, got {lengths}")
    W_dec = torch.cat([sae.W_dec.detach().float().cpu() for sae in saes])
    if min_dist is None:
        min_dist = 0.05 if len(saes) <= 2 else 0.01
    found = atlas(W_dec, alive=np.concatenate(list(alive)), seed=seed, min_dist=min_dist, **options)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return LadderMap(found, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), first)


def common_tokens(found: LadderMap, ladder: Sequence[Records], n_tokens: int = 5) -> list[Cluster]:
    """All clusters: those from the most dictionaries first, then those whose members share the most, then by number.

    Args:
        ladder: the records of the dictionaries, for the tokens.
    """
    clusters, made = found.atlas.clusters.numpy(), []
    for number in range(int(clusters.max(initial=-1)) + 1):
        members, mass = [], np.zeros(0)
        for row in np.flatnonzero(clusters == number).tolist():
            level = int(found.level[row])
            members.append((level, row - int(found.first[level])))
            ids, masses = token_masses(ladder[level], members[-1][1])
            if len(ids):
                mass = np.pad(mass, (0, max(0, int(ids[-1]) + 1 - len(mass))))
                mass[ids] += masses / masses.sum()
        share = mass / max(len(members), 1)
        top = np.argsort(-share, kind="stable")[:n_tokens]
        top = top[share[top] > 0]
        made.append(Cluster(number, members, top.tolist(), share[top].tolist()))
    return sorted(
        made, key=lambda one: (-len({level for level, _ in one.members}), -sum(one.shares), one.number)
    )
