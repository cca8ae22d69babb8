"""Cards: what a rater sees of a unit. All cards have the same shape, so that only their text can tell units apart."""

from typing import Any, NamedTuple

import numpy as np

from saefast.config.blind import BlindConfig
from saefast.interp.effects import LogitWeights
from saefast.interp.records import Records
from saefast.interp.records.select import parts_of
from saefast.interp.records.text import Ints, Text

SIZES = 20  # steps of the relative sizes of logits


class Card(NamedTuple):
    """What is shown of a unit; n = n_intervals * per_interval examples, those of the weakest interval first."""

    windows: Ints  # [n, before + 1 + after] token ids
    levels: Ints  # the same shape: 0 where the token is not shaded, else its interval, 1 to n_intervals
    logit_tokens: Ints  # [n_logits], the largest first; [0] without logits
    logit_sizes: Ints  # the same, 0 to SIZES of the largest
    sets: Ints  # [rated, per_interval] numbers of the examples of the intervals that are rated
    intervals: Ints  # [rated] these intervals, from 0 on: never on the page
    own: Ints  # [n_intervals] how many examples of each interval are not borrowed: never on the page


class Deck:
    """The cards of one set of records.

    Args:
        logits: of all its units, or None.
    """

    def __init__(self, records: Records, logits: LogitWeights | None, config: BlindConfig) -> None:
        self.records, self.logits, self.config = records, logits, config
        self.can_be_shown = whole_windows(records.text, config.before, config.after)

    def card(self, unit: int, rng: np.random.Generator) -> Card | None:
        """None: the unit has too few examples."""
        config, length = self.config, self.records.text.length
        slots, acts = self.records.entries(unit)
        among = self.can_be_shown[slots].nonzero()[0]
        largest = float(acts[among].max()) if len(among) else 0.0
        drawn = draw(acts[among], slots[among] // length, config, rng)
        if drawn is None:
            return None
        interval = parts_of(acts[among], largest, config.n_intervals)[drawn]
        own = (interval == np.arange(config.n_intervals)[:, None]).sum(axis=1)
        centres = slots[among[drawn.ravel()]]
        inside = centres[:, None] + np.arange(-config.before, config.after + 1)
        windows = self.records.text.contexts.ravel()[inside]
        sets = rng.permutation(config.n_intervals)[: config.rated]
        shuffled = rng.permuted(sets[:, None] * config.per_interval + np.arange(config.per_interval), axis=1)
        levels = self._levels(inside, slots, acts, largest)
        return Card(windows, levels, *self._logits_of(unit), shuffled, sets, own)

    def _levels(self, inside: Ints, slots: Ints, acts: Ints, largest: float) -> Ints:
        """A token outside of the examples may be stronger than all of them: it is as dark as the strongest."""
        n = self.config.n_intervals
        place = np.minimum(np.searchsorted(slots, inside), len(slots) - 1)
        found = np.where(slots[place] == inside, acts[place], 0)
        levels = np.where(found > 0, parts_of(found.ravel(), largest, n).reshape(found.shape) + 1, 0)
        if self.config.shade == "drawn":
            levels[:, np.arange(levels.shape[1]) != self.config.before] = 0
        return levels.astype(np.int64)

    def _logits_of(self, unit: int) -> tuple[Ints, Ints]:
        if self.logits is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        n = self.config.n_logits
        tokens = self.logits.positive_tokens[unit, :n].numpy().astype(np.int64)
        values = self.logits.positive[unit, :n].numpy().astype(np.float64).clip(0)
        return tokens, np.rint(SIZES * values / max(values[0], 1e-30)).astype(np.int64)


def whole_windows(text: Text, before: int, after: int) -> Ints:
    """[n_slots] bool: tokens with a row, and with so many tokens around them in their context and document."""
    m, length = text.contexts.shape
    good = np.zeros((m, length), bool)
    if before + after < length:
        ends = np.cumsum(np.pad(text.ends, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
        good[:, before : length - after] = ends[:, before + after + 1 :] == ends[:, : length - before - after]
    return (good & text.encoded).ravel()


def draw(acts: Ints, contexts: Ints, config: BlindConfig, rng: np.random.Generator) -> Ints | None:
    """Random activations of each interval, no two from one context: places [n_intervals, per_interval], or None.

    The interval with the fewest activations chooses first. An interval with too few borrows: it takes the activations that are
    nearest to its middle from what is left, and then all are dealt out again by rank, so that no example is weaker than one of
    an interval below. Within an interval the order is random.

    Args:
        acts, contexts: [N], of each activation that can be shown.
    """
    n, each = config.n_intervals, config.per_interval
    if len(acts) < n * each:
        return None
    share = acts.astype(np.float64) / acts.max()
    interval = parts_of(acts, float(acts.max()), n)
    chosen: list[int] = []
    missing = np.zeros(n, np.int64)
    order = rng.permutation(len(acts))
    for i in np.argsort(np.bincount(interval, minlength=n), kind="stable").tolist():
        picked = _of_new_contexts(order[interval[order] == i], contexts, chosen, each)
        chosen += picked
        missing[i] = each - len(picked)
    if missing.any() and not config.borrow:
        return None
    for i in missing.nonzero()[0][::-1].tolist():
        nearest = order[np.argsort(abs(share[order] - (i + 0.5) / n), kind="stable")]
        chosen += _of_new_contexts(nearest, contexts, chosen, int(missing[i]))
    if len(chosen) < n * each:
        return None
    by_rank = np.asarray(chosen, np.int64)[np.argsort(acts[chosen], kind="stable")]
    return rng.permuted(by_rank.reshape(n, each), axis=1)


def _of_new_contexts(among: Ints, contexts: Ints, chosen: list[int], n: int) -> list[int]:
    """The first n of `among` that are from contexts of their own."""
    among = among[~np.isin(contexts[among], contexts[chosen])]
    _, first = np.unique(contexts[among], return_index=True)
    return among[np.sort(first)[:n]].tolist()


def shown_of(card: Card, name: str, numbers: Any, config: BlindConfig) -> dict[str, Any]:
    """The card as the page has it, under an opaque name; `numbers` turns token ids into those of the page."""
    found: dict[str, Any] = {"id": name, "examples": numbers(card.windows).tolist()}
    if config.shade == "all":
        found["levels"] = card.levels.tolist()
    found["logits"] = np.stack([numbers(card.logit_tokens), card.logit_sizes], axis=1).tolist()
    found["sets"] = card.sets.tolist()
    return found
