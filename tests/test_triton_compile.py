"""Every Triton kernel compiles for sm_80, sm_90 and sm_100 without spills, to the figures of the committed table."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")
GATE = Path(__file__).parent.parent / "benchmarks" / "compile_gate.py"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GATE.parent))
    spec = importlib.util.spec_from_file_location("compile_gate", GATE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kernel_passes() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, GATE], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_limits_and_differences_are_noticed(gate: ModuleType) -> None:
    good = {"registers": 40, "spilled_bytes": 0, "shared_bytes": 200 * 1024, "widest_load": 16}
    assert gate.over_limits({"kernel A bf16 sm_90": good}) == []
    assert "shared memory" in gate.over_limits({"kernel A bf16 sm_80": good})[0]
    assert "spilled" in gate.over_limits({"kernel A bf16 sm_90": {**good, "spilled_bytes": 8}})[0]
    assert gate.differences({"a": good}, {"a": good}) == []
    changed = gate.differences({"a": {**good, "registers": 41}, "new": good}, {"a": good, "gone": good})
    assert [line.partition(":")[0] for line in changed] == ["a", "gone", "new"]
