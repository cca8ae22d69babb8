"""Latents that are active together: Pearson correlation over all tokens with a row, from the sparse code of the records.

    r = (E[a b] - E[a] E[b]) / (std(a) std(b))

An inactive token counts as 0.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from saefast.activations.sources import Source
from saefast.errors import check
from saefast.interp.effects.ranking import top_of
from saefast.interp.effects.types import Neighbours
from saefast.interp.records import Records
from saefast.interp.records.batches import text_rows
from saefast.interp.together import NO_VARIANCE, Coded, check_same_text, moments, products, tile
from saefast.sae import SAE

SUMS = 2**26  # of latents x coordinates at a time: 512 MiB


def correlated(records: Coded, other: Coded | None = None, n: int = 10) -> Neighbours:
    """For each latent of `records` the n whose activations correlate most with its own, exact; of equal ones the smaller
    index. A latent that is equally active everywhere, or nowhere, has none and is none.

    Time: the sum over tokens of L0 x L0 products, and F x G correlations. Memory: see `saefast.interp.together`.

    Args:
        other: records of another SAE on the same text; default: the same records, where no latent is its own neighbour.

    Raises:
        InputError: records of another text, or n < 1.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    found = []
    for first, r in correlations(records, other or records):
        if other is None:
            own = np.arange(len(r))
            r[own, own + first] = -np.inf
        found.append(top_of(torch.from_numpy(r), n))
    return _neighbours(found)


def correlations(a: Coded, b: Coded) -> Iterator[tuple[int, np.ndarray]]:
    """All of them, some latents of a at a time: (the first one, r [m, F_b] float64, -inf where there is none).

    Raises:
        InputError: another text.
    """
    check_same_text(a, b)
    (mean_a, std_a), (mean_b, std_b) = moments(a), moments(b)
    for part in products(a, b):
        these = slice(part.first, part.first + len(part.both))
        yield part.first, _pearson(part.both / a.n_rows, mean_a[these], std_a[these], mean_b, std_b)


def correlated_neurons(records: Records, source: Source, sae: SAE, n: int = 10) -> Neighbours:
    """For each latent the n coordinates of the activations (neurons, at an MLP) that correlate most with it.

    One pass over the source, of nnz x d_in products; of more than 2^26 sums (512 MB in fp64), a pass for each 2^26.

    Args:
        source: what the records were made from.
        sae: theirs.

    Raises:
        InputError: a source with another text or width, or n < 1.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    d_in, each = sae.config.d_in, max(1, SUMS // sae.config.d_in)
    mean, std = moments(records)
    found = []
    for first in range(0, records.d_sae, each):
        end = min(first + each, records.d_sae)
        both, sums, squares = _with_rows(records, source, d_in, first, end)
        mean_x = sums / records.n_rows
        variance = squares / records.n_rows - mean_x**2
        std_x = np.sqrt(np.where(variance > NO_VARIANCE * squares / records.n_rows, variance, 0))
        r = _pearson(both / records.n_rows, mean[first:end], std[first:end], mean_x, std_x)
        found.append(top_of(torch.from_numpy(r), n))
    return _neighbours(found)


def _with_rows(
    records: Records, source: Source, d_in: int, first: int, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass: the sums of act * x [end - first, d_in], of x [d_in] and of x^2 [d_in], fp64."""
    acts = tile(records, first, end)
    both, sums, squares = np.zeros((end - first, d_in)), np.zeros(d_in), np.zeros(d_in)
    text, n_contexts, n_rows = records.text, 0, 0
    where = f"{records.folder} has another"
    for batch in text_rows(source):
        if n_contexts == len(text.contexts):
            break
        check(batch.x.shape[1] == d_in, f"source: expected width d_in = {d_in}, got {batch.x.shape[1]}")
        m = len(batch.contexts)
        recorded = text.contexts[n_contexts : n_contexts + m]
        same = np.array_equal(recorded, batch.contexts.cpu().numpy())
        slots = batch.slots.cpu().numpy() + n_contexts * text.length
        same = same and np.array_equal(
            np.flatnonzero(text.encoded[n_contexts : n_contexts + m]), batch.slots.cpu()
        )
        check(same, f"source: expected the one of the records; {where} text from context {n_contexts} on")
        x = batch.x.double().cpu().numpy()
        both += acts[slots].T @ x
        sums, squares = sums + x.sum(axis=0), squares + (x**2).sum(axis=0)
        n_contexts, n_rows = n_contexts + m, n_rows + len(x)
    check(n_rows == records.n_rows, f"source: expected {records.n_rows} rows as in the records, got {n_rows}")
    return both, sums, squares


def _pearson(
    both: np.ndarray, mean: np.ndarray, std: np.ndarray, mean_among: np.ndarray, std_among: np.ndarray
) -> np.ndarray:
    """E[a b] [r, c] and the moments of both -> correlations; -inf where there is no variance."""
    scale = std[:, None] * std_among
    r = (both - mean[:, None] * mean_among) / np.where(scale > 0, scale, 1)
    r[(std == 0)[:, None] | (std_among == 0)] = -np.inf
    return r


def _neighbours(found: list[tuple[Tensor, Tensor]]) -> Neighbours:
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(indices.to(torch.int32), values.float())
