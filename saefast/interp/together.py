"""Sums over the tokens of a text of what the latents of two dictionaries did on it, from their sparse codes.

The sums of products are sparse products of scipy, in fp64. Memory: a block of the code (up to 270 MB), and for some latents of
the one with all of the other as many sums as `CELLS`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError, check
from saefast.interp.records import Records

CELLS = 2**23  # sums at a time: 64 MiB in fp64, and about four times that while they are made
NO_VARIANCE = 1e-12  # of the mean square: rounding


class Products(NamedTuple):
    """Of the latents first to first + m - 1 of a with all of b."""

    first: int
    both: np.ndarray  # [m, F_b] float64, sum of a b over the tokens
    b_where_a: np.ndarray  # [m, F_b], sum of b^2 over the tokens on which a is active
    a_where_b: np.ndarray  # [m, F_b], sum of a^2 over the tokens on which b is active


def check_same_text(a: Records, b: Records) -> None:
    """Raise InputError unless both were recorded on the same rows of the same text."""
    one, two = a.text.contexts, b.text.contexts
    want = f"records: expected those of the text of {a.folder} in {b.folder}"
    check(one.shape == two.shape, f"{want}, {list(one.shape)} tokens, got {list(two.shape)}")
    other = int((one != two).any(axis=1).sum())
    check(other == 0, f"{want}, got another text in {other} of {len(one)} contexts")
    rows = int((a.text.encoded != b.text.encoded).sum())
    check(rows == 0, f"{want}, got other rows: {rows} tokens have one in one of them only")


def sums(records: Records) -> np.ndarray:
    """[3, F] float64: the number of activations of each latent, their sum, and that of their squares."""
    found = np.zeros((3, records.d_sae))
    for block in records.blocks:
        latent = np.repeat(np.arange(records.d_sae), np.diff(block.offsets))
        acts = block.acts.astype(np.float64)
        for of, weights in zip(found, (None, acts, acts**2), strict=True):
            of += np.bincount(latent, weights, records.d_sae)
    return found


def moments(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each latent over all tokens with a row, [F] float64; no variance: 0."""
    _, mean, square = sums(records) / max(records.n_rows, 1)
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > NO_VARIANCE * square, variance, 0))


def tile(records: Records, first: int, end: int) -> Any:
    """The code of these latents as a sparse matrix [all slots, end - first] in fp64."""
    parts = [(block, slice(int(block.offsets[first]), int(block.offsets[end]))) for block in records.blocks]
    slots = np.concatenate([block.slots[part].astype(np.int64) + block.first_slot for block, part in parts])
    acts = np.concatenate([block.acts[part].astype(np.float64) for block, part in parts])
    counts = [np.diff(block.offsets[first : end + 1]) for block in records.blocks]
    latents = np.concatenate([np.repeat(np.arange(end - first), each) for each in counts])
    return _scipy().coo_array((acts, (slots, latents)), shape=(records.text.n_slots, end - first)).tocsr()


def products(a: Records, b: Records, masked: bool = False) -> Iterator[Products]:
    """All of them, some latents of a at a time, for which the code of b is read once.

    Args:
        masked: also the sums of squares; else they are those of a b.
    """
    each = max(1, CELLS // max(b.d_sae, 1))
    for first in range(0, a.d_sae, each):
        end = min(first + each, a.d_sae)
        some = tile(a, first, end)
        found = [np.zeros((b.d_sae, end - first)) for _ in range(3 if masked else 1)]
        for first_slot, code in _codes(b):
            here = some[first_slot : first_slot + code.shape[1]]
            found[0] += (code @ here).toarray()
            if masked:
                found[1] += (code.multiply(code) @ here.sign()).toarray()
                found[2] += (code.sign() @ here.multiply(here)).toarray()
        yield Products(first, *(found[i % len(found)].T for i in range(3)))


def _codes(records: Records) -> Iterator[tuple[int, Any]]:
    """(first slot, sparse matrix [F, slots] in fp64) of each block."""
    for entry, block in zip(records.index["blocks"], records.blocks, strict=True):
        shape = (records.d_sae, entry["n_contexts"] * records.text.length)
        entries = block.acts.astype(np.float64), block.slots, block.offsets
        yield block.first_slot, _scipy().csr_array(entries, shape=shape)


def _scipy() -> Any:
    """scipy.sparse; umap-learn and scikit-learn of the extra bring it."""
    try:
        import scipy.sparse
    except ImportError:
        raise InputError("products of codes need scipy: pip install 'saefast[interp]'") from None
    return scipy.sparse
