"""Every Triton kernel compiles for sm_80, sm_90 and sm_100 without spills, to the figures of the committed table."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).parent / "triton_compile_table.json"


@pytest.fixture
def gate() -> ModuleType:
    return importlib.import_module("tests.gates.compile_gate")


def run_gate(*arguments: str, gate: str = "compile_gate") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.gates.{gate}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow  # .ci/run compiles them all
def test_one_kernel_compiles_to_the_figures_of_the_table() -> None:
    """The whole table is a gate of its own in .ci/run: it takes minutes."""
    run = run_gate("--only", "scatter_kernel")
    assert run.returncode == 0, run.stderr
    table = json.loads(TABLE.read_text())
    if table["triton"] == version("triton"):
        rows = {name: figures for name, figures in table["kernels"].items() if "scatter_kernel" in name}
        assert len(rows) >= 3
        for name, figures in rows.items():
            line = next(line for line in run.stdout.splitlines() if line.startswith(name + " "))
            assert all(re.search(rf"\b{key} {value}\b", line) for key, value in figures.items()), line


@pytest.mark.slow
def test_a_step_is_launched_as_on_a_gpu() -> None:
    """With a product by TMA and one by pointers, and arguments that are 1. All of it is a gate of its own in .ci/run."""
    for only in ("topk-rescore small", "topk-rescore ones"):
        run = run_gate("--only", only, gate="launch_gate")
        assert run.returncode == 0 and "1 steps" in run.stdout and " 0 failed" in run.stdout, run.stderr


@pytest.mark.slow
def test_the_table_has_a_row_for_everything_that_is_launched() -> None:
    """Recorded in a process of its own, because kernels that were imported for the interpreter cannot be."""
    run = run_gate("--list")
    assert run.returncode == 0, run.stderr
    table = json.loads(TABLE.read_text())
    if table["triton"] == version("triton"):
        assert sorted(run.stdout.splitlines()) == sorted(table["kernels"])
    kernels = {row.split()[0].split("/")[0] for row in table["kernels"]}
    sources = "".join(path.read_text() for path in (ROOT / "triton_kernels").glob("*.py"))
    assert kernels == set(re.findall(r"def _?(\w+_kernel)\(", sources))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.zeros(3),
    ],
    ids=["item", "mask", "scalar", "host"],
)
def test_a_step_that_would_wait_for_the_device_is_refused(gate: ModuleType, call: Callable) -> None:
    x = torch.empty(3, device="meta")
    assert gate.launches(lambda: x + 1) == []
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        gate.launches(lambda: call(x))


def test_offsets_multiplied_in_32_bits_are_found(gate: ModuleType) -> None:
    from tests.gates import compile_one

    ttir = """
    %b = tt.get_program_id x : i32 loc(#loc1)
    %c = arith.constant 64 : i32
    %start = arith.muli %b, %c : i32
    %row = arith.muli %b, %F : i32
    %lane = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>
    %rows = tt.splat %row : i32 -> tensor<64xi32>
    %bad = arith.addi %rows, %lane : tensor<64xi32>
    %ok = tt.addptr %p, %start : !tt.ptr<f32>, i32
    %oops = tt.addptr %q, %bad : tensor<64x!tt.ptr<f32>>, tensor<64xi32>
    %wide = arith.muli %b64, %F64 : i64
    %fine = tt.addptr %p, %wide : !tt.ptr<f32>, i64
"""
    assert compile_one.narrow_offsets(ttir) == ["%oops"]


def test_places_read_and_written_by_different_threads_are_found(gate: ModuleType) -> None:
    from tests.gates import compile_one

    ttgir = """
    %0 = tt.splat %row : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>, #blocked>
    %1 = tt.addptr %0, %cols : tensor<64x!tt.ptr<f32>, #blocked>, tensor<64xi32, #blocked>
    %2 = tt.load %1, %mask : tensor<64x!tt.ptr<f32>, #blocked>
    %3 = tt.splat %row : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>, #WRITTEN>
    %4 = tt.addptr %3, %cols : tensor<64x!tt.ptr<f32>, #WRITTEN>, tensor<64xi32, #WRITTEN>
    tt.store %4, %2 : tensor<64x!tt.ptr<f32>, #WRITTEN>
    tt.store %other, %2 : tensor<64x!tt.ptr<f32>, #blocked1>
"""
    assert compile_one.moved(ttgir.replace("WRITTEN", "blocked")) == []
    assert [line.split()[0] for line in compile_one.moved(ttgir.replace("WRITTEN", "blocked1"))] == ["%row"]


def test_limits_and_differences_are_noticed(gate: ModuleType) -> None:
    good = {
        "registers": 40,
        "spilled_bytes": 0,
        "shared_bytes": 200 * 1024,
        "widest_load": 16,
        "matrix_products": 0,
        "narrow_offsets": 0,
        "moved": 0,
    }
    assert gate.over_limits({"kernel A bf16 sm_90": good}) == []
    assert "shared memory" in gate.over_limits({"kernel A bf16 sm_80": good})[0]
    assert "spilled" in gate.over_limits({"kernel A bf16 sm_90": {**good, "spilled_bytes": 8}})[0]
    assert "32 bits" in gate.over_limits({"kernel A bf16 sm_90": {**good, "narrow_offsets": 1}})[0]
    assert "threads" in gate.over_limits({"kernel A bf16 sm_90": {**good, "moved": 1}})[0]
    assert "matrix" in gate.over_limits({"gemm_kernel A bf16 sm_90": good})[0]
    assert gate.over_limits({"gemm_kernel A bf16 sm_90": {**good, "matrix_products": 4}}) == []
    assert gate.differences({"a": good}, {"a": good}) == []
    changed = gate.differences({"a": {**good, "registers": 41}, "new": good}, {"a": good, "gone": good})
    assert [line.partition(":")[0] for line in changed] == ["a", "gone", "new"]
