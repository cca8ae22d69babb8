"""How many thread blocks a multiprocessor runs at the same time, as CUDA's occupancy calculator has it.

A kernel whose programs stay, each taking row after row, wants as many of them as run at once: with one more than that,
some wait for a second round, in which most of the GPU is idle.
"""

from typing import NamedTuple

REGISTERS = 65536  # of a multiprocessor
WARP = 32  # threads
PARTITIONS = 4  # of a multiprocessor; each runs every fourth warp out of its own quarter of the registers
REGISTER_UNIT = 256  # a warp is given registers in units of so many
SHARED_UNIT = 128  # bytes
RESERVED = 1024  # bytes of shared memory that every block takes beside its own


class Limits(NamedTuple):
    """Of a multiprocessor."""

    warps: int
    blocks: int
    shared_bytes: int  # the 1 KB that is reserved for each block included: one block can have 1 KB less


# CUDA programming guide, table of technical specifications per compute capability
LIMITS = {
    (8, 0): Limits(64, 32, 164 * 1024),
    (8, 6): Limits(48, 16, 100 * 1024),
    (8, 7): Limits(48, 16, 164 * 1024),
    (8, 9): Limits(48, 24, 100 * 1024),
    (9, 0): Limits(64, 32, 228 * 1024),
    (10, 0): Limits(64, 32, 228 * 1024),
    (10, 3): Limits(64, 32, 228 * 1024),
    (12, 0): Limits(48, 24, 100 * 1024),
}
UNKNOWN = Limits(
    48, 16, 100 * 1024
)  # the least of all: a GPU that is not listed is not asked for a second round


def up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def blocks_per_multiprocessor(
    num_warps: int, registers: int, shared_bytes: int = 0, capability: tuple[int, int] = (9, 0)
) -> int:
    """Blocks of `num_warps` warps, `registers` per thread and `shared_bytes` that run at once; 0: not even one."""
    limits = LIMITS.get(capability, UNKNOWN)
    of_warp = up(max(registers, 1) * WARP, REGISTER_UNIT)
    if of_warp * up(num_warps, PARTITIONS) > REGISTERS:
        return 0
    warps = REGISTERS // PARTITIONS // of_warp * PARTITIONS
    shared = up(shared_bytes + RESERVED, SHARED_UNIT)
    return min(min(warps, limits.warps) // num_warps, limits.shared_bytes // shared, limits.blocks)


def most_registers(
    num_warps: int, registers: int, shared_bytes: int = 0, capability: tuple[int, int] = (9, 0)
) -> int:
    """The most registers per thread, from `registers` up to the 255 that there can be, that cost no block."""
    blocks = blocks_per_multiprocessor(num_warps, registers, shared_bytes, capability)
    same = (
        n
        for n in range(registers, 256)
        if blocks_per_multiprocessor(num_warps, n, shared_bytes, capability) == blocks
    )
    return max(same)
