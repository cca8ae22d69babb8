"""Launches every kernel of a step as on a GPU, up to the driver's call: what compile_gate.py replaces is run here.

    python -m tests.gates.launch_gate               every case of compile_gate.py for sm_90
    python -m tests.gates.launch_gate --only auxk   the steps with that in their name

compile_gate.py records a launch and compiles what Triton would compile for it. Here Triton itself looks at the arguments,
compiles, writes the C code of the launcher and makes the descriptors of TMA, over a driver that runs nothing; tensors of
the step say that they are on a GPU. Exits with 1 if any of that fails, if a launcher is not C, if TMA would refuse a
descriptor, or if Triton compiles something else than compile_gate.py does.

Shapes are those of the table and small odd ones, among them batches, dictionaries and codes of one: Triton makes
constants of arguments that are 1.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES, Shape
from tests.gates.compile_gate import CASES, DTYPES, Case, UpdateCase, other_calls, step_call, update_call
from tests.gates.compile_one import Launch, signature_of

SHARED = 227 * 1024
ODD = {
    "odd": Shape(5, 33, 70, 3),
    "even": Shape(9, 130, 300, 4),
    "ones": Shape(1, 24, 70, 1),
    "one column": Shape(3, 1, 9, 2),
}
ODD_CASES = (
    "topk",
    "topk-clip",
    "topk-rescore",
    "topk-auxk",
    "batch-topk",
    "relu",
    "relu-dense",
    "split-int8",
    "given",
)
latest: list[Launch] = []
launched: set[str] = set()


class Utils:
    """What Triton's driver asks of CUDA."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 1, 1, 64, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED}

    def fill_tma_descriptor(
        self,
        address: int,
        swizzle: int,
        itemsize: int,
        kind: int,
        box: Any,
        shape: Any,
        strides: Any,
        padding: int,
    ) -> object:
        """The conditions of cuTensorMapEncodeTiled."""
        assert address % 16 == 0, f"TMA: address {address}"
        assert all(side <= 256 for side in box) and box[-1] * itemsize <= 128, (
            f"TMA: box {box} of {itemsize} bytes"
        )
        assert all(stride * itemsize % 16 == 0 for stride in strides[:-1]), f"TMA: strides {strides}"
        assert all(0 < side < 2**32 for side in shape), f"TMA: shape {shape}"
        return object()


class Launcher:
    def __init__(self, source: ASTSource, metadata: Any) -> None:
        self.name = source.fn.fn.__name__
        ours = ASTSource(latest[0].kernel, *signature_of(latest[0])[:3])
        for field in ("signature", "constants", "attrs"):
            one, other = getattr(ours, field), getattr(source, field)
            assert one == other, f"{self.name}: compile_gate.py compiles another {field}: {one}, not {other}"
        assert metadata.global_scratch_size == 0, f"{self.name}: it needs memory that no graph keeps"
        signature = dict(enumerate(source.signature.values()))
        descriptors = getattr(metadata, "tensordesc_meta", None)
        compile_c(nvidia.make_launcher(source.constants, dict(source.signature), descriptors))
        self.expand = nvidia.wrap_handle_tensordesc(lambda *arguments: None, signature, descriptors)

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        assert 0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16, f"{self.name}: a grid of {x, y, z}"
        launched.add(self.name)
        self.expand(x, y, z, stream, function, False, False, None, None, *rest)


class Driver:
    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_c(code: str) -> None:
    folders = [f"-I{folder}" for folder in (sysconfig.get_paths()["include"], *nvidia.include_dirs)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launcher.c"
        path.write_text(code)
        subprocess.run(
            ["gcc", "-fsyntax-only", "-w", *folders, str(path)], check=True, capture_output=True, text=True
        )


def jobs() -> list[tuple[str, Shape, str, Case]]:
    found = [
        (f"{name} {shape} {dtype}", SHAPES[shape], dtype, case)
        for name, case in CASES.items()
        for shape in case.shapes
        for dtype in case.dtypes
    ]
    # what `saefast.optim.Adam` with unit norm makes of a decoder
    found.append(("unit norm", Shape(1, 1, 512, 1), "fp32", UpdateCase(blocks=0, wider=768)))
    return found + [
        (f"{name} {shape_name} {dtype}", shape, dtype, CASES[name])
        for name in ODD_CASES
        for shape_name, shape in ODD.items()
        for dtype in CASES[name].dtypes
    ]


def run(job: int) -> tuple[str, str, set[str]]:
    """-> the job's name, what went wrong, the kernels that were launched."""
    name, shape, dtype, case = jobs()[job]
    launched.clear()
    jit_run = JITFunction.run

    def remember(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        latest[:] = [Launch(kernel, args, kwargs)]
        return jit_run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    driver.set_active(Driver())
    with mock.patch.object(Tensor, "is_cuda", True), mock.patch.object(JITFunction, "run", remember):
        try:
            make = update_call if isinstance(case, UpdateCase) else step_call
            make(shape, DTYPES[dtype], case)()
            if case is CASES["topk"]:
                for call in other_calls(shape, DTYPES[dtype]):
                    call()
        except Exception as error:  # noqa: BLE001
            said = getattr(error, "stderr", None) or "".join(traceback.format_exception(error)[-3:])
            return name, said, set(launched)
    return name, "", set(launched)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="steps with this in their name")
    only = parser.parse_args().only
    wanted = [i for i, (name, *_) in enumerate(jobs()) if only in name]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        results = pool.map(run, wanted, chunksize=1)
    for name, problem, _ in results:
        if problem:
            print(f"{name}: {problem}", file=sys.stderr)
    kernels = set.union(*(names for *_, names in results))
    failed = sum(bool(problem) for _, problem, _ in results)
    print(f"{len(results)} steps, {len(kernels)} kernels, {failed} failed; Triton {triton.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
