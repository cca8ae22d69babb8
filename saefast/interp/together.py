"""Sums over the tokens of a text of what the latents of two dictionaries did on it.

Both codes are held in memory as sparse matrices, 16 bytes for each active entry of both; the products of some latents of the
one with all of the other are dense, `CELLS` numbers at a time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError, check
from saefast.interp.records import Records

CELLS = 2**24  # of 8 bytes


class Sparse(NamedTuple):
    """The code of a dictionary."""

    by_latent: Any  # scipy CSR [F, n_slots] float64
    n_active: np.ndarray  # [F] int64, tokens on which each is active
    square_sum: np.ndarray  # [F] float64
    mean: np.ndarray  # [F] float64, over all tokens with a row
    std: np.ndarray  # [F] float64, 0 for those that are never active or always the same


class Products(NamedTuple):
    """Of the latents first to first + m - 1 of a with all of b."""

    first: int
    both: np.ndarray  # [m, F_b] float64, sum of a b over the tokens
    b_where_a: np.ndarray  # [m, F_b], sum of b^2 over the tokens on which a is active
    a_where_b: np.ndarray  # [m, F_b], sum of a^2 over the tokens on which b is active


def check_same_text(a: Records, b: Records) -> None:
    """Raise InputError unless both were recorded on the same rows of the same text."""
    one, two = a.text.contexts, b.text.contexts
    want = f"records_b: expected records of the text of {a.folder}"
    check(one.shape == two.shape, f"{want}, {list(one.shape)} tokens, got {list(two.shape)}")
    other = int((one != two).any(axis=1).sum())
    check(other == 0, f"{want}, got another text in {other} of {len(one)} contexts")
    rows = int((a.text.encoded != b.text.encoded).sum())
    check(rows == 0, f"{want}, got other rows: {rows} tokens have one in one of them only")


def sparse(records: Records) -> Sparse:
    """The code of all latents."""
    scipy = _scipy()
    n_slots, parts = records.text.n_slots, []
    for block in records.blocks:
        shape = (records.d_sae, n_slots)
        columns = block.slots.astype(np.int64) + block.first_slot
        parts.append(scipy.csr_matrix((block.acts.astype(np.float64), columns, block.offsets), shape=shape))
    whole = sum(parts[1:], parts[0])
    n = max(records.n_rows, 1)
    mean = np.asarray(whole.sum(axis=1)).ravel() / n
    squares = np.asarray(whole.multiply(whole).sum(axis=1)).ravel()
    second = squares / n
    variance = second - mean**2
    # what rounding leaves of a latent that is the same on all tokens is no variance
    std = np.sqrt(np.where(variance > 1e-12 * second, variance, 0.0))
    return Sparse(whole, np.diff(whole.indptr).astype(np.int64), squares, mean, std)


def products(a: Sparse, b: Sparse, masked: bool = False) -> Iterator[Products]:
    """All of them, some latents of a at a time.

    Args:
        masked: also the sums of squares; else they are empty.
    """
    tokens = b.by_latent.T.tocsr()
    n_b, none = b.by_latent.shape[0], np.zeros((0, 0))
    each = max(1, CELLS // max(n_b, 1))
    if masked:
        squares, signs = tokens.multiply(tokens).tocsr(), tokens.sign()
    for first in range(0, a.by_latent.shape[0], each):
        some = a.by_latent[first : first + each]
        both = (some @ tokens).toarray()
        if not masked:
            yield Products(first, both, none, none)
            continue
        yield Products(
            first, both, (some.sign() @ squares).toarray(), (some.multiply(some).tocsr() @ signs).toarray()
        )


def _scipy() -> Any:
    try:
        import scipy.sparse
    except ImportError:
        raise InputError("a comparison needs scipy: pip install 'saefast[interp]'") from None
    return scipy.sparse
