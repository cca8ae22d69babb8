"""What the machine code for an H100 or H200 (sm_90) must show of the kernels that a step spends its time in.

Four things that no test of results can see, each of which has cost a fifth of a step or more: more programs than run at once,
so that some wait for a second round; gathers that wait for each row before they ask for the next; loads that wait for each
other; and an epilogue that keeps the tensor cores waiting. The figures stand in the table of compile_gate.py, which complains
where they break a limit of this file.
"""

import re

from saefast.triton_kernels.gemm import N_SMS
from saefast.triton_kernels.occupancy import blocks_per_multiprocessor
from tests.gates.sass import PHASES, Instruction, Loop, innermost_with, inside, loops, path, time_of

# Kernels whose programs stay until all work is done: their number follows from how many run at once.
PERSISTENT = ("update_kernel", "adam_rows_kernel", "gemm_")
# Kernels that read rows of a matrix in the order of a list.
GATHERS = ("update_kernel", "chunk_kernel", "decode_kernel", "decode_error_kernel")

Figures = dict[str, float]
# Loads of a turn of the gather loop that wait for each other. With rows asked for ahead it is less than one; a piece of a row
# of which a thread has two bytes cannot be copied ahead, so in B one load or two stay.
MOST_PHASES = 2.0
# And of the rest of a latent in the update: offsets, weights, sums of chunks, moments.
MOST_PHASES_OF_LATENT = 17.0
# Instructions of a warp between the last product of a tile and the next tile. With 8 warps on tiles of 128 x 256, a tile of
# d = 768 takes the tensor cores 12,288 cycles; a multiprocessor issues 4 instructions in each.
MOST_EPILOGUE = {"gemm_encode_kernel ": 700, "gemm_encode_kernel/2": 1100}  # the second has a scale
# What a complaint may say of a row that begins so, and why that is left as it is.
LEFT = {
    "update_kernel given": ("run at once", "one number of programs for a width, that of the fullest kernel"),
    "adam_rows_kernel": ("run at once", "it takes the update's; rows come in order, so bytes bound it"),
}
LOADS = ("LDG", "LDGSTS")


def is_load(instruction: Instruction) -> bool:
    return instruction.kind in LOADS


def is_product(instruction: Instruction) -> bool:
    return instruction.kind == "HGMMA"


def gather_loop(code: list[Instruction]) -> Loop | None:
    """The innermost loop with the most loads from global memory."""
    found = innermost_with(code, is_load)
    return max(found, key=lambda loop: sum(map(is_load, inside(code, loop))), default=None)


def phases(code: list[Instruction], loop: Loop) -> tuple[float, float]:
    """Loads that wait for each other in a turn of the loop, and in the rest of a turn of the loops around it."""

    def time(turns: int, outer: int) -> float:
        def trips(other: Loop) -> int:
            if other == loop:
                return turns
            around = other.first <= loop.first and loop.last <= other.last
            return outer if around else 0

        return time_of(path(code, trips), PHASES)

    turn = (time(32, 1) - time(16, 1)) / 16
    rest = time(16, 3) - time(16, 2) - 16 * turn
    return round(turn, 2), round(rest, 2)


def epilogue(code: list[Instruction]) -> list[Instruction]:
    """What a warp runs from the last product of a tile to where the next tile begins; nothing without products."""
    main = innermost_with(code, is_product)
    if not main:
        return []
    loop = main[0]
    around = [other for other in loops(code) if other.first <= loop.first and loop.last < other.last]
    if around:
        return code[loop.last + 1 : around[0].last + 1]
    # one loop over the k of all tiles
    last = max(i for i in range(loop.first, loop.last + 1) if is_product(code[i]))
    return code[last + 1 : loop.last + 1]


def sm90_figures(kernel: str, code: list[Instruction], ttir: str) -> Figures:
    """kernel: its name; ttir: where Triton still has the number of stages it was asked for."""
    figures: Figures = {}
    if kernel.startswith(GATHERS) and (loop := gather_loop(code)):
        turn = inside(code, loop)
        figures["stages"] = max(map(int, re.findall(r"tt\.num_stages = (\d+)", ttir)), default=1)
        figures["cp_async"] = sum(i.kind == "LDGSTS" for i in turn)
        figures["ahead"] = max((groups_open(i) for i in turn if i.kind == "DEPBAR"), default=0)
        figures["barriers"] = sum(i.kind == "BAR" for i in turn)
        figures["phases"], rest = phases(code, loop)
        if kernel.startswith("update_kernel"):
            figures["phases_of_latent"] = rest
    if any(map(is_product, code)):
        main = inside(code, innermost_with(code, is_product)[0])
        waits = [groups_open(i) for i in main if i.name.startswith("WARPGROUP.DEPBAR")]
        figures["products_ahead"] = max(waits, default=0)
        figures["epilogue"] = len(epilogue(code))
    return figures


def groups_open(wait: Instruction) -> int:
    """How many groups of copies or products may be on their way after this wait."""
    return int(wait.operands.split(",")[1], 16) if "," in wait.operands else 0


def sm90_occupancy(kernel: str, num_warps: int, registers: int, shared_bytes: int, programs: int) -> Figures:
    """Blocks that run at once on a multiprocessor, and programs launched."""
    if not kernel.startswith((*PERSISTENT, *GATHERS)):
        return {}
    figures: Figures = {
        "warps": num_warps,
        "blocks": blocks_per_multiprocessor(num_warps, registers, shared_bytes, (9, 0)),
    }
    return figures | ({"programs": programs} if kernel.startswith(PERSISTENT) else {})


def complaints(row: str, figures: Figures) -> list[str]:
    """row: of the table of compile_gate.py, which begins with the kernel's name."""
    found = []
    if "programs" in figures:
        slots, programs = N_SMS * figures["blocks"], figures["programs"]
        if programs > slots:
            found.append(f"{programs} programs, of which {slots} run together: a second round")
        # another number than a multiple of the multiprocessors is that of the rows or tiles
        elif programs < slots and programs % N_SMS == 0:
            found.append(f"{programs} programs where {slots} run at once")
    if "cp_async" in figures:
        if not figures["cp_async"]:
            found.append("rows are not asked for ahead: no cp.async in the gather loop")
        elif figures["ahead"] < figures["stages"] - 1:
            found.append(
                f"{figures['ahead']} groups of copies ahead, {figures['stages']} stages were asked for"
            )
        if figures["phases"] > MOST_PHASES:
            found.append(f"{figures['phases']} loads wait for each other in a turn, at most {MOST_PHASES}")
        if figures.get("phases_of_latent", 0) > MOST_PHASES_OF_LATENT:
            found.append(
                f"{figures['phases_of_latent']} loads wait for each other beside the entries of a latent, at most "
                f"{MOST_PHASES_OF_LATENT}"
            )
    if figures.get("products_ahead", 1) < 1:
        found.append("each product waits for the one before: no wgmma.wait_group 1 in the main loop")
    most = next((n for kernel, n in MOST_EPILOGUE.items() if row.startswith(kernel)), None)
    if most is not None and figures.get("epilogue", 0) > most:
        found.append(f"{figures['epilogue']} instructions of epilogue, at most {most}")
    left = [words for start, (words, _) in LEFT.items() if row.startswith(start)]
    return [f"{row}: {complaint}" for complaint in found if not any(words in complaint for words in left)]
