"""Sums over the tokens of a text of what the latents of two dictionaries did on it, from their sparse codes.

The sums of products are sparse products of scipy, in fp64, or dense ones where that is faster. Memory: a block of the code (up
to 270 MB), and for some latents of the one with all of the other as many sums as `CELLS`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError, check
from saefast.interp.records import Records
from saefast.interp.records.select import Block, entries
from saefast.interp.records.text import Text

CELLS = 2**23  # sums at a time: 64 MiB in fp64, and about four times that while they are made
NO_VARIANCE = 1e-12  # of the mean square: rounding
SLOTS = 2**11  # of a dense product at a time
DENSE = 25  # products of a dense product in the time of one of a sparse product: measured with OpenBLAS on one core


@dataclass(frozen=True)
class Code:
    """A sparse code that was made from that of records: of it all sums here are taken as of `Records`.

    Its entries have any sign, and the slots of a latent any order.
    """

    folder: Path  # of the records, for messages
    text: Text
    d_sae: int
    blocks: list[Block]
    n_rows: int  # tokens over which means are taken

    @classmethod
    def of(cls, records: "Coded", blocks: list[Block], n_rows: int) -> "Code":
        """With other entries than those of `records`."""
        return cls(records.folder, records.text, records.d_sae, blocks, n_rows)


Coded = Records | Code


class Products(NamedTuple):
    """Of the latents first to first + m - 1 of a with all of b."""

    first: int
    both: np.ndarray  # [m, F_b] float64, sum of a b over the tokens
    b_where_a: np.ndarray  # [m, F_b], sum of b^2 over the tokens on which a is active
    a_where_b: np.ndarray  # [m, F_b], sum of a^2 over the tokens on which b is active


def check_same_text(a: Coded, b: Coded) -> None:
    """Raise InputError unless both were recorded on the same rows of the same text."""
    one, two = a.text.contexts, b.text.contexts
    want = f"records: expected those of the text of {a.folder} in {b.folder}"
    check(one.shape == two.shape, f"{want}, {list(one.shape)} tokens, got {list(two.shape)}")
    other = int((one != two).any(axis=1).sum())
    check(other == 0, f"{want}, got another text in {other} of {len(one)} contexts")
    rows = int((a.text.encoded != b.text.encoded).sum())
    check(rows == 0, f"{want}, got other rows: {rows} tokens have one in one of them only")


def sums(records: Coded) -> np.ndarray:
    """[3, F] float64: the number of entries of each latent, their sum, and that of their squares."""
    found = np.zeros((3, records.d_sae))
    for block in records.blocks:
        latent = np.repeat(np.arange(records.d_sae), np.diff(block.offsets))
        acts = block.acts.astype(np.float64)
        for of, weights in zip(found, (None, acts, acts**2), strict=True):
            of += np.bincount(latent, weights, records.d_sae)
    return found


def moments(records: Coded) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each latent over all tokens with a row, [F] float64; no variance: 0."""
    _, mean, square = sums(records) / max(records.n_rows, 1)
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > NO_VARIANCE * square, variance, 0))


def tile(records: Coded, first: int, end: int) -> Any:
    """The code of these latents as a sparse matrix [all slots, end - first] in fp64."""
    parts = [(block, slice(int(block.offsets[first]), int(block.offsets[end]))) for block in records.blocks]
    slots = np.concatenate([block.slots[part].astype(np.int64) + block.first_slot for block, part in parts])
    acts = np.concatenate([block.acts[part].astype(np.float64) for block, part in parts])
    counts = [np.diff(block.offsets[first : end + 1]) for block in records.blocks]
    latents = np.concatenate([np.repeat(np.arange(end - first), each) for each in counts])
    return _scipy().coo_array((acts, (slots, latents)), shape=(records.text.n_slots, end - first)).tocsr()


def products(a: Coded, b: Coded, masked: bool = False) -> Iterator[Products]:
    """All of them, some latents of a at a time, for which the code of b is read once.

    Args:
        masked: also the sums of squares; else they are those of a b.
    """
    each = max(1, CELLS // max(b.d_sae, 1))
    for first in range(0, a.d_sae, each):
        end = min(first + each, a.d_sae)
        some = tile(a, first, end)
        found = [np.zeros((b.d_sae, end - first)) for _ in range(3 if masked else 1)]
        is_active, squared = (some.sign(), some.multiply(some)) if masked else (some, some)
        for first_slot, code in _codes(b):
            these = slice(first_slot, first_slot + code.shape[1])
            found[0] += _product(code, some[these])
            if masked:
                found[1] += _product(code.multiply(code), is_active[these])
                found[2] += _product(code.sign(), squared[these])
        yield Products(first, *(found[i % len(found)].T for i in range(3)))


def pair_products(a: Coded, b: Coded, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum of a b over the tokens for chosen pairs: [m] latents of a, [m] of b -> [m] float64.

    Each pair takes the time of reading its entries; memory: a number for each token.
    """
    found, acts_of_left = np.zeros(len(left)), np.zeros(a.text.n_slots)
    for latent in np.unique(left).tolist():
        slots, acts = entries(a.blocks, latent)
        acts_of_left[slots] = acts
        for pair in np.flatnonzero(left == latent).tolist():
            others, of_others = entries(b.blocks, int(right[pair]))
            found[pair] = acts_of_left[others] @ of_others.astype(np.float64)
        acts_of_left[slots] = 0
    return found


def _codes(records: Coded) -> Iterator[tuple[int, Any]]:
    """(first slot, sparse matrix [F, slots] in fp64) of each block."""
    firsts = [block.first_slot for block in records.blocks]
    for block, end in zip(records.blocks, [*firsts[1:], records.text.n_slots], strict=True):
        shape = (records.d_sae, end - block.first_slot)
        parts = block.acts.astype(np.float64), block.slots, block.offsets
        yield block.first_slot, _scipy().csr_array(parts, shape=shape)


def _product(left: Any, right: Any) -> np.ndarray:
    """[r, n] times [n, c], both csr -> dense [r, c]."""
    n = left.shape[1]
    steps = int(np.bincount(left.indices, minlength=n) @ np.diff(right.indptr))
    if steps * DENSE < left.shape[0] * n * right.shape[1]:
        product: np.ndarray = (left @ right).toarray()
        return product
    left, product = left.tocsc(), np.zeros((left.shape[0], right.shape[1]))
    for first in range(0, n, SLOTS):
        product += left[:, first : first + SLOTS].toarray() @ right[first : first + SLOTS].toarray()
    return product


def _scipy() -> Any:
    """scipy.sparse; umap-learn and scikit-learn of the extra bring it."""
    try:
        import scipy.sparse
    except ImportError:
        raise InputError("products of codes need scipy: pip install 'saefast[interp]'") from None
    return scipy.sparse
