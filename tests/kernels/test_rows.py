"""The cut of a row into pieces of `saefast.triton_kernels.rows`. Loads and stores by pieces: test_storage.py."""

import pytest

from saefast.triton_kernels.rows import pieces_of


@pytest.mark.parametrize("num_warps", [1, 2, 8, 16])
@pytest.mark.parametrize("D", [1, 7, 24, 130, 576, 768, 1000, 2304, 3584, 4096, 5000, 8192])
def test_pieces_cover_the_row_once(D: int, num_warps: int) -> None:
    pieces = pieces_of(D, num_warps)
    end = 0
    for start, width, vector, *hints in pieces:
        assert start == end < D and width & (width - 1) == 0 and start % width == 0
        assert 1 <= vector <= 4 and hints == [1, 0]
        end += width
    assert D <= end <= D + D // 2 and (len(pieces) == 1 or end - D < pieces[-1][1])
    if D in (768, 2304, 3584, 4096, 8192):
        assert end == D


def test_hints() -> None:
    """Of every piece: what is gathered stays in the cache, what is stored leaves it first."""
    for keep in (False, True):
        for leave in (False, True):
            assert {piece[3:] for piece in pieces_of(130, 1, keep, leave)} == {(keep, leave)}
