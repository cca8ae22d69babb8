"""Compiles every Triton kernel for GPUs that are not here and checks what the compiler reports.

    python -m tests.gates.compile_gate            compile, print the table, compare it with the committed one
    python -m tests.gates.compile_gate --write    the same, and replace tests/gates/triton_compile_table.json
    python -m tests.gates.compile_gate --only gemm   only kernels with that in their name; nothing is compared
    python -m tests.gates.compile_gate --sm 90       for this GPU alone, into Triton's cache, where launches find them

Exits with 1 on register spills, on too much shared memory, on a matrix product without the tensor cores' instruction,
on an offset that is multiplied in 32 bits (d_sae * batch and d_sae * d_in pass 2^31), on a place that one thread reads
and another writes, and on figures that differ from the table. Those belong to one Triton version; under another one only
the limits are checked.

What is compiled is what would be launched: the training step itself runs on meta tensors, which have shapes but no
memory, and each kernel is recorded instead of run. So this also shows that a step never asks the device for a value:
a meta tensor has none. Kernels outside the step are called in `other_calls`.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES, Shape
from saefast.config.sae import SAEConfig
from saefast.engine.architectures import extra_parameters
from saefast.engine.numbers import N_NUMBERS
from saefast.engine.state import State
from saefast.engine.step import train_step
from saefast.reference import Given, Numbers, Params
from tests.gates.compile_one import Launch, compile_launch, launches, signature_of
from tests.gates.limits import SHARED_LIMIT, differences, over_limits
from tests.helpers.steps import plan_of

TABLE = Path(__file__).resolve().parent / "triton_compile_table.json"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A way to train: everything that chooses kernels besides the shape."""

    plan: dict[str, Any] = field(default_factory=dict)
    param_dtype: str = "fp32"
    state_dtype: str = "fp32"
    shapes: tuple[str, ...] = ("small", "A", "B", "C")
    dtypes: tuple[str, ...] = ("bf16",)
    sae: dict[str, Any] = field(default_factory=dict)  # of SAEConfig, for extra parameters
    sms: tuple[int, ...] = (80, 90, 100)


@dataclass(frozen=True)
class UpdateCase(Case):
    """An update called by itself."""

    blocks: int = 1  # columns of `Given.pull`; 0: without Given
    wider: int = 1  # d_out / d_in


CASES = {
    "topk": Case(dtypes=("bf16", "fp16", "fp32")),
    "published": Case(shapes=("D", "E"), sms=(90, 100)),
    "published-int8": Case(param_dtype="split", state_dtype="int8", shapes=("E",), sms=(90, 100)),
    "topk-rescore": Case({"rescore": 8}),
    "topk-clip": Case({"grad_clip": 1.0}),
    "topk-auxk": Case({"auxk_alpha": 1 / 32, "k_aux": 256, "dead_capacity": 1024}, shapes=("small", "B")),
    "split-int8": Case(param_dtype="split", state_dtype="int8"),
    "split24-int8": Case(param_dtype="split24", state_dtype="int8"),
    "split-fp32": Case(param_dtype="split", shapes=("B",)),
    "bf16-int8": Case(param_dtype="bf16", state_dtype="int8"),
    "bf16-bf16": Case(param_dtype="bf16", state_dtype="bf16"),
    "fp32-bf16": Case(state_dtype="bf16", shapes=("B",)),
    "batch-topk": Case({"activation": "batch_topk"}, dtypes=("bf16", "fp32")),
    "relu": Case({"activation": "relu", "code_capacity": 2**20}, dtypes=("bf16", "fp32")),
    "relu-dense": Case({"activation": "relu", "dense": True}, dtypes=("bf16", "fp32")),
    "jumprelu": Case(
        {"activation": "jumprelu", "penalty": "tanh", "norm_weighted": True, "straight_through": "all"}
        | {"preact": "dead", "code_capacity": 2**20},
        shapes=("small",),
        sae={"activation": "jumprelu"},
    ),
    "jumprelu-dense": Case(
        {"activation": "jumprelu", "penalty": "l0", "dense": True},
        shapes=("small",),
        sae={"activation": "jumprelu"},
    ),
    "gated": Case(
        {"activation": "gated", "penalty": "l1", "code_capacity": 2**20},
        shapes=("small",),
        sae={"activation": "gated"},
    ),
    "matryoshka": Case(
        shapes=("small",),
        sae={"activation": "matryoshka", "group_sizes": (64, 4608)},
    ),
    "multi-topk": Case({"multi_topk": 4}, shapes=("small",)),
    "group-max": Case({"activation": "group_max"}, shapes=("small",)),
    "given": UpdateCase(dtypes=("bf16", "fp32")),
    "given-clip": UpdateCase({"grad_clip": 1.0}, shapes=("B",)),
    "given-blocks": UpdateCase(blocks=4, shapes=("small", "C")),
    "given-wide": UpdateCase(blocks=2, wider=2, shapes=("A",), dtypes=("bf16", "fp32")),
    "given-split-int8": UpdateCase(param_dtype="split", state_dtype="int8", blocks=4, shapes=("small", "C")),
    "wide": UpdateCase(blocks=0, wider=2, shapes=("A",)),
}


def state_of(F: int, D: int, D_out: int, dtype: torch.dtype, case: Case) -> State:
    params = Params(*(torch.empty(size, device="meta") for size in ((F, D), (F,), (F, D_out), (D_out,))))
    k = {"k": 1} if case.sae.get("activation", "topk") in ("topk", "matryoshka") else {}
    sae = SAEConfig(d_in=D, d_sae=F, **(k | case.sae))
    return State.fresh(params, case.param_dtype, case.state_dtype, dtype, extra_parameters(sae, "meta"))


def step_call(shape: Shape, dtype: torch.dtype, case: Case) -> Callable[[], object]:
    """One training step on meta tensors."""
    from saefast import triton_kernels as ops

    B, D, F, K = shape
    state = state_of(F, D, D, dtype, case)
    x, numbers = torch.empty(B, D, device="meta"), torch.empty(N_NUMBERS, device="meta")
    plan = plan_of(K, dtype, D, F, **(case.plan | case.sae))
    return lambda: train_step(ops, state, x, plan, numbers)


def update_call(shape: Shape, dtype: torch.dtype, case: UpdateCase) -> Callable[[], object]:
    """One update on meta tensors."""
    from saefast import triton_kernels as ops

    B, D, F, K = shape
    D_out = case.wider * D
    state = state_of(F, D, D_out, dtype, case)
    whole = partial(torch.empty, device="meta")
    integers = partial(whole, dtype=torch.int32)
    groups = integers(F + 1), integers(B * K), integers(B * K)
    operands = whole(B, D, dtype=dtype), whole(B, D_out, dtype=dtype)
    batch = *operands, whole(B, K), integers(B, K), None, groups, whole(()), None
    numbers, given = whole(len(Numbers._fields)), None
    if case.blocks:
        given = Given(whole(B, K), whole(F), whole(F), whole(D), whole(F, case.blocks))

    def call() -> None:
        if "grad_clip" not in case.plan:
            ops.update_(state.weights, *batch, numbers, state.counter, given)
            return
        grads, squared_norm = ops.row_grads(state.weights, *batch, numbers, given)
        ops.adam_rows_(state.weights, grads, squared_norm, numbers, state.counter)

    return call


def other_calls(shape: Shape, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """What users call outside of training: see `saefast.autograd`."""
    from saefast import triton_kernels as ops

    B, D, F, K = shape

    def tensor(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    whole = partial(tensor, dtype=torch.float32)
    integers = partial(tensor, dtype=torch.int32)
    x, W, acts, indices = tensor(B, D), tensor(F, D), whole(B, K), integers(B, K)
    groups = integers(F + 1), integers(B * K), integers(B * K)
    yield lambda: ops.topk(tensor(B, F), K)
    yield lambda: ops.encode_topk(x, W, whole(F), K, scale=whole(F))
    yield lambda: ops.encode_threshold(x, W, whole(F), whole(F), 2**20)
    yield lambda: ops.decode(acts, indices, W, whole(D))
    yield lambda: ops.grad_top_acts(x, W, acts, indices)
    yield lambda: ops.sum_rows(groups, acts, x)
    yield lambda: ops.sum_entries(groups, acts)


class Job(NamedTuple):
    row: str  # its name in the table: kernel, case, shape, dtype and target in which it is first met
    launch: Launch
    sm: int


def jobs(only: str = "") -> list[Job]:
    """Everything to compile, equal code once. What one call launches in several versions has a number for each."""
    from saefast.triton_kernels import gemm

    found: dict[str, Job] = {}
    rows: set[str] = set()
    for case_name, case in CASES.items():
        for shape_name, dtype_name, sm in product(case.shapes, case.dtypes, SHARED_LIMIT):
            if sm not in case.sms:
                continue
            shape, dtype = SHAPES[shape_name], DTYPES[dtype_name]
            is_update = isinstance(case, UpdateCase)
            calls = [update_call(shape, dtype, case) if is_update else step_call(shape, dtype, case)]
            calls += other_calls(shape, dtype) if case_name == "topk" else []
            with mock.patch.object(gemm, "OFFLINE_CAPABILITY", divmod(sm, 10)):
                recorded = [launch for call in calls for launch in launches(call)]
            for launch in recorded:
                name, code = launch.kernel.__name__.strip("_"), f"{sm} {describe(launch)}"
                if code in found or only not in name:
                    continue
                row, version = f"{name} {case_name} {shape_name} {dtype_name} sm_{sm}", 1
                while row in rows:
                    version += 1
                    row = f"{name}/{version} {case_name} {shape_name} {dtype_name} sm_{sm}"
                rows.add(row)
                found[code] = Job(row, launch, sm)
    return list(found.values())


def describe(launch: Launch) -> str:
    """Equal for launches that compile to the same code."""
    return f"{launch.kernel.__module__} {launch.kernel.__name__} {signature_of(launch)}"


_jobs: list[Job] = []  # filled before the worker processes are forked: kernels cannot be sent to them


def compile_job(index: int) -> dict[str, float]:
    try:
        return compile_launch(_jobs[index].launch, _jobs[index].sm)
    except Exception as error:
        raise RuntimeError(f"{_jobs[index].row}: {error}") from error


def compile_all(only: str = "") -> dict[str, dict[str, float]]:
    """Figures by row."""
    _jobs[:] = jobs(only)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        figures = pool.map(compile_job, range(len(_jobs)), chunksize=1)
    return dict(sorted(zip((job.row for job in _jobs), figures, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the rows, compile nothing")
    parser.add_argument(
        "--sm", type=int, choices=SHARED_LIMIT, help="for this GPU alone; nothing is compared"
    )
    parser.add_argument("--only", default="", help="compile kernels with this in their name, compare nothing")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    args = parser.parse_args()

    for sm in [sm for sm in SHARED_LIMIT if args.sm not in (None, sm)]:
        del SHARED_LIMIT[sm]
    if args.list:
        print(*(job.row for job in jobs(args.only)), sep="\n")
        return 0
    table = compile_all(args.only)
    for row, figures in table.items():
        print(f"{row:52}", *(f"{name} {value:<7}" for name, value in figures.items()))
    problems = over_limits(table)
    if args.only or args.sm:
        print(*problems, sep="\n", file=sys.stderr)
        return 1 if problems else 0
    if args.write and not problems:
        rows = ",\n".join(f"    {json.dumps(row)}: {json.dumps(figures)}" for row, figures in table.items())
        TABLE.write_text(f'{{\n  "triton": "{triton.__version__}",\n  "kernels": {{\n{rows}\n  }}\n}}\n')
    committed = json.loads(TABLE.read_text())
    if committed["triton"] == triton.__version__:
        problems += differences(table, committed["kernels"])
    else:
        print(f"limits only: the table is of Triton {committed['triton']}, this is {triton.__version__}")
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
