"""Records what a call would launch, and compiles one kernel for a GPU that is not here. Used by compile_gate.py."""

import inspect
import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction, mangle_type

from tests.gates.hopper import GATHERS, sm90_figures, sm90_occupancy
from tests.gates.sass import parse

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Launch(NamedTuple):
    """A kernel with the arguments it was launched with."""

    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: tuple[int, ...] = ()


class NothingWaits(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: asking the device for a value, and tensors made on the host."""

    ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "scalar_tensor")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert not name.startswith(self.ASKS), f"a step may not call {name}: it waits for the device"
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            on_host = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
            assert not on_host, f"a step may not make a tensor on the host, as {name} does"
        return result


def launches(call: Callable[[], object]) -> list[Launch]:
    """The kernels that `call` launches, none of them run."""
    recorded: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        recorded.append(Launch(kernel, args, kwargs, grid))

    with mock.patch.object(JITFunction, "run", record), NothingWaits():
        call()
    return recorded


def signature_of(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any], dict[str, Any]]:
    """Types, constants, attributes and options with which Triton would compile this launch."""
    kernel, args, kwargs, _ = launch
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
            if isinstance(value, str):
                attributes[(position,)] = []  # as Triton does, which takes the text for one
            continue
        signature[param.name] = mangle_type(value)
        # torch allocates on multiples of 16 bytes and more; of numbers Triton looks at the value itself
        offset = value.storage_offset() * value.itemsize if isinstance(value, torch.Tensor) else value
        if isinstance(offset, int) and not isinstance(offset, bool) and not param.do_not_specialize:
            attributes[(position,)] = [["tt.divisibility", 16]] if offset % 16 == 0 else []
    return signature, constants, attributes, options


def compiled_for(launch: Launch, sm: int) -> CompiledKernel:
    """As Triton would compile this launch for sm_`sm`."""
    signature, constants, attributes, options = signature_of(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def cuobjdump(compiled: CompiledKernel, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        return subprocess.check_output([CUOBJDUMP, what, cubin.name], text=True)


def resources_of(compiled: CompiledKernel) -> dict[str, int]:
    """REG: registers of a thread; STACK and LOCAL: bytes of memory."""
    usage = cuobjdump(compiled, "--dump-resource-usage")
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}


def compile_launch(launch: Launch, sm: int) -> dict[str, float]:
    """Compile for sm_`sm` as Triton would at this launch, and read the figures off the result."""
    compiled, name = compiled_for(launch, sm), launch.kernel.__name__.strip("_")
    resources = resources_of(compiled)
    # disassembling takes as long as compiling: only where there is something to be found
    wanted = bool(PTX_PRODUCT.search(compiled.asm["ptx"])) or (sm == 90 and name.startswith(GATHERS))
    code = cuobjdump(compiled, "--dump-sass") if wanted else ""
    loads = re.findall(r"ld\.global[\w:.]*?(?:\.v(\d))?\.[bsuf](\d+)\s", compiled.asm["ptx"])
    widths = [int(count or 1) * int(bits) // 8 for count, bits in loads]
    copies = [int(size, 16) for size in ASYNC_COPY.findall(compiled.asm["ptx"])]
    figures: dict[str, float] = {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],  # per thread; without spills, no stack
        "shared_bytes": compiled.metadata.shared,
        "widest_load": max([*widths, *copies], default=0),  # bytes
        "matrix_products": len(re.findall(MATRIX_PRODUCT[sm], code)),
        "narrow_offsets": len(narrow_offsets(compiled.asm["ttir"])),
        "moved": len(moved(compiled.asm["ttgir"])),
    }
    if sm == 90:
        usage = (
            compiled.metadata.num_warps,
            resources["REG"],
            compiled.metadata.shared,
            math.prod(launch.grid),
        )
        figures |= sm90_occupancy(name, *usage) | sm90_figures(name, parse(code), compiled.asm["ttir"])
    return figures


ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[\w:.]* \[[^]]*\], \[[^]]*\], 0x(\w+)")
PTX_PRODUCT = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")
MATRIX_PRODUCT = {80: r"\bHMMA\b", 90: r"\bHGMMA\b", 100: r"\bUTC\w*MMA\b"}


SAME_PLACE = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout")


def moved(ttgir: str) -> list[str]:
    """Arguments that are read in one layout and written in another: no barrier orders what two threads do to one place."""
    first_operand = dict(re.findall(rf"(%\w+) = (?:{'|'.join(SAME_PLACE)}) (%\w+)", ttgir))
    layouts: dict[str, dict[str, dict[str, set[str]]]] = {}
    for line in ttgir.splitlines():
        if not (access := re.search(r"tt\.(load|store) (%\w+)", line)):
            continue
        verb, pointer = access.groups()
        while pointer in first_operand:
            pointer = first_operand[pointer]
        for shape, layout in re.findall(r"tensor<([\dx]+)x!tt\.ptr<\w+>, (#\w+)>", line):
            layouts.setdefault(pointer, {}).setdefault(shape, {}).setdefault(verb, set()).add(layout)
    return [
        f"{pointer} {shape}: {found}"
        for pointer, of_shape in layouts.items()
        for shape, found in of_shape.items()
        if len(found) == 2 and len(set.union(*found.values())) > 1
    ]


def narrow_offsets(ttir: str) -> list[str]:
    """Pointer offsets of 32 bits with a product of two variables in them; a product by a constant is a tile's start."""
    defined: dict[str, tuple[str, list[str], str]] = {}
    for line in ttir.splitlines():
        if found := re.match(r"\s*(%[\w#:]+) = ([\w.]+) (.*?) : (.*?)(?: loc\(.*)?$", line):
            name, operation, operands, types = found.groups()
            defined[name] = operation, re.findall(r"%\w+", operands), types

    def has_product(name: str, seen: set[str]) -> bool:
        if name in seen or name not in defined:
            return False
        seen.add(name)
        operation, operands, types = defined[name]
        if operation in ("tt.load", "arith.extsi", "arith.divsi", "arith.remsi", "tt.reduce", "arith.cmpi"):
            return False  # another value, or already wide
        constant = any(defined.get(operand, ("",))[0] == "arith.constant" for operand in operands)
        if operation == "arith.muli" and types.endswith("i32") | ("xi32" in types) and not constant:
            return True
        return any(has_product(operand, seen) for operand in operands)

    complaints = []
    for name, (operation, operands, types) in defined.items():
        if operation == "tt.addptr" and "i32" in types.rpartition(",")[2] and has_product(operands[1], set()):
            complaints.append(name)
    return complaints
