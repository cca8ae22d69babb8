"""`saefast.triton_kernels.occupancy` against values of CUDA's occupancy calculator."""

import pytest

from saefast.triton_kernels.occupancy import blocks_per_multiprocessor, most_registers

KB = 1024
BLOCKS = [  # warps, registers, shared bytes, capability, blocks
    (1, 144, 0, (9, 0), 12),  # 3 warps in each of four partitions, not 14
    (1, 128, 0, (9, 0), 16),
    (1, 129, 0, (9, 0), 12),  # allocated as 136
    (1, 32, 0, (9, 0), 32),  # as many blocks as there can be, in half of the warps
    (2, 144, 0, (9, 0), 6),
    (2, 168, 0, (9, 0), 6),
    (2, 169, 0, (9, 0), 4),
    (4, 168, 0, (9, 0), 3),
    (3, 128, 0, (9, 0), 5),
    (8, 128, 0, (9, 0), 2),
    (8, 129, 0, (9, 0), 1),
    (8, 255, 0, (9, 0), 1),
    (16, 128, 0, (9, 0), 1),
    (16, 129, 0, (9, 0), 0),
    (8, 32, 0, (9, 0), 8),  # 64 warps
    (8, 32, 0, (8, 6), 6),  # 48
    (1, 32, 0, (8, 6), 16),
    (1, 32, 0, (8, 9), 24),
    (4, 219, 98 * KB, (9, 0), 2),
    (8, 64, 98 * KB, (9, 0), 2),
    (8, 64, 113 * KB, (9, 0), 2),  # and 1 KB reserved for each: 228 in all
    (8, 64, 113 * KB + 1, (9, 0), 1),
    (8, 64, 227 * KB, (9, 0), 1),
    (8, 64, 227 * KB + 1, (9, 0), 0),
    (8, 64, 227 * KB, (10, 0), 1),
    (8, 64, 81 * KB, (8, 0), 2),
    (8, 64, 163 * KB, (8, 0), 1),
    (8, 64, 163 * KB + 1, (8, 0), 0),
    (8, 64, 99 * KB, (12, 0), 1),
    (1, 32, 0, (9, 9), 16),  # a GPU that nobody knows: the least of all
]


@pytest.mark.parametrize("warps,registers,shared,capability,blocks", BLOCKS)
def test_blocks(warps: int, registers: int, shared: int, capability: tuple[int, int], blocks: int) -> None:
    assert blocks_per_multiprocessor(warps, registers, shared, capability) == blocks


@pytest.mark.parametrize(
    "warps,registers,shared,most",
    [
        (1, 144, 0, 168),
        (1, 130, 0, 168),
        (1, 128, 0, 128),
        (1, 100, 0, 128),
        (8, 128, 0, 128),
        (8, 130, 0, 255),
        (16, 100, 0, 128),
        (2, 128, 60 * KB, 255),  # shared memory lets 3 blocks in, for which 255 are as good
        (2, 100, 30 * KB, 128),  # 7 blocks of 2 warps: 168 would be 6
    ],
)
def test_most_registers(warps: int, registers: int, shared: int, most: int) -> None:
    assert most_registers(warps, registers, shared) == most
    assert blocks_per_multiprocessor(warps, most, shared) == blocks_per_multiprocessor(
        warps, registers, shared
    )
