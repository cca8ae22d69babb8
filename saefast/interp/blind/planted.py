"""Planted units, to test the tool: of half of them it is known that they stand for one thing, of the others for several.

Tokens are of `KINDS` kinds, which their first letter shows. A unit of one kind is active on its tokens, a mixture on those of
`MIXED` kinds, but on each less often, so that both are as dense, and both with the same distribution of activations. The logits
that they raise are of these kinds too, with a few weak ones of any kind.
"""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from saefast.activations.shards import ShardSource, ShardWriter
from saefast.interp.effects import Effects, LogitWeights
from saefast.interp.neurons import neurons
from saefast.interp.records import Records, RecordsConfig, record

KINDS, EACH, MIXED = 26, 20, 5  # tokens of each kind
CONTEXTS, LENGTH = 120, 128
FEW = RecordsConfig(n_top=1, per_interval=1, per_quantile=1, n_random=1, n_inactive=0)


@dataclass
class PlantedTokens:
    raw: list[bytes]
    special: set[int]

    def __len__(self) -> int:
        return len(self.raw)


class Planted(NamedTuple):
    one_kind: Records
    mixtures: Records
    vocabulary: PlantedTokens


def planted(folder: str | Path, units: int = 60, *, share: float = 1 / MIXED, seed: int = 0) -> Planted:
    """Records of so many units of each sort, in FOLDER/one-kind and FOLDER/mixtures, with logit weights; 60 KB of disk a unit.

    Args:
        share: of the tokens of its kinds on which a mixture is active; the default makes it as dense as a unit of one kind.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    vowels = [a + b for a in "aeiou" for b in "lmnr"]
    words = [f" {letter}{end}" for letter in string.ascii_lowercase for end in vowels]
    contexts = rng.integers(0, len(words), (CONTEXTS, LENGTH)).astype(np.int32)
    kind_of = np.arange(len(words)) // EACH
    one = np.zeros((units, KINDS), np.float64)
    one[np.arange(units), rng.integers(KINDS, size=units)] = 1
    several = np.zeros((units, KINDS), np.float64)
    for row in several:
        row[rng.permutation(KINDS)[:MIXED]] = share
    first = _records(folder / "one-kind", contexts, one, kind_of, rng)
    second = _records(folder / "mixtures", contexts, several, kind_of, rng)
    return Planted(first, second, PlantedTokens([word.encode() for word in words], set()))


def _records(
    folder: Path, contexts: np.ndarray, kinds: np.ndarray, kind_of: np.ndarray, rng: np.random.Generator
) -> Records:
    """kinds: [units, KINDS], how often each unit is active on a token of each kind."""
    units, tokens = len(kinds), contexts.ravel()
    scale = rng.uniform(0.5, 20.0, units)
    active = rng.random((tokens.size, units)) < kinds[:, kind_of[tokens]].T
    x = np.where(active, rng.uniform(0.01, 1.0, active.shape) * scale, 0).astype(np.float32)
    writer = ShardWriter(folder / "activations", units, torch.float32)
    place = torch.arange(tokens.size, dtype=torch.int64, device="cpu")
    writer.append(torch.from_numpy(x), torch.from_numpy(contexts), place // LENGTH, place % LENGTH)
    writer.close()
    records = record(neurons(units), ShardSource(folder / "activations"), folder / "records", FEW)
    Effects(logits=_logits(kinds, kind_of, rng)).save(records.folder)
    return records


def _logits(kinds: np.ndarray, kind_of: np.ndarray, rng: np.random.Generator) -> LogitWeights:
    """Eight strong ones of its kinds and two weak ones of any."""
    tokens = []
    for row in kinds:
        own = rng.permutation((row[kind_of] > 0).nonzero()[0])[:8]
        others = rng.permutation(np.setdiff1d(np.arange(len(kind_of)), own))[:2]
        tokens.append(np.concatenate([own, others]))
    strengths = np.sort(rng.uniform(2, 4, (len(kinds), 10)), axis=1)[:, ::-1] * ([1.0] * 8 + [0.25] * 2)
    positive_tokens, positive = torch.from_numpy(np.asarray(tokens, np.int32)), torch.from_numpy(strengths)
    none = torch.zeros(len(kinds), 1, dtype=torch.float32, device="cpu")
    bounds = (none[:, 0].clone(), positive[:, 0].float())
    return LogitWeights(positive_tokens, positive.float(), none.int(), none, none.int(), *bounds)
