"""The windows of text in which a unit is looked at: who explains it and who scores it never see the same document.

    tiles = Tiles(records, "score", length=64)
    examples = top_and_random(tiles, 17, n_top=5, n_random=5)
    examples.tokens, examples.acts                   # [10, 64] each

The text of a split is cut into tiles: `length` tokens one after another, all with a row and of one document. What is left at the end
of a document is in none. So no two windows overlap, and a random one is any of them with the same probability. Everything random is
by hashes of the seed, the unit and the tile: the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from saefast.config.records import SPLITS
from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.text import mix

GROUPS = ("top", "quantile", "random", "inactive", "near")
CONTEXTS = 4096  # at once


@dataclass(frozen=True)
class Examples:
    """n windows of a unit, each once."""

    latent: int
    split: str
    tokens: np.ndarray  # [n, L] int32
    acts: np.ndarray  # [n, L] float64, of the unit, 0 where it is not active
    slots: np.ndarray  # [n] int64, of the first token of each
    group: np.ndarray  # [n] int8, in GROUPS
    part: np.ndarray  # [n] int8, the quantile, 0 the weakest; else -1
    largest: float  # activation of the unit in any tile of the split; 0: it never is active there

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def active(self) -> np.ndarray:
        """[n] bool, whether the unit is active anywhere in the window: by what it does, whatever the group is called."""
        found: np.ndarray = np.any(self.acts > 0, axis=1)
        return found

    def take(self, rows: np.ndarray | Sequence[int]) -> "Examples":
        """Some of them, by a mask [n] bool or by their numbers."""
        names, some = ("tokens", "acts", "slots", "group", "part"), np.asarray(rows)
        some = some if len(some) else np.zeros(0, np.int64)
        return replace(self, **{name: getattr(self, name)[some] for name in names})

    def of(self, *groups: str) -> "Examples":
        return self.take(np.isin(self.group, [GROUPS.index(name) for name in groups]))


class Tiles:
    """The windows that there are.

    Args:
        split: "explain" or "score".
        length: tokens of a window.

    Attributes:
        first: [T] int64, slots of the first tokens, ascending.

    Raises:
        InputError: no document of the split has so many tokens with rows.
    """

    def __init__(self, records: Records, split: str, length: int) -> None:
        check(split in SPLITS, f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        ok = 0 < length <= records.text.length
        check(ok, f"length: expected 1 to {records.text.length} tokens, got {length}")
        self.records, self.split, self.length = records, split, length
        text = records.text
        parts = [self._firsts(begin, begin + CONTEXTS) for begin in range(0, len(text.contexts), CONTEXTS)]
        self.first = np.concatenate([np.zeros(0, np.int64), *parts])
        want = f"records: expected documents of the split {split!r} of at least {length} tokens with rows"
        check(len(self.first) > 0, f"{want}, got none")
        self._tile = np.full(text.n_slots, -1, np.int32)
        self._tile[self.first[:, None] + np.arange(length)] = np.arange(len(self.first), dtype=np.int32)[
            :, None
        ]

    def _firsts(self, begin: int, end: int) -> np.ndarray:
        """Of these contexts: where a run of tokens of one document with rows has gone on for a multiple of `length`."""
        text = self.records.text
        ends, encoded = text.ends[begin:end], text.encoded[begin:end]
        before: np.ndarray = (
            np.cumsum(ends, axis=1) - ends
        )  # documents that ended earlier in the same context
        documents = text.first_document[begin:end, None] + before
        ours = text.splits(documents.ravel(), self.records.config) == SPLITS.index(self.split)
        held = encoded & ours.reshape(encoded.shape)
        begins = np.ones_like(held)  # of a document, or after a token that is not held
        begins[:, 1:] = (before[:, 1:] != before[:, :-1]) | ~held[:, :-1]
        at = np.arange(text.length)
        run = at - np.maximum.accumulate(np.where(begins, at, 0), axis=1)  # how long it has gone on
        is_last = held & (run % self.length == self.length - 1)
        context, position = is_last.nonzero()
        return (context + begin) * text.length + position - self.length + 1

    def __len__(self) -> int:
        return len(self.first)

    def peaks(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Tiles in which a unit is active [m] int64, ascending, and its largest activation in each [m] float64."""
        slots, acts = self.records.entries(latent)
        tiles = self._tile[slots]
        tiles, acts = tiles[tiles >= 0].astype(np.int64), acts[tiles >= 0].astype(np.float64)
        found, begins = np.unique(tiles, return_index=True)
        return found, np.maximum.reduceat(acts, begins) if len(found) else acts

    def examples(self, latent: int, chosen: Sequence[tuple[str, int, np.ndarray]]) -> Examples:
        """The windows of these (group, part, tiles).

        Raises:
            InputError: a tile twice.
        """
        tiles = np.concatenate([np.zeros(0, np.int64), *(some for _, _, some in chosen)]).astype(np.int64)
        check(len(np.unique(tiles)) == len(tiles), "examples: expected each window once, got one twice")
        slots, acts = self.records.entries(latent)
        where = self.first[tiles][:, None] + np.arange(self.length)
        found = np.zeros(where.shape)
        if len(slots):
            near = np.minimum(np.searchsorted(slots, where), len(slots) - 1)
            found = np.where(slots[near] == where, acts[near].astype(np.float64), 0.0)
        in_tiles = acts[self._tile[slots] >= 0]
        sizes = [len(some) for _, _, some in chosen]
        return Examples(
            latent,
            self.split,
            self.records.text.contexts.reshape(-1)[where],
            found,
            self.first[tiles],
            np.repeat([GROUPS.index(group) for group, _, _ in chosen], sizes).astype(np.int8),
            np.repeat([part for _, part, _ in chosen], sizes).astype(np.int8),
            float(in_tiles.max(initial=0.0)),
        )

    def random(
        self, latent: int, n: int, seed: int, without: np.ndarray, among: np.ndarray | None = None
    ) -> np.ndarray:
        """n tiles, drawn by hashes, or as many as there are: none of `without`, ascending.

        Args:
            among: [T] bool, from which they are drawn; default: all.
        """
        refused = set(np.asarray(without).tolist())
        found: list[int] = []
        if among is not None:
            pool = np.setdiff1d(among.nonzero()[0], without)
            order = np.argsort(mix(pool.astype(np.uint32) ^ _key(latent, seed)), kind="stable")
            return pool[order[:n]]
        tries = mix(np.arange(16 * n + 64, dtype=np.uint32) ^ _key(latent, seed)).astype(np.uint64)
        for tile in (tries * np.uint64(len(self)) >> np.uint64(32)).astype(np.int64).tolist():
            if len(found) == n:
                break
            if tile not in refused:
                refused.add(tile)
                found.append(tile)
        if len(found) < n:  # nearly all tiles are refused
            found += self.random(
                latent, n - len(found), seed, np.asarray(sorted(refused)), np.ones(len(self), bool)
            ).tolist()
        return np.asarray(found, np.int64)


def top_and_random(tiles: Tiles, latent: int, n_top: int = 5, n_random: int = 5, seed: int = 0) -> Examples:
    """The windows of the largest activations, the largest first (of equal ones the earlier), and random ones of all others, whether
    the unit is active there or not: what OpenAI's neuron explainer scores on."""
    active, peaks = tiles.peaks(latent)
    top = active[np.argsort(-peaks, kind="stable")[:n_top]]
    return tiles.examples(
        latent, [("top", -1, top), ("random", -1, tiles.random(latent, n_random, seed, top))]
    )


def by_quantile(tiles: Tiles, latent: int, n: int, n_parts: int = 10, seed: int = 0) -> Examples:
    """Windows in which the unit is active, n / n_parts of each of as many groups of equal size by the largest activation (fewer where
    there are fewer), the weakest group first: what delphi scores on."""
    active, peaks = tiles.peaks(latent)
    active = active[np.argsort(peaks, kind="stable")]
    chosen = []
    for part in range(n_parts):
        group = active[part * len(active) // n_parts : (part + 1) * len(active) // n_parts]
        order = np.argsort(mix(group.astype(np.uint32) ^ _key(latent, seed + 1)), kind="stable")
        chosen.append(("quantile", part, group[order[: (part + 1) * n // n_parts - part * n // n_parts]]))
    return tiles.examples(latent, chosen)


def inactive(
    tiles: Tiles,
    latent: int,
    n: int,
    seed: int = 0,
    near: Sequence[int] = (),
    without: np.ndarray | None = None,
) -> Examples:
    """Windows in which the unit is never active.

    Args:
        near: units that are like this one. With some, windows in which one of them is active, as hard negatives (group "near"); random
            ones make up for those that are missing.
        without: slots of first tokens of windows that are taken.
    """
    active, _ = tiles.peaks(latent)
    taken = np.zeros(0, np.int64) if without is None else np.searchsorted(tiles.first, without)
    refused, hard = np.union1d(active, taken), np.zeros(0, np.int64)
    if len(near):
        among = np.zeros(len(tiles), bool)
        for one in near:
            among[tiles.peaks(one)[0]] = True
        hard = tiles.random(latent, n, seed + 2, refused, among)
    easy = tiles.random(latent, n - len(hard), seed + 3, np.union1d(refused, hard))
    return tiles.examples(latent, [("near", -1, hard), ("inactive", -1, easy)])


def check_apart(seen: Examples, scored: Examples) -> None:
    """Raise InputError if one window of both is the same, or both are of one split: the score would be of what was explained."""
    ok = seen.split != scored.split and not np.isin(seen.slots, scored.slots).any()
    check(
        ok,
        f"examples: expected other documents for scoring than for explaining, got {scored.split!r} for both",
    )


def joined(*parts: Examples) -> Examples:
    """Windows of one unit and split in one, in this order. Raises InputError if one is there twice."""
    first = parts[0]
    ok = all((one.latent, one.split) == (first.latent, first.split) for one in parts)
    check(ok, "examples: expected those of one unit and split")
    names = ("tokens", "acts", "slots", "group", "part")
    columns = {name: np.concatenate([getattr(one, name) for one in parts]) for name in names}
    twice = len(np.unique(columns["slots"])) < len(columns["slots"])
    check(not twice, "examples: expected each window once, got one twice")
    return replace(first, **columns)


def _key(latent: int, seed: int) -> np.ndarray:
    return mix(np.uint32(latent) ^ mix(np.uint32((16 * seed + 9) % 2**32)))
