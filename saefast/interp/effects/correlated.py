"""Latents that are active together: Pearson correlation over all tokens with a row, from the sparse code of the records.

    r = (E[a b] - E[a] E[b]) / (std(a) std(b))

An inactive token counts as 0. The sums of products are sparse products of scipy, in fp64.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.sources import Source
from saefast.errors import check
from saefast.interp.effects.ranking import top_of
from saefast.interp.effects.types import Neighbours
from saefast.interp.records import Records
from saefast.interp.records.batches import text_rows
from saefast.sae import SAE

TILE = 2**23  # correlations at a time: 64 MiB in fp64, and about four times that while they are made
SUMS = 2**26  # of latents x coordinates at a time: 512 MiB
NO_VARIANCE = 1e-12  # of the mean square: rounding


def _sparse() -> Any:
    """scipy.sparse; umap-learn and scikit-learn of the extra bring it."""
    try:
        import scipy.sparse
    except ImportError:
        check(False, "correlated latents need scipy: pip install 'saefast[interp]'")
    return scipy.sparse


def _moments(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each latent, [F] float64; no variance: 0."""
    sums = np.zeros((2, records.d_sae))
    for block in records.blocks:
        latent = np.repeat(np.arange(records.d_sae), np.diff(block.offsets))
        acts = block.acts.astype(np.float64)
        sums[0] += np.bincount(latent, acts, records.d_sae)
        sums[1] += np.bincount(latent, acts**2, records.d_sae)
    mean, square = sums / records.n_rows
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > NO_VARIANCE * square, variance, 0))


def _codes(records: Records) -> Iterator[tuple[int, Any]]:
    """(first slot, sparse matrix [F, slots] in fp64) of each block."""
    for entry, block in zip(records.index["blocks"], records.blocks, strict=True):
        shape = (records.d_sae, entry["n_contexts"] * records.text.length)
        entries = block.acts.astype(np.float64), block.slots, block.offsets
        yield block.first_slot, _sparse().csr_array(entries, shape=shape)


def _tile(records: Records, first: int, end: int) -> Any:
    """The code of these latents as a sparse matrix [all slots, end - first]."""
    parts = [(block, slice(int(block.offsets[first]), int(block.offsets[end]))) for block in records.blocks]
    slots = np.concatenate([block.slots[part].astype(np.int64) + block.first_slot for block, part in parts])
    acts = np.concatenate([block.acts[part].astype(np.float64) for block, part in parts])
    counts = [np.diff(block.offsets[first : end + 1]) for block in records.blocks]
    latents = np.concatenate([np.repeat(np.arange(end - first), each) for each in counts])
    return _sparse().coo_array((acts, (slots, latents)), shape=(records.text.n_slots, end - first)).tocsr()


def correlated(records: Records, other: Records | None = None, n: int = 10) -> Neighbours:
    """For each latent of `records` the n whose activations correlate most with its own, exact; of equal ones the smaller
    index. A latent that is equally active everywhere, or nowhere, has none and is none.

    Memory: a block of the code in fp64 (up to 270 MB), and a tile of the F x G correlations. Time: for each tile of latents
    one pass over the code, the sum over tokens of L0 x L0 products, and F x G correlations.

    Args:
        other: records of another SAE on the same text; default: the same records, where no latent is its own neighbour.

    Raises:
        InputError: records of another text, or n < 1.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    same, among = other is None, other or records
    if other is not None:
        want = "records of the same text, with the same tokens recorded"
        equal = all(
            np.array_equal(getattr(records.text, name), getattr(other.text, name))
            for name in ("contexts", "encoded")
        )
        check(equal, f"other: expected {want} as {records.folder}, got {other.folder}")
    n_rows = records.n_rows
    (mean, std), (mean_among, std_among) = _moments(records), _moments(among)
    each = max(1, TILE // among.d_sae)
    found = []
    for first in range(0, records.d_sae, each):
        end = min(first + each, records.d_sae)
        tile, products = _tile(records, first, end), np.zeros((among.d_sae, end - first))
        for first_slot, code in _codes(among):
            products += (code @ tile[first_slot : first_slot + code.shape[1]]).toarray()
        r = _pearson(products.T / n_rows, mean[first:end], std[first:end], mean_among, std_among)
        if same:
            r[np.arange(end - first), np.arange(first, end)] = -np.inf
        found.append(top_of(torch.from_numpy(r), n))
    return _neighbours(found)


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
    mean, std = _moments(records)
    found = []
    for first in range(0, records.d_sae, each):
        end = min(first + each, records.d_sae)
        products, sums, squares = _with_rows(records, source, d_in, first, end)
        mean_x = sums / records.n_rows
        variance = squares / records.n_rows - mean_x**2
        std_x = np.sqrt(np.where(variance > NO_VARIANCE * squares / records.n_rows, variance, 0))
        r = _pearson(products / records.n_rows, mean[first:end], std[first:end], mean_x, std_x)
        found.append(top_of(torch.from_numpy(r), n))
    return _neighbours(found)


def _with_rows(
    records: Records, source: Source, d_in: int, first: int, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass: the sums of act * x [end - first, d_in], of x [d_in] and of x^2 [d_in], fp64."""
    tile = _tile(records, first, end)  # [slots, latents]
    products, sums, squares = np.zeros((end - first, d_in)), np.zeros(d_in), np.zeros(d_in)
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
        products += tile[slots].T @ x
        sums, squares = sums + x.sum(axis=0), squares + (x**2).sum(axis=0)
        n_contexts, n_rows = n_contexts + m, n_rows + len(x)
    check(n_rows == records.n_rows, f"source: expected {records.n_rows} rows as in the records, got {n_rows}")
    return products, sums, squares


def _pearson(
    products: np.ndarray, mean: np.ndarray, std: np.ndarray, mean_among: np.ndarray, std_among: np.ndarray
) -> np.ndarray:
    """E[a b] [r, c] and the moments of both -> correlations; -inf where there is no variance."""
    scale = std[:, None] * std_among
    r = (products - mean[:, None] * mean_among) / np.where(scale > 0, scale, 1)
    r[(std == 0)[:, None] | (std_among == 0)] = -np.inf
    return r


def _neighbours(found: list[tuple[Tensor, Tensor]]) -> Neighbours:
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(indices.to(torch.int32), values.float())
