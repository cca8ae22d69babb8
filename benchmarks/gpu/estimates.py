"""What a TopK step is expected to take on an H200, stage by stage, from the machine code of this tree. No GPU ran for it.

    python -m benchmarks.gpu.estimates           print the page
    python -m benchmarks.gpu.estimates --write   and write docs/gpu-estimates.md

The step runs on meta tensors (tests/gates/launch_budget.py), its large kernels are compiled for sm_90, and one warp of each is
timed from its code (tests/gates/sass.py). `METHOD` says how a stage's time follows; it is the larger of several bounds, so what
is missing is what bounds do to each other. benchmarks/gpu/stages.py measures the same stages where there is a GPU.
"""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton

from benchmarks import (
    checkout,  # noqa: F401
    roofline,
)
from benchmarks.shapes import PUBLISHED, SHAPES, Shape
from saefast.triton_kernels.gemm import N_SMS
from saefast.triton_kernels.occupancy import blocks_per_multiprocessor
from tests.gates import hopper
from tests.gates.compile_gate import Case, step_call
from tests.gates.compile_one import Launch, compiled_for, cuobjdump, resources_of, signature_of
from tests.gates.launch_budget import MARKS, NODES, Call, recorded
from tests.gates.sass import Instruction, Latencies, Loop, innermost_with, parse, path, time_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-estimates.md"
CLOCK = 1.755e9  # Hz
HBM = 4.2e12  # bytes/s of a large copy
L2 = 5.5e12  # bytes/s out of the L2 cache
TENSOR = 790e12  # FLOP/s of a large product in bf16
GAP = 1.75e-6  # s between two nodes of a graph
SMALL = 1.5e-6  # s of a small launch beside its bytes: one way to memory and back
ISSUE = 4  # instructions of a multiprocessor per cycle
# 700 ns from HBM under load, 270 ns from L2, the rest in cycles
LATENCIES = Latencies(hbm=700e-9 * CLOCK, l2=270e-9 * CLOCK, shared=29, other=25, barrier=30)
COMPUTE_BYTES = 2
CASE = Case(param_dtype="split")
DEVICE = roofline.DEVICES["H200"]
OLD = {"A": 1.25, "B": 8.8, "C": 48.0}  # of the review, for the code of commit a72fbd7
GOALS = {"A": 0.87, "B": 7.7, "C": 43.7} | {name: rate.goal_ms for name, rate in PUBLISHED.items()}

STAGES = {
    "x into the graph, centre": ("column_sums_kernel", "centre_kernel", "variance_kernel"),
    "encode": ("gemm_encode_kernel", "mm", "finish_kernel", "group_maxima_kernel"),
    "select": ("select_kernel",),
    "group": ("count_kernel", "scan_kernel", "scatter_kernel", "order_kernel"),
    "decode": ("decode_error_kernel",),
    "update": ("update_kernel", "chunk_kernel"),
}
REST = "the rest"
METHOD = {
    "x into the graph, centre": "bytes: x copied in fp32, then what the kernels read and write",
    "encode": "rounds of tiles x (FLOPs of a tile at its share of the rate of a large product + the epilogue: its instructions "
    "over the issue slots, or one warp's time through them if that is longer); with two blocks on a multiprocessor one's "
    "epilogue runs under the other's product. A library product: FLOPs over the rate",
    "select": "bytes of benchmarks/roofline.py, or rounds of programs x one warp's time with ten turns of the bisection",
    "group": "bytes of its tensors and the way to memory; beside the decoder where the graph has a branch",
    "decode": "the longest of: gathered bytes from HBM, from L2; rounds of programs x one warp's time; issue slots",
    "update": "the longest of: state and gathered bytes from HBM, from L2; latents of a program x one warp's time for a latent "
    "of the mean number of entries; issue slots. Latents equally likely",
    REST: "bytes of its tensors and the way to memory",
    "between launches": "the gap, for every node of the graph that is not on a branch",
}


class Kernel(NamedTuple):
    """A compiled launch."""

    code: list[Instruction]
    warps: int
    blocks: int  # that run at once on a multiprocessor
    programs: int
    constants: dict[str, Any]

    @property
    def rounds(self) -> int:
        return -(-self.programs // (N_SMS * self.blocks))


def kernel_of(launch: Launch) -> Kernel:
    compiled = compiled_for(launch, 90)
    warps = compiled.metadata.num_warps
    blocks = blocks_per_multiprocessor(warps, resources_of(compiled)["REG"], compiled.metadata.shared, (9, 0))
    code = parse(cuobjdump(compiled, "--dump-sass"))
    return Kernel(code, warps, blocks, math.prod(launch.grid), signature_of(launch)[1])


def seconds(kernel: Kernel, instructions: list[Instruction]) -> tuple[float, float]:
    """One warp's time through them, and all warps' share of the issue slots of a multiprocessor with one block."""
    return time_of(instructions, LATENCIES) / CLOCK, len(instructions) * kernel.warps / ISSUE / CLOCK


def turns(loop: Loop, n: int, others: Callable[[Loop], int]) -> Callable[[Loop], int]:
    return lambda other: n if other == loop else others(other)


def encode(call: Call, shape: Shape) -> float:
    assert call.launch is not None
    kernel = kernel_of(call.launch)
    M, N = int(kernel.constants["BLOCK_M"]), int(kernel.constants["BLOCK_N"])
    tiles = -(-shape.B // M) * -(-shape.F // N)
    main = 2 * M * N * shape.D * N_SMS / TENSOR
    alone, issue = seconds(kernel, hopper.epilogue(kernel.code))
    finish = max(alone, issue)
    # a second block multiplies while the first one finishes
    of_tile = max(main, (main + finish) / kernel.blocks) if kernel.blocks > 1 else main + finish
    rounds = -(-tiles // (N_SMS * kernel.blocks)) * kernel.blocks
    return rounds * of_tile


def decode(call: Call, shape: Shape) -> float:
    assert call.launch is not None
    kernel, (B, D, F, K) = kernel_of(call.launch), shape
    loop = hopper.gather_loop(kernel.code)
    assert loop is not None
    trips = -(-K // int(kernel.constants["BLOCK_K"]))
    alone, issue = seconds(kernel, path(kernel.code, turns(loop, trips, lambda other: 1)))
    rows = B * K * D * COMPUTE_BYTES
    others = B * D * (4 + COMPUTE_BYTES)
    from_hbm = roofline.gathered_bytes(B * K, F, D * COMPUTE_BYTES, DEVICE.l2) + others
    return max(from_hbm / HBM, (rows + others) / L2, kernel.rounds * alone, kernel.programs / N_SMS * issue)


def update(call: Call, shape: Shape, case: Case) -> float:
    assert call.launch is not None
    kernel, (B, D, F, K) = kernel_of(call.launch), shape
    loop = hopper.gather_loop(kernel.code)
    assert loop is not None
    R = int(kernel.constants["R"])
    trips = -(-B * K // (F * R))

    def through(outer: int) -> tuple[float, float]:
        def others(other: Loop) -> int:
            return outer if other.first <= loop.first and loop.last <= other.last else 0

        return seconds(kernel, path(kernel.code, turns(loop, trips, others)))

    alone, issue = (two - one for one, two in zip(through(1), through(2), strict=True))
    state = roofline.update_bytes(D, F, COMPUTE_BYTES, case.param_dtype, case.state_dtype)
    rows = 2 * B * K * D * COMPUTE_BYTES
    from_hbm = state + roofline.gathered_bytes(2 * B * K, 2 * B, D * COMPUTE_BYTES, DEVICE.l2)
    latents_of_one = F / N_SMS
    at_once = min(kernel.blocks, -(-kernel.programs // N_SMS))
    second_round = 1 if kernel.programs <= N_SMS * kernel.blocks else 2
    latency = latents_of_one / at_once * alone * second_round
    return max(from_hbm / HBM, (state + rows) / L2, latency, latents_of_one * issue)


def select(call: Call, shape: Shape) -> float:
    assert call.launch is not None
    kernel = kernel_of(call.launch)
    loads = innermost_with(kernel.code, hopper.is_load)
    alone, issue = seconds(kernel, path(kernel.code, lambda loop: 1 if loop in loads else 10))
    (stage,) = (stage for stage in roofline.stages(*shape) if stage.name == "select")
    return max(stage.bytes / 2 / HBM, kernel.rounds * alone, kernel.programs / N_SMS * issue)


def generic(call: Call, shape: Shape) -> float:
    return sum(tensor.nbytes for tensor in call.tensors) / HBM + SMALL


def library_product(call: Call, shape: Shape) -> float:
    left, right = call.tensors[:2]
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / TENSOR


def call_seconds(call: Call, shape: Shape, case: Case) -> float:
    models: dict[str, Callable[[Call, Shape], float]] = {
        "gemm_encode_kernel": encode,
        "mm": library_product,
        "finish_kernel": lambda call, shape: (
            call.tensors[0].nbytes * 1.5 / HBM + SMALL
        ),  # fp32 in, 16 bits out
        "decode_error_kernel": decode,
        "update_kernel": lambda call, shape: update(call, shape, case),
        "chunk_kernel": lambda call, shape: SMALL,  # no latent is hot
        "select_kernel": select,
    }
    return models.get(call.name, generic)(call, shape)


class Estimate(NamedTuple):
    stages: dict[str, float]  # seconds
    nodes: int

    @property
    def total(self) -> float:
        return sum(self.stages.values())


def estimate(shape: Shape, case: Case) -> Estimate:
    """Of one step. A branch takes no time of its own unless it is longer than what runs beside it."""
    of_kernel = {kernel: stage for stage, kernels in STAGES.items() for kernel in kernels}
    stages = dict.fromkeys([*STAGES, REST, "between launches"], 0.0)
    stages["x into the graph, centre"] = 2 * 4 * shape.B * shape.D / HBM + SMALL
    nodes, on_branch, beside, where = 1, 0.0, 0.0, "main"
    for call in recorded(step_call(shape, torch.bfloat16, case)):
        if call.name in MARKS:
            if call.name == "join":
                stages["group"] += max(0.0, on_branch - beside)
            where = {"branch": "branch", "end of branch": "beside", "join": "main"}[call.name]
            continue
        time, n = call_seconds(call, shape, case), NODES.get(call.name, 1)
        nodes += n
        if where == "branch":
            on_branch += time + n * GAP
            continue
        beside += (time + n * GAP) * (where == "beside")
        stages[of_kernel.get(call.name, REST)] += time
        stages["between launches"] += n * GAP
    return Estimate(stages, nodes)


def page() -> str:
    found = {name: estimate(shape, CASE) for name, shape in SHAPES.items() if name != "small"}
    names = list(found)
    floors = {
        name: roofline.floor_ms(roofline.stages(*SHAPES[name], param_dtype=CASE.param_dtype), DEVICE)[1]
        for name in names
    }

    def row(title: str, values: dict[str, float], digits: int = 3) -> str:
        cells = [f"{values[name]:.{digits}f}" if name in values else "" for name in names]
        return f"| {title} | {' | '.join(cells)} |"

    stages = list(found["A"].stages)
    lines = [row(stage, {name: 1e3 * found[name].stages[stage] for name in names}) for stage in stages]
    lines += [
        row("**sum**", {name: 1e3 * found[name].total for name in names}, 2),
        row("goal", GOALS, 2),
        row("floor of `python -m benchmarks.roofline`", floors, 2),
        row("the review's estimate of commit a72fbd7", OLD, 2),
        row("nodes of the graph", {name: found[name].nodes for name in names}, 0),
    ]
    shapes = "; ".join(
        f"{name}: {B} tokens, d_in {D}, d_sae {F}, k {K}"
        for name, (B, D, F, K) in SHAPES.items()
        if name in found
    )
    published = "\n".join(
        f"* {name}: {rate.rows_per_s:,.0f} tokens/s, {rate.hardware}, {rate.method} ({rate.source}); the sum above would "
        f"be {SHAPES[name].B / found[name].total:,.0f} tokens/s on an H200."
        for name, rate in PUBLISHED.items()
    )
    return TEXT.format(
        shapes=shapes,
        triton=triton.__version__,
        head=f"| ms | {' | '.join(names)} |\n|---|{'---|' * len(names)}",
        table="\n".join(lines),
        method="\n".join(f"* {stage}: {how}." for stage, how in METHOD.items()),
        published=published,
    )


TEXT = """# What a step is expected to take on an H200

**Estimates: no GPU ran for this page.** `python -m benchmarks.gpu.estimates --write` makes it from the machine code of the
tree, compiled for sm_90 by Triton {triton}. The step is plain TopK in bf16 with weights kept as `split` (as exact as fp32)
and fp32 moments. {shapes}.

{head}
{table}

Assumed: 4.2 TB/s of a large copy, 5.5 TB/s out of the L2 cache, 790 TFLOP/s of a large product in bf16, 132 multiprocessors at
1.755 GHz that issue 4 instructions per cycle, 700 ns from HBM under load and 270 ns from L2, 1.75 us between two nodes of a
graph, 1.5 us for a small launch beside its bytes. The time of one warp is read off its code: instructions leave in order, wait
for the scoreboards that they name, and those that load come back after these latencies (`tests/gates/sass.py`).

{method}

Rates that others published for two of the shapes, on other hardware; nothing of it was measured here:

{published}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    args = parser.parse_args()
    text = page()
    print(text, end="")
    if args.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
