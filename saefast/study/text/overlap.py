"""Which documents share a long passage: those that do must be on the same side of a split."""

import numpy as np
from numpy.typing import NDArray

PASSAGE = 200  # letters, digits and signs; spaces, line ends and upper case do not count
_GRAM = PASSAGE // 2
_FACTOR = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64


def fingerprints(text: str) -> NDArray[np.uint64]:
    """Hashes of some passages of the text, such that two texts with a common one of PASSAGE signs have a common hash.

    Winnowing (Schleimer, Wilkerson, Aiken: Winnowing: Local Algorithms for Document Fingerprinting, SIGMOD 2003): the smallest
    hash in each window of PASSAGE - GRAM + 1 consecutive grams, of GRAM signs each. Any common passage of PASSAGE signs
    contains a whole window. A hash is a polynomial modulo 2^64, made for all places at once from running sums.

    Returns:
        [m] sorted, without repetition; none for a text shorter than PASSAGE.
    """
    signs = np.frombuffer("".join(text.lower().split()).encode("utf-32-le"), np.uint32)
    if len(signs) < PASSAGE:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        summands = _mixed(signs.astype(np.uint64)) * _powers(_FACTOR, len(signs))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(summands)])
        # a gram must have the same hash at each place, so the power of its first sign is divided out
        inverse = _powers(pow(_FACTOR, -1, 1 << 64), len(signs) - _GRAM + 1)
        grams = _mixed((sums[_GRAM:] - sums[:-_GRAM]) * inverse)
    return np.unique(_window_minima(grams, PASSAGE - _GRAM + 1))


def _powers(factor: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, factor, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection that spreads the bits (the end of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _window_minima(x: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """The minimum of each `width` consecutive numbers (van Herk: running minima of blocks, from both sides)."""
    size = len(x)
    padded = np.full(-(-size // width) * width, np.iinfo(np.uint64).max, np.uint64)
    padded[:size] = x
    blocks = padded.reshape(-1, width)
    before = np.minimum.accumulate(blocks, axis=1).ravel()
    after = np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.minimum(after[: size - width + 1], before[width - 1 : size])


def clusters(texts: list[str], works: list[str]) -> NDArray[np.int64]:
    """A number for each text, the same for those that share a passage of PASSAGE signs or are of the same work (where it has a
    name), directly or through others.

    Returns:
        [n]: the index of the first text of the same cluster.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    found = [fingerprints(text) for text in texts]
    owners = np.repeat(np.arange(len(texts)), [len(prints) for prints in found])
    prints = np.concatenate([np.empty(0, np.uint64), *found])
    order = np.argsort(prints, kind="stable")
    same = np.flatnonzero(prints[order][1:] == prints[order][:-1])
    links = [(owners[order][same], owners[order][same + 1])]
    first_of: dict[str, int] = {}
    firsts = [first_of.setdefault(work, i) if work else i for i, work in enumerate(works)]
    links.append((np.arange(len(texts)), np.array(firsts, np.int64)))
    rows, columns = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(texts), len(texts)))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return first[labels]
