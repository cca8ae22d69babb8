"""Reads the machine code of a kernel (sm_90) as the GPU does: loops, what is loaded ahead, and what waits for what.

Since Volta every instruction says in its encoding how many cycles pass before the next one, which of six scoreboards it sets
until its result is there, and for which it waits. So a warp that runs alone can be timed from the code (`Warp`): instructions
leave in order, and one that waits for a load stands still until the load is back. With a latency of 1 for loads from global
memory and of 0 for everything else, the time of a loop is the number of loads that wait for each other in one turn of it.
What is left out: how many warps share the issue slots and the memory, which benchmarks/gpu/estimates.py adds.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/")
PARTS = re.compile(r"(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*)")
NO_SCOREBOARD = 7


class Instruction(NamedTuple):
    address: int
    predicate: str  # "" for none
    name: str  # with its modifiers: LDG.E.EF.128
    operands: str
    stall: int  # cycles before the next instruction of the warp
    sets: int  # scoreboard that is set until the result is there; NO_SCOREBOARD
    waits: tuple[int, ...]  # scoreboards it waits for

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Of a branch within the function."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if self.kind == "BRA" and found else None


def parse(sass: str) -> list[Instruction]:
    """The output of `cuobjdump --dump-sass` for one kernel."""
    code = []
    for address, text, encoding in LINE.findall(sass):
        control = int(encoding, 16) >> 41
        predicate, name, operands = PARTS.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
        waits = tuple(i for i in range(6) if control >> 11 + i & 1)
        code.append(
            Instruction(
                int(address, 16), predicate or "", name, operands, control & 15, control >> 5 & 7, waits
            )
        )
    return code


class Loop(NamedTuple):
    """Places in the code: its first instruction and the branch back."""

    first: int
    last: int


def loops(code: list[Instruction]) -> list[Loop]:
    """Innermost first. A wait that asks again and again, and what stands behind the end, is none."""
    at = {instruction.address: i for i, instruction in enumerate(code)}
    found = []
    for i, instruction in enumerate(code):
        target = instruction.target
        out_of_line = (
            not instruction.predicate and code[i - 1].kind == "BRA"
        )  # behind such a wait: back to the way
        if target is not None and at[target] < i and i - at[target] > 2 and not out_of_line:
            found.append(Loop(at[target], i))
    return sorted(found, key=lambda loop: loop.last - loop.first)


def inside(code: list[Instruction], loop: Loop) -> list[Instruction]:
    return code[loop.first : loop.last + 1]


def innermost_with(code: list[Instruction], wanted: Callable[[Instruction], bool]) -> list[Loop]:
    """The loops that have such an instruction and no smaller loop with one inside."""
    found: list[Loop] = []
    for loop in loops(code):
        around = any(loop.first <= other.first and other.last <= loop.last for other in found)
        if not around and any(wanted(instruction) for instruction in inside(code, loop)):
            found.append(loop)
    return sorted(found)


def path(code: list[Instruction], trips: Callable[[Loop], int]) -> list[Instruction]:
    """What a warp runs from the first instruction to the exit: each loop as often as `trips` says.

    A branch forward that has a condition is not taken, which in our kernels leads over the usual way: those are the
    guards of loops, and calls for numbers that are not normal.
    """
    at = {instruction.address: i for i, instruction in enumerate(code)}
    all_loops = loops(code)
    of_branch = {loop.last: loop for loop in all_loops}
    skipped = {loop.first: loop.last + 1 for loop in all_loops if trips(loop) == 0}
    turns: dict[int, int] = {}
    i, out = 0, []
    while i < len(code):
        if i in skipped:
            i = skipped[i]
            continue
        instruction = code[i]
        out.append(instruction)
        if instruction.kind == "EXIT" and not instruction.predicate:
            break
        target = instruction.target
        if i in of_branch:
            turns[i] = turns.get(i, 0) + 1
            if turns[i] < trips(of_branch[i]):
                i = of_branch[i].first
                continue
            turns[i] = 0
        elif target is not None and not instruction.predicate and "P" not in instruction.operands:
            if at[target] <= i:
                break  # the spin behind the end
            i = at[target]
            continue
        i += 1
    return out


class Latencies(NamedTuple):
    """Cycles from the issue of an instruction to its result."""

    hbm: float  # a load from global memory that is not found in L2: here those that ask to be evicted first
    l2: float  # another one
    shared: float
    other: float  # of what has a scoreboard: special functions, conversions, constants
    barrier: float  # of a thread block
    issue: float = 1  # what a cycle of the compiler's own counts


PHASES = Latencies(1, 1, 0, 0, 0, issue=0)


class Warp:
    """One warp, alone: instructions in order, waiting for the scoreboards they name."""

    def __init__(self, latencies: Latencies) -> None:
        self.latencies = latencies
        self.now = 0.0
        self.ready = [0.0] * 6
        self.copies, self.groups = 0.0, [0.0]  # cp.async: of the group that is open, and of the closed ones

    def latency(self, instruction: Instruction) -> float:
        known = self.latencies
        if instruction.kind in ("LDG", "LDGSTS", "ATOMG"):
            return known.hbm if ".EF" in instruction.name else known.l2
        return known.shared if instruction.kind in ("LDS", "LDSM", "SHFL", "ATOMS") else known.other

    def run(self, instruction: Instruction) -> None:
        for scoreboard in instruction.waits:
            self.now = max(self.now, self.ready[scoreboard])
        done = self.now + self.latency(instruction)
        if instruction.kind == "LDGSTS":
            self.copies = max(self.copies, done)
        elif instruction.kind == "LDGDEPBAR":
            self.groups.append(max(self.groups[-1], self.copies))
        elif instruction.kind == "DEPBAR" and "," in instruction.operands:
            may_be_open = int(instruction.operands.split(",")[1].strip().rstrip(";"), 16)
            finished = self.groups[: len(self.groups) - may_be_open]
            self.now = max(self.now, *finished, 0.0)
        elif instruction.kind == "BAR":
            self.now += self.latencies.barrier
        elif instruction.sets != NO_SCOREBOARD:
            self.ready[instruction.sets] = max(self.ready[instruction.sets], done)
        self.now += self.latencies.issue * max(1, instruction.stall)


def time_of(instructions: list[Instruction], latencies: Latencies) -> float:
    """Cycles, or phases, that a warp needs for them."""
    warp = Warp(latencies)
    for instruction in instructions:
        warp.run(instruction)
    return warp.now
