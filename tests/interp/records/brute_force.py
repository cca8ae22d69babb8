"""Statistics and examples of one latent from its dense column, in the plainest way that says what they are."""

import math
from typing import Any

import numpy as np

from saefast.config.records import RecordsConfig
from saefast.interp.records.select import Block


def mix(bits: int) -> int:
    bits = ((bits ^ bits >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ bits >> 15) * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ bits >> 16


def drawn(slots: list[int], column: np.ndarray, length: int, n: int, key: int) -> list[int]:
    """n of them in the order of their hashes, one of each context, the strongest first; -1 for each that is missing."""
    found: list[int] = []
    for slot in sorted(slots, key=lambda slot: (mix(slot ^ key), slot)):
        if len(found) < n and all(slot // length != other // length for other in found):
            found.append(slot)
    found.sort(key=lambda slot: (-column[slot], slot))
    return found + [-1] * (n - len(found))


def window(slot: int, contexts: np.ndarray, separators: list[int], config: RecordsConfig) -> list[int]:
    """The slots around it, in its context and its document."""
    length = contexts.shape[1]
    context, position = divmod(slot, length)
    documents = [0]
    for token in contexts[context]:
        documents.append(documents[-1] + (int(token) in separators))
    near = range(max(0, position - config.before), min(length, position + config.after + 1))
    return [context * length + p for p in near if documents[p] == documents[position]]


def examples(
    latent: int,
    column: np.ndarray,
    contexts: np.ndarray,
    encoded: np.ndarray,
    separators: list[int],
    config: RecordsConfig,
) -> list[int]:
    """Slots in the order of `RecordsConfig.places`, -1 where there is none. column [tokens] has 0 where it is inactive."""
    length, tokens = contexts.shape[1], range(len(column))
    keys = [mix(latent ^ mix((8 * config.seed + salt) % 2**32)) for salt in range(5)]
    active = [slot for slot in tokens if column[slot] > 0]
    largest = float(column.max())
    peaks = []
    for context in range(len(contexts)):
        there = [slot for slot in active if slot // length == context]
        if there:
            peaks.append(max(there, key=lambda slot: (column[slot], -slot)))
    peaks.sort(key=lambda slot: (-column[slot], slot))
    found = peaks[: config.n_top] + [-1] * max(0, config.n_top - len(peaks))
    n = config.n_intervals
    for i in range(n):
        share = {slot: float(column[slot]) / largest for slot in active}
        among = [slot for slot in active if min(int(share[slot] * n), n - 1) == i]
        found += drawn(among, column, length, config.per_interval, keys[1])
    weakest_first, n = peaks[::-1], config.n_quantiles
    for i in range(n):
        among = [
            p
            for rank, p in enumerate(weakest_first)
            if i * len(peaks) // n <= rank < (i + 1) * len(peaks) // n
        ]
        found += drawn(among, column, length, config.per_quantile, keys[2])
    found += drawn(active, column, length, config.n_random, keys[3])
    quiet: list[int] = []
    for i in range(32 * config.n_inactive):
        slot = mix(i ^ keys[4]) * len(column) >> 32
        is_new = all(slot // length != other // length for other in quiet)
        silent = all(column[other] == 0 for other in window(slot, contexts, separators, config))
        if len(quiet) < config.n_inactive and encoded.flat[slot] and is_new and silent:
            quiet.append(slot)
    return found + quiet + [-1] * (config.n_inactive - len(quiet))


def statistics(column: np.ndarray, encoded: np.ndarray) -> dict[str, float]:
    """Over the tokens with a row, in exact sums of fp64."""
    acts = [float(act) for act in column[encoded.ravel()]]
    n = len(acts)
    mean = math.fsum(acts) / n
    variance = math.fsum((act - mean) ** 2 for act in acts) / n
    std = math.sqrt(variance)
    is_constant = len(set(acts)) == 1
    return {
        "count": sum(act > 0 for act in acts),
        "density": sum(act > 0 for act in acts) / n,
        "mean": mean,
        "variance": variance,
        "skewness": math.nan if is_constant else math.fsum(((act - mean) / std) ** 3 for act in acts) / n,
        "kurtosis": math.nan if is_constant else math.fsum(((act - mean) / std) ** 4 for act in acts) / n,
        "max": max(acts),
        "energy": math.fsum(act * act for act in acts),
    }


def blocks_of(dense: np.ndarray, length: int, contexts_each: list[int]) -> list[Block]:
    """dense [tokens, F] as sorted code, in blocks of so many contexts."""
    blocks, first = [], 0
    for each in contexts_each:
        part = dense[first : first + each * length].T
        latents, slots = part.nonzero()
        offsets = np.searchsorted(latents, np.arange(len(part) + 1)).astype(np.int64)
        blocks.append(Block(first, offsets, slots.astype(np.int32), part[latents, slots].astype(np.float32)))
        first += each * length
    return blocks


def case(seed: int, **sizes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dense [tokens, F] with ties, contexts [m, L] and encoded [m, L].

    Latent 0 never fires, 1 on every token, 2 on every token with one number, 3 on one token; separator tokens are 0 and 1.
    """
    rng = np.random.default_rng(seed)
    m, length, n = sizes.get("m", 9), sizes.get("length", 12), sizes.get("n", 7)
    dense = np.maximum(0, rng.normal(size=(m * length, n)) - 0.4).round(1).astype(np.float32)
    dense[:, 0], dense[:, 1], dense[:, 2], dense[:, 3] = 0, dense[:, 1] + 0.1, 0.3, 0
    dense[rng.integers(m * length), 3] = 2.5
    encoded = rng.random((m, length)) < sizes.get("encoded", 0.9)
    encoded.flat[0] = True
    dense[~encoded.ravel()] = 0
    return dense, rng.integers(0, 12, (m, length)).astype(np.int32), encoded
