"""Compiles every Triton kernel for GPUs that are not here and checks what the compiler reports.

    python benchmarks/compile_gate.py            compile, print the table, compare it with the committed one
    python benchmarks/compile_gate.py --write    the same, and replace tests/triton_compile_table.json

Exits with 1 on register spills, on too much shared memory, and on figures that differ from the table. Those belong to
one Triton version; under another one only the limits are checked.

To add a kernel, add a call of its launcher to `calls`. The call runs on meta tensors, which have shapes but no memory,
and each kernel it launches is recorded instead of run, so what is compiled is what the launcher would launch.
"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import checkout  # noqa: F401
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

TABLE = Path(__file__).resolve().parent.parent / "tests" / "triton_compile_table.json"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of a thread block, by sm version
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Shape(NamedTuple):
    """Tokens, d_in, d_sae, k."""

    B: int
    D: int
    F: int
    K: int


SHAPES = {
    "small": Shape(1024, 576, 4608, 32),
    "A": Shape(8192, 768, 24576, 32),
    "B": Shape(8192, 2304, 65536, 64),
    "C": Shape(8192, 4096, 262144, 64),
}


def calls(shape: Shape, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """One call for each launcher of `saefast.triton_kernels`."""
    from saefast import triton_kernels as ops

    B, D, F, K = shape

    def tensor(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    top_acts, top_indices = tensor(B, K), tensor(B, K, dtype=torch.int32)
    W_dec, b_dec = tensor(F, D), tensor(D)
    yield lambda: ops.decode(top_acts, top_indices, W_dec, b_dec)


class Launch(NamedTuple):
    """A kernel with the arguments it was launched with."""

    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def launches(call: Callable[[], object]) -> list[Launch]:
    """The kernels that `call` launches, none of them run."""
    recorded: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        recorded.append(Launch(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return recorded


def compile_launch(launch: Launch, sm: int) -> dict[str, int]:
    """Compile for sm_`sm` as Triton would at this launch, and read the figures off the result."""
    kernel, args, kwargs = launch
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    arguments = {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    bound = inspect.signature(kernel.fn).bind(*args, **arguments)
    bound.apply_defaults()

    signature, constants, attributes = {}, {}, {}
    for position, (param, value) in enumerate(zip(kernel.params, bound.arguments.values(), strict=True)):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if param.is_constexpr or value is None or (is_number and value == 1 and not param.do_not_specialize):
            signature[param.name] = "constexpr"
            constants[param.name] = value
            continue
        signature[param.name] = mangle_type(value)
        # torch allocates on multiples of 16 bytes and more; of numbers Triton looks at the value itself
        offset = value.storage_offset() * value.itemsize if isinstance(value, torch.Tensor) else value
        if isinstance(offset, int) and offset % 16 == 0 and not param.do_not_specialize:
            attributes[(position,)] = [["tt.divisibility", 16]]

    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", cubin.name], text=True)
    resources = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    loads = re.findall(r"ld\.global[\w:.]*?(?:\.v(\d))?\.[bsuf](\d+)\s", compiled.asm["ptx"])
    return {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],  # per thread; without spills, no stack
        "shared_bytes": compiled.metadata.shared,
        "widest_load": max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0),  # bytes
    }


def compile_all() -> dict[str, dict[str, int]]:
    """Figures by kernel, shape, dtype and target. Triton's cache makes equal compilations cost nothing."""
    table = {}
    for shape_name, shape in SHAPES.items():
        for dtype_name, dtype in DTYPES.items():
            for call in calls(shape, dtype):
                for launch in launches(call):
                    for sm in SHARED_LIMIT:
                        row = f"{launch.kernel.__name__.strip('_')} {shape_name} {dtype_name} sm_{sm}"
                        assert row not in table, f"two launches named {row!r}"
                        table[row] = compile_launch(launch, sm)
    return dict(sorted(table.items()))


def over_limits(table: dict[str, dict[str, int]]) -> list[str]:
    """What no version of the compiler may report."""
    complaints = []
    for row, figures in table.items():
        limit = SHARED_LIMIT[int(row.rpartition("sm_")[2])]
        if figures["spilled_bytes"]:
            complaints.append(f"{row}: {figures['spilled_bytes']} bytes of registers spilled per thread")
        if figures["shared_bytes"] > limit:
            complaints.append(f"{row}: {figures['shared_bytes']} bytes of shared memory, limit {limit}")
    return complaints


def differences(table: dict[str, dict[str, int]], committed: dict[str, dict[str, int]]) -> list[str]:
    """Rows that changed, appeared or went away."""
    changed = [row for row in sorted({*table, *committed}) if table.get(row) != committed.get(row)]
    return [f"{row}: {committed.get(row)} -> {table.get(row)}" for row in changed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    args = parser.parse_args()

    table = compile_all()
    for row, figures in table.items():
        print(f"{row:34}", *(f"{name} {value:<7}" for name, value in figures.items()))
    problems = over_limits(table)
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
