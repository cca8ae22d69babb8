"""Prints what the update at shape A becomes for sm_90: python -m tests.helpers.compiled_update. Used by test_update_compiled.py.

In a process of its own, because kernels that were imported for the interpreter cannot be compiled.
"""

import json
import os
import re
from dataclasses import replace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES
from saefast.triton_kernels import update
from tests.gates.compile_gate import UpdateCase, update_call
from tests.gates.compile_one import Launch, compile_launch, launches, signature_of

A = SHAPES["A"]
DEFAULT = update.update_config(A.D, 2, torch.device("cpu"))


class Counted(TorchDispatchMode):
    """Names of what torch is asked to do, but for memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))


def launched(**changes: Any) -> tuple[list[Launch], list[str]]:
    call, config = update_call(A, torch.bfloat16, UpdateCase(blocks=0)), replace(DEFAULT, **changes)
    with mock.patch.object(update, "update_config", lambda *args, **kwargs: config), Counted() as counted:
        recorded = launches(call)
    return recorded, [name for name in counted.names if not name.startswith("empty")]


def loops(ttgir: str) -> list[str]:
    """The text of each loop without another one in it."""
    found, start = [], None
    lines = ttgir.splitlines()
    for i, line in enumerate(lines):
        if "scf.for" in line:
            start = i
        elif "scf.yield" in line and start is not None and lines[i + 1].strip().startswith("}"):
            if any("scf.if" in one for one in lines[start:i]):
                continue
            found.append("\n".join(lines[start : i + 1]))
            start = None
    return found


def compiled(**changes: Any) -> dict[str, Any]:
    (launch,) = (one for one in launched(**changes)[0] if one.kernel.__name__ == "_update_kernel")
    signature, constants, attributes, options = signature_of(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    asm = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    stores = re.findall(r"tt\.store .*", asm["ttgir"])
    figures = compile_launch(launch, 90)
    return {
        "loops": [
            {
                "copies": loop.count("ttg.async_copy_global_to_local"),
                "loads": len(re.findall(r"= tt\.load ", loop)),
                "in flight": [int(n) for n in re.findall(r"ttg\.async_wait .*num = (\d+)", loop)],
            }
            for loop in loops(asm["ttgir"])
        ],
        "copies": len(re.findall(r"\bcp\.async\.c[ag]", asm["ptx"])),
        "stores": len(stores),
        "stores that leave first": sum("evict_first" in store for store in stores),
        "kept": asm["ttgir"].count("evict_last"),
    } | {name: figures[name] for name in ("registers", "spilled_bytes", "shared_bytes")}


def main() -> None:
    recorded, torch_ops = launched()
    found: dict[str, Any] = {"kernels": [one.kernel.__name__ for one in recorded], "torch": torch_ops}
    found["default"] = compiled()
    found["waits"] = compiled(stages=1)
    found["others"] = compiled(stages=1, keep_gathered=False, pass_stored=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
