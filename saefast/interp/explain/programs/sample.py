"""The tokens that rules for one latent are fitted on: few of many, with weights that make up for it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from saefast.interp.explain.programs.signs import Reading, Sign
from saefast.interp.explain.programs.split import REACH, ExplainSplit
from saefast.interp.records.text import mix

HELD_OUT = 0.25  # of the documents, for choosing
LEAST_SHARE = (
    0.05  # of the squares of the activations in either part; else tokens are held out instead of documents
)
KEYS = {"token": 0, "previous": 1, "second": 2}  # how far back the token of such a set is


class Sample(NamedTuple):
    """n tokens."""

    acts: np.ndarray  # [n] float64
    weights: np.ndarray  # [n] float64, how many tokens each stands for
    held_out: np.ndarray  # [n] bool
    signs: np.ndarray  # [n, A] float32, the fixed ones
    keys: dict[str, np.ndarray]  # [n] ids, by name of KEYS
    near: np.ndarray  # [n, 2 REACH] ids within REACH tokens, each once, the others -1


class Population:
    """The tokens with a row, and their fixed signs in bits.

    Args:
        size: tokens of a sample, about a third of what it has at most.
        max_tokens: so many tokens, of whole documents drawn at random; the others are not looked at.
    """

    def __init__(
        self, split: ExplainSplit, reading: Reading, signs: list[Sign], size: int, max_tokens: int, seed: int
    ) -> None:
        self.split, self.size, self.seed = split, size, seed
        rng = np.random.default_rng(seed)
        rows, counts = split.has_row, np.bincount(split.document[split.has_row])
        if split.n_rows > max_tokens:
            order = rng.permutation(len(counts))
            taken = np.zeros(len(counts), bool)
            taken[order[: max(1, int((counts[order].cumsum() <= max_tokens).sum()))]] = True
            rows = rows & taken[split.document]  # the gaps, -1, have no rows
        self.places = rows.nonzero()[0]
        self.row_of_place = np.full(len(split.tokens), -1, np.int64)
        self.row_of_place[self.places] = np.arange(len(self.places))
        self.uniform = rng.random(len(self.places))
        self.held_out = self.holds_out(split.document[self.places])
        self.tokens, self.previous = split.tokens[self.places], split.tokens[self.places - 1]
        self.n_tokens = int(split.tokens.max(initial=0)) + 2
        columns = (reading.column(sign)[self.places] for sign in signs)
        self.n_signs, self.bits = len(signs), _packed(columns, len(signs), len(self.places))

    def holds_out(self, documents: np.ndarray) -> np.ndarray:
        """Which of these documents are for choosing, bool."""
        hashes = mix(documents.astype(np.uint32) ^ np.uint32(self.seed ^ 0x5EED))
        found: np.ndarray = hashes < HELD_OUT * 2**32
        return found

    def sample(self, latent: int) -> Sample | None:
        """None if the latent is never active here.

        Besides tokens drawn evenly, there are more of those on which it is active, and more of those that are, or come after, a
        token on which it is: a rule must tell them apart.
        """
        places, acts = self.split.entries(latent)
        rows = self.row_of_place[places]
        rows, acts = rows[rows >= 0], acts[rows >= 0]
        if not len(rows):
            return None
        share = acts / acts.sum()
        p = np.full(len(self.places), self.size / len(self.places))
        for keys in (self.tokens, self.previous):
            sums, counts = (
                np.bincount(k + 1, w, self.n_tokens) for k, w in ((keys[rows], share), (keys, None))
            )
            p += (self.size / 2 * sums / np.maximum(counts, 1))[keys + 1]
        p[rows] += self.size / 2 * (1 / len(rows) + share)
        chosen = (self.uniform < p).nonzero()[0]
        y = np.zeros(len(self.places))
        y[rows] = acts
        energy = y**2
        held_out, held = self.held_out, float(energy[self.held_out].sum()) / float(energy.sum())
        if min(held, 1 - held) < LEAST_SHARE:
            held_out = mix(np.arange(len(y), dtype=np.uint32)) < HELD_OUT * 2**32
        return self.read(chosen, y[chosen], 1 / np.minimum(p[chosen], 1), held_out[chosen])

    def read(self, chosen: np.ndarray, acts: np.ndarray, weights: np.ndarray, held_out: np.ndarray) -> Sample:
        """What there is to see at the chosen rows."""
        at = self.places[chosen]
        signs = np.unpackbits(self.bits[chosen], axis=1, count=self.n_signs).astype(np.float32)
        before = {name: self.split.tokens[at - back] for name, back in KEYS.items()}
        away = np.array([d for d in range(-REACH, REACH + 1) if d])
        near = np.sort(self.split.tokens[at[:, None] + away], axis=1)
        near[:, 1:][near[:, 1:] == near[:, :-1]] = -1
        return Sample(acts, weights, held_out, signs, before, near)


def _packed(columns: Iterable[np.ndarray], n: int, length: int) -> np.ndarray:
    bits = np.zeros((length, -(-n // 8)), np.uint8)
    for i, column in enumerate(columns):
        bits[:, i // 8] |= column.astype(np.uint8) << np.uint8(7 - i % 8)
    return bits
