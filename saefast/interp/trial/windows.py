"""The windows on which explanations of a unit are scored, as in "Towards Monosemanticity" (2023).

A window is a token with 4 on either side, all in one document and each with a row, from documents of one split only. Of the 60
of a unit, 6 are from the top one of 13 parts of equal width of its activations (0, max], 2 from each of the others, 10 are
random, and in the middle of 20 is the unit's top token, wherever that is. No two of them overlap. Units are latents and
neurons alike. Everything random is by hashes of the seed, the unit and the slot: the same on every machine.
"""

from typing import NamedTuple

import numpy as np

from saefast.config.records import SPLITS, RecordsConfig
from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.select import parts_of
from saefast.interp.records.text import Text, mix
from saefast.interp.trial.scores import digits

N_INTERVALS = 13
SIDE = 4  # tokens on either side of the middle one
GROUPS = ("top", "interval", "random", "token")
FEWEST = 20  # windows in which a unit is active, below which it is not scored
AT_ONCE = 2**22  # tokens


class Mix(NamedTuple):
    """How many windows of each group."""

    top: int
    per_interval: int  # of each but the top one
    random: int
    token: int

    @property
    def total(self) -> int:
        return self.top + (N_INTERVALS - 1) * self.per_interval + self.random + self.token


SCORED = Mix(top=6, per_interval=2, random=10, token=20)
EXPLAINED = Mix(top=10, per_interval=2, random=5, token=10)


class Places:
    """The tokens around which there is a whole window, [n] slots ascending.

    Args:
        text, config: of the records. Those of other dictionaries on the same text have the same places.
        split: "explain" or "score"; None: both.
        before, after: tokens of the window on either side.

    Raises:
        InputError: there is no such place.
    """

    def __init__(
        self, text: Text, config: RecordsConfig, split: str | None, before: int = SIDE, after: int = SIDE
    ) -> None:
        self.text, self.split, self.before, self.after = text, split, before, after
        each = max(1, AT_ONCE // text.length)
        parts = [
            _whole(text, config, split, before, after, first, min(first + each, len(text.contexts)))
            for first in range(0, len(text.contexts), each)
        ]
        self.is_place = np.concatenate([np.zeros(0, bool), *parts])  # [n_slots]
        self.slots = self.is_place.nonzero()[0]
        self.tokens = text.contexts.reshape(-1)[self.slots]
        of = f"documents of the split {split!r}" if split else "documents"
        want = f"records: expected {of} of at least {self.width} tokens with rows, got none"
        check(len(self.slots) > 0, want)

    @property
    def width(self) -> int:
        return self.before + 1 + self.after

    def windows(self, slots: np.ndarray) -> np.ndarray:
        """[n] -> the slots of the windows around these, [n, width]."""
        return np.asarray(slots, np.int64)[:, None] + np.arange(-self.before, self.after + 1)


def _whole(
    text: Text, config: RecordsConfig, split: str | None, before: int, after: int, first: int, end: int
) -> np.ndarray:
    """Whether there is a whole window around each token of the contexts `first` to `end` - 1, flat."""
    ends, without = text.ends[first:end], ~text.encoded[first:end]
    m, length = ends.shape
    found = np.zeros((m, length), bool)
    n = length - before - after  # positions in the middle of a window
    if n <= 0:
        return found.reshape(-1)
    zero = np.zeros((m, 1), np.int32)
    ended = np.concatenate([zero, ends.cumsum(axis=1, dtype=np.int32)], axis=1)  # before each position
    missing = np.concatenate([zero, without.cumsum(axis=1, dtype=np.int32)], axis=1)
    width = before + 1 + after
    # a separator is the last token of its document: it may be that of the window
    one_document = ended[:, width - 1 : width - 1 + n] == ended[:, :n]
    with_rows = missing[:, width : width + n] == missing[:, :n]
    found[:, before : before + n] = one_document & with_rows
    if split is not None:
        documents = text.first_document[first:end, None] + ended[:, :-1]
        found &= (text.splits(documents.reshape(-1), config) == SPLITS.index(split)).reshape(m, length)
    return found.reshape(-1)


class Windows(NamedTuple):
    """Of one unit, n at most `Mix.total`; groups of which there are fewer have fewer."""

    tokens: np.ndarray  # [n, width] int32
    acts: np.ndarray  # [n, width] float64, of the unit, 0 where it is not active
    slots: np.ndarray  # [n] int64, of the token in the middle
    group: np.ndarray  # [n] int8, in GROUPS
    interval: np.ndarray  # [n] int8, of the activation in the middle, 0 to 12; -1 in the last two groups
    weights: np.ndarray  # [n] float64, importance: see `draw`
    largest: float  # activation of the unit, on any token
    top_token: int  # id

    @property
    def unusable(self) -> str | None:
        """Why no score is made of these; None: one is."""
        if (self.acts > 0).any(axis=1).sum() < FEWEST:
            return "few windows"
        return "always the same" if np.ptp(digits(self.acts, self.largest)) == 0 else None


def draw(places: Places, records: Records, latent: int, counts: Mix = SCORED, seed: int = 0) -> Windows:
    """The windows of a unit.

    A window weighs as much as what it was drawn from: one of an interval the share of all tokens on which the unit's activation
    is in it (its density times P(interval | active)), a random one 1. For one of the top token the paper names no weight; here
    it is the share of that token, by the same rule.

    The top token is that of the most activations in the top interval, of equal ones the smaller id. Its windows are from other
    contexts than those of the top interval.

    Raises:
        InputError: the unit is never active.
    """
    slots, acts = records.entries(latent)
    check(len(slots) > 0, f"latent: expected one that is active, latent {latent} of {records.folder} is not")
    text = records.text
    interval = parts_of(acts, float(acts.max()), N_INTERVALS)
    shares = np.bincount(interval, minlength=N_INTERVALS) / max(text.n_rows, 1)
    top_token = top_token_of(text, slots[interval == N_INTERVALS - 1])
    here = places.is_place[slots]
    chosen: list[int] = []
    groups: list[tuple[str, int, int]] = []  # (group, interval, windows)

    def take(group: str, part: int, candidates: np.ndarray, n: int) -> None:
        found = apart(candidates, n, key(latent, seed, len(groups)), chosen, places.width)
        chosen.extend(found)
        groups.append((group, part, len(found)))

    for part in reversed(range(N_INTERVALS)):  # the rarest first
        group, n = ("top", counts.top) if part == N_INTERVALS - 1 else ("interval", counts.per_interval)
        take(group, part, slots[here & (interval == part)], n)
        if group == "top":
            contexts = np.asarray(chosen, np.int64) // text.length
    of_token = places.slots[places.tokens == top_token]
    take("token", -1, of_token[~np.isin(of_token // text.length, contexts)], counts.token)
    any_place = key(latent, seed, len(groups)) ^ np.arange(16 * counts.random, dtype=np.uint32)
    drawn = mix(any_place).astype(np.uint64) * np.uint64(len(places.slots)) >> np.uint64(32)
    take("random", -1, np.unique(places.slots[drawn.astype(np.int64)]), counts.random)

    around = places.windows(np.asarray(chosen, np.int64))
    token_share = float(((text.contexts == top_token) & text.encoded).sum()) / max(text.n_rows, 1)
    weight_of = {"random": 1.0, "token": token_share}
    names = np.repeat([GROUPS.index(group) for group, _, _ in groups], [n for _, _, n in groups])
    weights = [np.full(n, weight_of.get(group, shares[part])) for group, part, n in groups]
    return Windows(
        text.contexts.reshape(-1)[around],
        acts_at(slots, acts, around),
        np.asarray(chosen, np.int64),
        names.astype(np.int8),
        np.repeat([part for _, part, _ in groups], [n for _, _, n in groups]).astype(np.int8),
        np.concatenate(weights),
        float(acts.max()),
        top_token,
    )


def top_token_of(text: Text, slots: np.ndarray) -> int:
    """The most frequent token in these slots, of equal ones the smallest id."""
    return int(np.bincount(text.contexts.reshape(-1)[slots]).argmax())


def acts_at(slots: np.ndarray, acts: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The activations of a unit, entries (slots, acts) of it, in any slots: float64 of the shape of `where`."""
    found = np.minimum(np.searchsorted(slots, where), len(slots) - 1)
    return np.where(slots[found] == where, acts[found].astype(np.float64), 0.0)


def key(latent: int, seed: int, salt: int) -> np.ndarray:
    """uint32 by which the slots of a unit are hashed."""
    return mix(np.uint32(latent) ^ mix(np.uint32((64 * seed + salt) % 2**32)))


def apart(candidates: np.ndarray, n: int, by: np.ndarray, taken: list[int], width: int) -> list[int]:
    """n of the candidates, slots ascending, or as many as there are, in random order: none nearer than `width` to another or to
    one that is taken."""
    found: list[int] = []
    for slot in taken:
        candidates = candidates[np.abs(candidates - slot) >= width]
    hashes = mix(candidates.astype(np.uint32) ^ by)
    while len(found) < n and len(candidates):
        slot = candidates[hashes.argmin()]
        found.append(int(slot))
        left = np.abs(candidates - slot) >= width
        candidates, hashes = candidates[left], hashes[left]
    return found
