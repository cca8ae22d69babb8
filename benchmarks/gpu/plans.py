"""What the calls on a lent machine are for: 15 minutes in all, start-up included, so two calls, in the order of their worth.

    python -m benchmarks.gpu --plan first --dry-run     a plan as a table: item, seconds expected, and their sum
    python -m benchmarks.gpu.plans first FILE           the same beside what the items took in a gpu.json, as flight.sh prints

Seconds are estimates, nothing was measured on a GPU: for `compile`, the CPU seconds of its kernels here (see docs/benchmarks.md)
over 16 cores, and loading torch; for the rest, making weights and inputs on the GPU, the comparison, the runs that are
timed, which have times of their own in the code, and the host's share of each as rehearsed here. An item that takes much
longer than expected is stopped, so that it costs itself and not those after it.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

LOADING = 6.0  # seconds for a process to load torch, triton and saefast, and to begin with CUDA
CLOSING = 6  # for packing Triton's cache and printing


class Entry(NamedTuple):
    """An item, and the seconds that it is expected to take on an H200 with 16 cores."""

    part: str
    item: str
    seconds: float

    @property
    def limit(self) -> float:
        return 15 + 2 * self.seconds


class Plan(NamedTuple):
    limit: int  # seconds from the start of flight.sh to its end
    ready: float  # until the first process is started: torch is loaded from a disk that nothing was read from
    processes: tuple[
        tuple[Entry, ...], ...
    ]  # what shares a process; it does not outlive an item that spoils CUDA

    @property
    def seconds(self) -> float:
        work = sum(entry.seconds for group in self.processes for entry in group)
        return self.ready + LOADING * len(self.processes) + work + CLOSING


def of(part: str, seconds: dict[str, float]) -> tuple[Entry, ...]:
    return tuple(Entry(part, item, one) for item, one in seconds.items())


FIRST = Plan(
    limit=330,
    ready=12,
    processes=(
        (
            *of("compile", {"steps and variants": 18}),
            *of("machine", {"ceilings": 3}),
            *of(
                "step",
                {"A triton": 5, "A plain": 5, "B triton": 5, "B plain": 6, "C triton": 8, "C plain": 9},
            ),
            *of("stages", {"A": 7, "C": 11, "B": 8}),
            *of("step", {"A split": 4, "B split": 4, "C split": 6}),
            *of(
                "tune",
                {
                    "encode, triton C": 9,
                    "encode, triton B": 7,
                    "encode, cublas C": 6,
                    "encode, cublas B": 5,
                    "update A": 6,
                    "update C": 10,
                },
            ),
            *of("stages", {"A heavy-tailed": 4, "C heavy-tailed": 6}),
            *of("tune", {"update, heavy-tailed A": 6, "update, heavy-tailed C": 10}),
            *of("step", {"A heavy-tailed": 4}),
        ),
        of("profile", {"A": 6, "B": 4, "C": 7}),
        of("counters", {"A": 16, "C": 24}),
        of("peers", {"sparsify A": 6, "sparsify B": 6}),
        of("update in CUDA", {"A": 5, "C": 9}),
        of("step", {"D triton": 6, "E triton": 6}),
    ),
)
SECOND = Plan(
    limit=480,
    ready=12,
    processes=(
        (
            *of("compile", {"steps and variants": 12}),
            *of("machine", {"ceilings": 3}),
            *of(
                "step",
                {"A triton": 5, "A plain": 5, "B triton": 5, "B plain": 6, "C triton": 8},
            ),
            *of("stages", {"A": 7, "B": 8, "C": 11}),
            *of("step", {"A heavy-tailed": 4, "B heavy-tailed": 5}),
        ),
        of("engine", {"tests": 110}),
        of("curve", {"curve": 25}),
        of("peers", {"openai A": 10, "openai B": 10, "bionemo A": 5, "bionemo B": 6}),
        of("stream", {"copies": 4, "rows in memory": 10, "gather": 8, "shards": 15, "training": 20}),
        of("sanitizer", {"no tool": 20, "memcheck": 60}),
        of("step", {"D triton": 6, "E triton": 6}),
    ),
)
PLANS = {"first": FIRST, "second": SECOND}


def outcome(result: dict[str, Any]) -> str:
    return next((word for word in ("error", "missing", "out_of_memory") if word in result), "ok")


def table(plan: Plan, found: dict[str, Any] | None = None) -> list[str]:
    """Lines: what is expected, and with `found`, the parts of a gpu.json, what each item took."""
    lines = [f"{'item':36} {'expected, s':>11}" + ("  took, s  result" if found else "")]
    total, n = 0.0, 0
    for group in plan.processes:
        for entry in group:
            line = f"{entry.part + ': ' + entry.item:36} {entry.seconds:11.0f}"
            if found is not None:
                result = found.get(entry.part, {}).get(entry.item)
                took = (result or {}).get("took_s", 0.0)
                total, n = total + took, n + 1
                line += f"  {took:7.1f}  {outcome(result)}" if result else "        -  not reached"
            lines.append(line)
    loading = LOADING * len(plan.processes)
    around = (
        f"getting ready {plan.ready:.0f}, {len(plan.processes)} processes {loading:.0f}, closing {CLOSING}"
    )
    lines.append(f"{'all, with ' + around}: {plan.seconds:.0f} s expected, of {plan.limit}")
    if found is not None:
        lines.append(f"the {n} items took {total:.0f} s")
    return lines


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[2]).read_text())
    print(*table(PLANS[sys.argv[1]], results["parts"]), sep="\n")
