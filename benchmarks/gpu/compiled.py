"""`make gpu`: kernels compiled on all cores before anything is timed, into Triton's cache, where launches find them.

    python -m benchmarks.gpu.compiled steps encode       what SETS lists under these names, for sm_90; needs no GPU
    python -m benchmarks.gpu.compiled steps --only gemm  kernels with that in their name

A launch would compile its kernel on one core, and then the C code that passes its arguments. Kernels are those that a
step and the candidates of tune.py launch on tensors without memory, equal code once. Registers, spills and shared memory
are what tests/gates/compile_gate.py looks at.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.common import DTYPE, REHEARSAL, Part, Report, Result, said
from benchmarks.gpu.tune import operations
from benchmarks.shapes import SHAPES, Shape
from saefast.engine.state import State
from saefast.reference import Params
from saefast.triton_kernels import gemm
from tests.gates import compile_gate
from tests.gates.compile_one import Launch, launches, signature_of

SM = 90
FORMATS = ("split-int8", "split24-int8", "bf16-int8", "fp32-bf16")  # of weights and moments, beside fp32


class Job(NamedTuple):
    name: str
    launch: Launch


class Shapes:
    """The attributes of a `stages.Chain`, of a step on meta tensors."""

    def __init__(self, shape: Shape) -> None:
        def tensor(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(size, dtype=dtype, device="meta")

        B, D, F, K = self.shape = shape
        state = State.fresh(Params(tensor(F, D), tensor(F), tensor(F, D), tensor(D)), compute_dtype=DTYPE)
        weights = state.weights
        self.centred, self.W_enc, self.b_enc = (
            tensor(B, D, dtype=DTYPE),
            weights.enc.shadow,
            weights.b_enc.value,
        )
        self.maxima = tensor(B, F, dtype=DTYPE), tensor(B, -(-F // 64), dtype=DTYPE)
        acts, indices = tensor(B, K), tensor(B, K, dtype=torch.int32)
        error, integers = tensor(B, D, dtype=DTYPE), partial(tensor, dtype=torch.int32)
        self.decode = acts, indices, weights.dec.shadow, weights.b_dec.value, tensor(B, D), DTYPE
        groups = integers(F + 1), integers(B * K), integers(B * K)
        code = acts, indices, None, groups
        last = tensor(), None, tensor(16), tensor(dtype=torch.int64)
        self.update = weights, self.centred, error, *code, *last


def of_steps(shapes: str, *cases: str) -> Iterator[Job]:
    """A step at each of these shapes, with what `compile_gate.CASES` names."""
    for case in cases:
        for shape in shapes.split():
            call = compile_gate.step_call(SHAPES[shape], DTYPE, compile_gate.CASES[case])
            for launch in launches(call):
                yield Job(f"{launch.kernel.__name__} {case} {shape}", launch)


def of_candidates(shapes: str, *ops: str) -> Iterator[Job]:
    for shape in shapes.split():
        for op, (run, candidates) in operations(Shapes(SHAPES[shape])).items():
            if op not in ops:
                continue
            for candidate in candidates:
                for launch in launches(lambda run=run, candidate=candidate: candidate.run(run)):
                    yield Job(f"{launch.kernel.__name__} {op} {shape}: {candidate.name}", launch)


SETS = {
    "steps": lambda: [*of_steps("A B C", "topk", "split-fp32"), *of_steps("small", "topk")],
    "update": lambda: of_candidates("A C", "update"),
    "encode": lambda: of_candidates("B C", "encode, triton", "encode, cublas"),
    "more steps": lambda: [*of_steps("D E", "topk"), *of_steps("B", *FORMATS)],
    "candidates": lambda: of_candidates(
        "A B C", "encode, triton", "encode, cublas", "select", "decode", "update"
    ),
}


def jobs(names: list[str], only: str = "") -> list[Job]:
    """Equal code once; products first, which take longest."""
    found: dict[str, Job] = {}
    with mock.patch.object(gemm, "OFFLINE_CAPABILITY", divmod(SM, 10)):
        for name in names:
            for job in SETS[name]():
                if only in job.launch.kernel.__name__:
                    found.setdefault(compile_gate.describe(job.launch), job)
    return sorted(found.values(), key=lambda job: "gemm" not in job.name)


def compile_one(launch: Launch) -> None:
    signature, constants, attributes, options = signature_of(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", SM, 32), options=options)
    if shutil.which("nvidia-smi"):  # what passes the arguments is linked to the driver
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(source, made.metadata)


_jobs: list[Job] = []  # filled before the worker processes are forked: kernels cannot be sent to them


def run(index: int) -> tuple[str, float, str]:
    """-> name, seconds, what went wrong."""
    began = time.perf_counter()
    try:
        compile_one(_jobs[index].launch)
    except Exception as error:  # noqa: BLE001 a candidate may ask for too much
        return _jobs[index].name, time.perf_counter() - began, f"{type(error).__name__}: {error}"[-300:]
    return _jobs[index].name, time.perf_counter() - began, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--only", default="", help="kernels with this in their name")
    args = parser.parse_args()
    _jobs[:] = jobs(args.sets, args.only)
    began, total, failed = time.perf_counter(), 0.0, 0
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for name, seconds, problem in pool.imap_unordered(run, range(len(_jobs))):
            print(f"{seconds:6.1f} s  {name}  {problem}", flush=True)
            total, failed = total + seconds, failed + bool(problem)
    wall = time.perf_counter() - began
    print(f"{len(_jobs)} kernels, {failed} failed, {total:.0f} s of work in {wall:.0f} s")
    return 0


def compiled(names: list[str], some: str, report: Report) -> Result:
    """Sets, in a process without CUDA, which can be forked. Rehearsed with the kernels that have `some` in their name."""
    capability = (9, 0) if REHEARSAL else torch.cuda.get_device_capability()
    if capability != divmod(SM, 10):
        return {
            "said": f"not for sm_{capability[0]}{capability[1]}: kernels are compiled when they are launched"
        }
    command = [sys.executable, "-m", "benchmarks.gpu.compiled", *names, "--only", some if REHEARSAL else ""]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = said(command, env=environment)
    *lines, last = done.stdout.splitlines() or [""]
    if done.returncode:
        return {"error": done.stderr[-2000:]}
    return {"said": last, "failed": [line for line in lines if not line.endswith("  ")]}


COMPILE = Part(
    {
        "steps and variants": partial(compiled, ["steps", "update", "encode"], "scatter"),
        "more steps and candidates": partial(compiled, ["more steps", "candidates"], "scan"),
    },
    item_seconds=150,
)

if __name__ == "__main__":
    sys.exit(main())
