"""Faults that only a GPU shows, planted in kernels that are compiled for sm_90: prints the figures of each.

    python -m tests.gates.planted

tests/gates/test_hopper.py wants `hopper.complaints` to find each of them, and none in the kernels beside them that are right.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import triton.language as tl

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES
from saefast.triton_kernels import update
from tests.gates.compile_gate import CASES, step_call
from tests.gates.compile_one import compile_launch, launches


@triton.jit
def decode_kernel(lists_ptr, rows_ptr, out_ptr, n, STAGES: tl.constexpr, HOPS: tl.constexpr):
    """Sums the rows of 512 numbers that a list names, through HOPS lists more."""
    d = tl.arange(0, 512)
    total = tl.zeros((512,), tl.float32)
    for i in tl.range(0, n, num_stages=STAGES):
        row = tl.load(lists_ptr + i).to(tl.int64)
        for hop in tl.static_range(HOPS):
            row = tl.load(lists_ptr + (hop + 1) * n + row).to(tl.int64)
        total += tl.load(rows_ptr + row * 512 + d).to(tl.float32)
    tl.store(out_ptr + d, total)


@triton.jit
def gemm_encode_kernel(left, right, bias_ptr, out_ptr, K, STAGES: tl.constexpr, EPILOGUES: tl.constexpr):
    """A tile of 128 x 128 after the other, with a bias and NaN as infinity, EPILOGUES times over."""
    m, n, k = tl.arange(0, 128)[:, None], tl.arange(0, 128)[None, :], tl.arange(0, 64)
    for tile in range(tl.program_id(0), 1024, tl.num_programs(0)):
        acc = tl.zeros((128, 128), tl.float32)
        for start in tl.range(0, K, 64, num_stages=STAGES):
            a = tl.load(left + (tile * 128 + m) * K + start + k[None, :])
            b = tl.load(right + n * K + start + k[:, None])
            acc = tl.dot(a, b, acc)
        for i in tl.static_range(EPILOGUES):
            acc += tl.load(bias_ptr + i * 128 + n)
            acc = tl.where(acc == acc, acc, float("inf"))  # noqa: PLR0124
            tl.store(out_ptr + i * 2**24 + (tile * 128 + m) * 128 + n, acc)


def figures(call: Callable[[], object], only: str = "") -> dict[str, float]:
    (launch,) = (launch for launch in launches(call) if only in launch.kernel.__name__)
    return compile_launch(launch, 90)


def gather(STAGES: int, HOPS: int = 0) -> dict[str, float]:
    lists, out = (torch.empty(4096, dtype=dtype, device="meta") for dtype in (torch.int32, torch.float32))
    rows = torch.empty(4096, 512, dtype=torch.bfloat16, device="meta")
    arguments = {"STAGES": STAGES, "HOPS": HOPS, "num_warps": 1}
    return figures(lambda: decode_kernel[(1,)](lists, rows, out, 1024, **arguments))


def product(STAGES: int = 3, EPILOGUES: int = 1, num_warps: int = 4) -> dict[str, float]:
    operand = torch.empty(2**17, 768, dtype=torch.bfloat16, device="meta")
    bias, out = (torch.empty(2**17, dtype=torch.float32, device="meta") for _ in range(2))
    arguments = {"STAGES": STAGES, "EPILOGUES": EPILOGUES, "num_warps": num_warps}
    return figures(lambda: gemm_encode_kernel[(132,)](operand, operand, bias, out, 768, **arguments))


def programs(of_config: Callable[[update.UpdateConfig], update.UpdateConfig]) -> dict[str, float]:
    """The update of case A, launched otherwise."""
    right = update.update_config
    with mock.patch.object(
        update, "update_config", lambda *args, **kwargs: of_config(right(*args, **kwargs))
    ):
        return figures(step_call(SHAPES["A"], torch.bfloat16, CASES["topk"]), "_update_kernel")


def main() -> None:
    found = {
        "decode_kernel, right": gather(3),
        "decode_kernel, not ahead": gather(1),
        "decode_kernel, a list more": gather(1, HOPS=1),
        "gemm_encode_kernel, right": product(),
        "gemm_encode_kernel, epilogue twice": product(EPILOGUES=2),
        "update_kernel, too many": programs(lambda config: replace(config, programs=132 * 13)),
        "update_kernel, too few": programs(lambda config: replace(config, programs=132)),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
