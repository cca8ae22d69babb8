"""Ground truth: units that stand for one thing and units that do not, as records of a text in which every thing is known.

    planted = plant("trial/planted", seed=0)
    planted.records, planted.vocabulary      # explainers are made from these, as from any
    planted.monosemantic                     # which units an explanation should do well on

A scorer that does not tell them apart says nothing about real units: see `saefast.interp.trial.ground_truth`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from saefast.activations.shards import ShardSource, ShardWriter
from saefast.errors import check
from saefast.interp.effects import LogitWeights
from saefast.interp.effects.ranking import top_of
from saefast.interp.neurons import neurons
from saefast.interp.records import Records, record
from saefast.interp.records.text import mix
from saefast.interp.trial.planted_text import PlantedVocabulary, Thing, planted_text, things

LENGTH = 128  # tokens of a context
PROMOTED = 0.7  # logit: twice as likely
PRIOR = 20  # tokens as they come anywhere, that are counted to those after a unit
POLYSEMANTIC = ("mixture", "noise", "dense")


class Planted(NamedTuple):
    """n units, in random order."""

    records: Records
    vocabulary: PlantedVocabulary
    kinds: list[str]  # of a monosemantic unit that of its thing, else one of POLYSEMANTIC
    names: list[str]  # what it stands for
    monosemantic: np.ndarray  # [n] bool
    logits: LogitWeights
    promotes: (
        np.ndarray
    )  # [n] bool: it makes 60 tokens or more that come after what it stands for more likely
    has_random_logits: np.ndarray  # [n] bool: it stands for nothing
    units: list["PlantedUnit"]

    def activations(self, texts: np.ndarray, at: np.ndarray, latent: int) -> np.ndarray:
        """What a unit does on any texts [n, L], at the tokens at [n] -> [n] float64, for explainers that ask a model that."""
        return self.units[latent].clean(texts)[np.arange(len(texts)), at]


class PlantedUnit(NamedTuple):
    """A unit as a function of text, before it is disturbed."""

    name: str
    kind: str
    clean: Callable[[np.ndarray], np.ndarray]  # tokens [n, L] -> activations [n, L] float64
    disturbed: float  # standard deviation of what is added to a fifth of the tokens
    has_effect: bool


def plant(folder: str | Path, seed: int = 0, n_contexts: int = 800, n_noise: int = 8) -> Planted:
    """Make the text, the units and their records; records that are there already are taken.

    A monosemantic unit is active where its thing is. A mixture, of which there are as many, is active on 3 to 5 unrelated
    things in as many strengths, and a fifth of all tokens disturb it, as they do a neuron in superposition. Noise units are active
    on 1 to 10 % of all sequences of three tokens, which have nothing in common; dense ones on most tokens, on some more than on
    others. All are recorded at 0.3 to 1 times their activation, miss 3 % of the places and are active weakly on 0.1 % of the
    others.

    Args:
        folder: for the text and the records; those of other arguments lie beside them.
        n_contexts: of 128 tokens.
        n_noise: noise units, and dense units.

    Raises:
        InputError: fewer than 100 contexts.
    """
    ok = type(n_contexts) is int and n_contexts >= 100
    check(ok, f"n_contexts: expected an integer of at least 100, got {n_contexts!r}")
    vocabulary, rng = PlantedVocabulary(), np.random.default_rng(seed + 1)
    contexts = planted_text(n_contexts * LENGTH, vocabulary, seed).reshape(-1, LENGTH)
    some = things(vocabulary)
    units = [
        PlantedUnit(one.name, one.kind, _strong(rng.uniform(1, 5), [(1.0, one)]), 0.0, True) for one in some
    ]
    units += [_mixture(rng, some) for _ in some]
    units += [_noise(rng, i) for i in range(n_noise)]
    units += [_dense(rng, i, len(vocabulary)) for i in range(n_noise)]
    units = [units[i] for i in rng.permutation(len(units))]
    clean = [unit.clean(contexts) for unit in units]
    rows = [_recorded(rng, unit, acts) for unit, acts in zip(units, clean, strict=True)]
    logits = _logits(rng, units, clean, contexts, len(vocabulary))
    promotes = [
        unit.has_effect and row[-1] > PROMOTED for unit, row in zip(units, logits.positive, strict=True)
    ]
    return Planted(
        planted_records(
            Path(folder) / f"{seed}-{n_contexts}-{n_noise}",
            np.stack(rows, axis=-1).astype(np.float32),
            contexts,
        ),
        vocabulary,
        [unit.kind for unit in units],
        [unit.name for unit in units],
        np.asarray([unit.kind not in POLYSEMANTIC for unit in units]),
        logits,
        np.asarray(promotes, bool),
        np.asarray([not unit.has_effect for unit in units]),
        units,
    )


def _strong(strength: float, parts: list[tuple[float, Thing]]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda tokens: (
        strength * sum((share * one.holds(tokens) for share, one in parts), np.zeros(tokens.shape))
    )


def _mixture(rng: np.random.Generator, some: list[Thing]) -> PlantedUnit:
    chosen = [some[i] for i in rng.choice(len(some), int(rng.integers(3, 6)), replace=False)]
    strength = rng.uniform(1, 5)
    parts = [(rng.uniform(0.5, 1), one) for one in chosen]
    name = ", ".join(one.name for one in chosen)
    return PlantedUnit(name, "mixture", _strong(strength, parts), 0.5 * strength, True)


def _noise(rng: np.random.Generator, i: int) -> PlantedUnit:
    density = rng.uniform(0.01, 0.1)
    return PlantedUnit("nothing", "noise", lambda tokens: (_of_three(tokens, i) < density) * 1.0, 0.0, False)


def _dense(rng: np.random.Generator, i: int, n_tokens: int) -> PlantedUnit:
    of_token = np.append(rng.normal(0.5, 0.3, n_tokens), 0.0)  # padding, -1, is the last

    def clean(tokens: np.ndarray) -> np.ndarray:
        return np.maximum(of_token[tokens] + 3 * (_of_three(tokens, -1 - i) - 0.5), 0)

    return PlantedUnit("nothing", "dense", clean, 0.0, False)


def _of_three(tokens: np.ndarray, i: int) -> np.ndarray:
    """A number in [0, 1) for each token and the two before it, as good as random."""
    back = np.pad(tokens, ((0, 0), (2, 0)), constant_values=-1).astype(np.uint32)
    hashed = mix(back[:, 2:] ^ mix(back[:, 1:-1] ^ mix(back[:, :-2] ^ mix(np.uint32(i % 2**32)))))
    return hashed / 2.0**32


def _recorded(rng: np.random.Generator, unit: PlantedUnit, clean: np.ndarray) -> np.ndarray:
    shape, largest = clean.shape, clean.max()
    acts = clean * rng.uniform(0.3, 1, shape) * (rng.random(shape) > 0.03)
    acts += (rng.random(shape) < 0.2) * rng.normal(0, 1, shape) * unit.disturbed
    return np.maximum(acts, 0.2 * largest * rng.random(shape) * (rng.random(shape) < 0.001))


def planted_records(folder: Path, rows: np.ndarray, contexts: np.ndarray) -> Records:
    """Of units with these activations [m, L, n], as neurons, on contexts [m, L]; token 0 separates documents and has no row."""
    shards, n = folder / "shards", rows.shape[-1]
    if not shards.exists():
        begun = folder / "shards-begun"  # a kill leaves this one
        shutil.rmtree(begun, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        has_row = (contexts.reshape(-1) != 0).nonzero()[0]
        place = torch.from_numpy(has_row)
        x, ids = torch.from_numpy(rows.reshape(-1, n)[has_row]), torch.from_numpy(contexts).to(torch.int32)
        writer = ShardWriter(begun, n, torch.float32)
        length = contexts.shape[1]
        writer.append(x, ids, place // length, place % length)
        writer.close()
        begun.rename(shards)
    return record(neurons(n), ShardSource(shards), folder / "records", separators=[0])


def _logits(
    rng: np.random.Generator,
    units: list[PlantedUnit],
    clean: list[np.ndarray],
    contexts: np.ndarray,
    n_tokens: int,
) -> LogitWeights:
    """How much more likely each token is where a unit was active just before, on a logarithmic scale; or random numbers."""
    n, n_bins = min(60, n_tokens), 50
    after = contexts[:, 1:].reshape(-1)
    usual = np.bincount(after, minlength=n_tokens) + 1.0
    usual /= usual.sum()
    parts = []
    for unit, acts in zip(units, clean, strict=True):
        logits = rng.normal(0, 1, n_tokens)
        if unit.has_effect:
            there = np.bincount(after, acts[:, :-1].reshape(-1) / acts.max(), n_tokens)
            lift = (there + PRIOR * usual) / (there.sum() + PRIOR) / usual
            logits = np.log(lift) + 0.1 * logits
        parts.append(logits - np.median(logits))
    all_logits = torch.from_numpy(np.stack(parts)).float()
    positive, of_positive = top_of(all_logits, n)
    negative, of_negative = top_of(-all_logits, n)
    lowest, highest = all_logits.aminmax(dim=1)
    histogram = torch.stack([torch.histc(row, n_bins) for row in all_logits]).int()
    return LogitWeights(of_positive.int(), positive, of_negative.int(), -negative, histogram, lowest, highest)
