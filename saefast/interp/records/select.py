"""Statistics and examples of latents from the sorted code: the specification, in numpy.

The extension does the same on all threads (engine.py, csrc/cpu/records.cpp), bit for bit but for the sums of the statistics.
Everything random is by hashes of the latent and the slot, so that it depends on neither the order nor the blocks in which the
code was read. Of equal activations or hashes the earlier slot comes first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.config.records import RecordsConfig
from saefast.interp.records.text import Ints, Text, mix

STATISTICS = ("count", "density", "mean", "variance", "skewness", "kurtosis", "max", "energy")
TRIES = 32  # for each inactive example


class Block(NamedTuple):
    """The code of some contexts, sorted by latent and then by slot."""

    first_slot: int
    offsets: Ints  # [F + 1] int64: entries offsets[f] to offsets[f + 1] are those of latent f
    slots: Ints  # [N] int32, from first_slot on
    acts: Ints  # [N] float32, positive


class Selected(NamedTuple):
    """Of n latents, in their order."""

    statistics: Ints  # [n, len(STATISTICS)] float64
    histogram: Ints  # [n, n_bins] int64
    slots: Ints  # [n, E] int64, of the examples in the order of RecordsConfig.places; -1: there is none
    acts: Ints  # [n, E] float32, 0 where there is none or it is inactive


def entries(blocks: Sequence[Block], latent: int) -> tuple[Ints, Ints]:
    """slots [n] int64, ascending, and acts [n] float32 of one latent."""
    parts = [(block, slice(*block.offsets[latent : latent + 2].tolist())) for block in blocks]
    slots = [block.slots[part].astype(np.int64) + block.first_slot for block, part in parts]
    acts = [block.acts[part] for block, part in parts]
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *slots]), np.concatenate([empty.astype(np.float32), *acts])


def select(blocks: Sequence[Block], first: int, end: int, text: Text, config: RecordsConfig) -> Selected:
    """The statistics and examples of the latents `first` to `end` - 1.

    Statistics are over all tokens with a row, the inactive ones as 0: variance is that of the population, skewness and
    kurtosis are E[z^3] and E[z^4] of z = (act - mean) / std (a normal distribution has 3), NaN without variance. energy is
    the sum of the squares. All in fp64.
    """
    found = [_of_latent(latent, *entries(blocks, latent), text, config) for latent in range(first, end)]
    n_examples, n = len(config.places), end - first
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    return Selected(
        np.asarray(columns[0], np.float64).reshape(n, len(STATISTICS)),
        np.asarray(columns[1], np.int64).reshape(n, config.n_bins),
        np.asarray(columns[2], np.int64).reshape(n, n_examples),
        np.asarray(columns[3], np.float32).reshape(n, n_examples),
    )


def _of_latent(
    latent: int, slots: Ints, acts: Ints, text: Text, config: RecordsConfig
) -> tuple[list[float], Ints, Ints, Ints]:
    length = text.length
    largest = float(acts.max()) if len(acts) else 0.0
    interval = parts_of(acts, largest, config.n_intervals)
    by_act = np.lexsort((slots, -acts))
    _, first_of_context = np.unique(slots[by_act] // length, return_index=True)
    peaks = by_act[np.sort(first_of_context)]  # the largest of each context, largest first

    chosen = [_padded(peaks, config.n_top)]
    hashes = _hashes(latent, slots, config, 1)
    for i in range(config.n_intervals):
        among = (interval == i).nonzero()[0]
        chosen.append(_sample(among, hashes, slots, acts, length, config.per_interval))
    hashes, m = _hashes(latent, slots, config, 2), len(peaks)
    for i in range(config.n_quantiles):
        group = peaks[::-1][i * m // config.n_quantiles : (i + 1) * m // config.n_quantiles]
        chosen.append(_sample(group, hashes, slots, acts, length, config.per_quantile))
    every = np.arange(len(slots))
    hashes = _hashes(latent, slots, config, 3)
    chosen.append(_sample(every, hashes, slots, acts, length, config.n_random))
    places = np.concatenate(chosen)
    is_one = places >= 0
    example_slots, example_acts = np.full(len(places), -1, np.int64), np.zeros(len(places), np.float32)
    example_slots[is_one], example_acts[is_one] = slots[places[is_one]], acts[places[is_one]]
    inactive = np.asarray(_inactive(latent, slots, text, config), np.int64)
    example_slots = np.concatenate([example_slots, inactive])
    example_acts = np.concatenate([example_acts, np.zeros(len(inactive), np.float32)])
    histogram = np.bincount(parts_of(acts, largest, config.n_bins), minlength=config.n_bins)
    return statistics(acts, text.n_rows), histogram, example_slots, example_acts


def statistics(acts: Ints, n_rows: int) -> list[float]:
    """In the order of STATISTICS."""
    wide, n = acts.astype(np.float64), max(n_rows, 1)
    mean, energy = float(wide.sum()) / n, float((wide**2).sum())
    moments = [
        (float(((wide - mean) ** power).sum()) + (n - len(acts)) * (-mean) ** power) / n
        for power in (2, 3, 4)
    ]
    variance, skewness, kurtosis = moments[0], float("nan"), float("nan")
    if variance > 1e-24 * energy / n:  # more than what rounding makes of equal numbers
        skewness, kurtosis = moments[1] / variance**1.5, moments[2] / variance**2
    largest = float(acts.max()) if len(acts) else 0.0
    return [len(acts), len(acts) / n, mean, variance, skewness, kurtosis, largest, energy]


def parts_of(acts: Ints, largest: float, n_parts: int) -> Ints:
    """In which of n parts of (0, largest] each is, from 0 on: [i, i + 1) / n of the largest, which is in the last."""
    if not len(acts) or not n_parts:
        return np.zeros(len(acts), np.int64)
    return np.minimum((acts.astype(np.float64) / largest * n_parts).astype(np.int64), n_parts - 1)


def _hashes(latent: int, slots: Ints, config: RecordsConfig, salt: int) -> Ints:
    return mix(slots.astype(np.uint32) ^ _key(latent, config, salt))


def _key(latent: int, config: RecordsConfig, salt: int) -> Ints:
    return mix(np.uint32(latent) ^ mix(np.uint32(8 * config.seed + salt)))


def _sample(among: Ints, hashes: Ints, slots: Ints, acts: Ints, length: int, n: int) -> Ints:
    """Those of the smallest hashes, one of each context, the largest activation first; padded to n."""
    order = among[np.lexsort((slots[among], hashes[among]))]
    _, first_of_context = np.unique(slots[order] // length, return_index=True)
    drawn = order[np.sort(first_of_context)[:n]]
    return _padded(drawn[np.lexsort((slots[drawn], -acts[drawn]))], n)


def _padded(places: Ints, n: int) -> Ints:
    return np.concatenate([places[:n], np.full(max(0, n - len(places)), -1, np.int64)])


def _inactive(latent: int, slots: Ints, text: Text, config: RecordsConfig) -> list[int]:
    """Drawn one after another from all slots; refused are those without a row, in a context that there is one of already,
    and those in whose window the latent is active."""
    found: list[int] = []
    key = _key(latent, config, 4)
    for i in range(TRIES * config.n_inactive):
        if len(found) == config.n_inactive:
            break
        slot = int(mix(np.uint32(i) ^ key)) * text.n_slots >> 32
        context, position = divmod(slot, text.length)
        if not text.encoded[context, position] or context in {one // text.length for one in found}:
            continue
        begin, end = text.window(slot, config)
        base = context * text.length
        place = int(np.searchsorted(slots, base + begin))
        if place == len(slots) or slots[place] >= base + end:
            found.append(slot)
    return found + [-1] * (config.n_inactive - len(found))


def window_acts(blocks: Sequence[Block], latents: Ints, bounds: Ints) -> tuple[Ints, Ints, Ints]:
    """The activations of latents[i] in the slots bounds[i, 0] to bounds[i, 1] - 1, of one context.

    Returns:
        offsets [n + 1] int32; at [N] int16, slots from bounds[i, 0] on; acts [N] float32.
    """
    offsets = np.zeros(len(latents) + 1, np.int32)
    at: list[Ints] = [np.zeros(0, np.int16)]
    acts: list[Ints] = [np.zeros(0, np.float32)]
    latent, of_latent = -1, (np.zeros(0, np.int64), np.zeros(0, np.float32))
    for i, (of_row, (begin, end)) in enumerate(zip(latents.tolist(), bounds.tolist(), strict=True)):
        if of_row != latent:
            latent, of_latent = of_row, entries(blocks, of_row)
        inside = slice(*np.searchsorted(of_latent[0], [begin, end]))
        at.append((of_latent[0][inside] - begin).astype(np.int16))
        acts.append(of_latent[1][inside])
        offsets[i + 1] = offsets[i] + len(at[-1])
    return offsets, np.concatenate(at), np.concatenate(acts)
