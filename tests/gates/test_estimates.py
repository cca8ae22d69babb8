"""docs/gpu-estimates.md is what the tool makes of this tree, and a branch of the graph costs nothing while it is the shorter one."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")
from benchmarks.gpu import estimates
from tests.gates.compile_gate import Case
from tests.gates.launch_budget import Call

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("n_beside", "expected"), [(3, 0.0), (0, 2e-6 + estimates.GAP)])
def test_a_branch_costs_what_is_longer_than_what_runs_beside_it(
    monkeypatch: pytest.MonkeyPatch, n_beside: int, expected: float
) -> None:
    line = [
        "add",
        "branch",
        "count_kernel",
        "end of branch",
        *["decode_error_kernel"] * n_beside,
        "join",
        "add",
    ]
    monkeypatch.setattr(estimates, "recorded", lambda call: [Call(name) for name in line])
    monkeypatch.setattr(estimates, "call_seconds", lambda call, shape, case: 2e-6)
    found = estimates.estimate(estimates.SHAPES["A"], Case())
    assert found.stages["group"] == pytest.approx(expected)
    assert found.stages["decode"] == pytest.approx(n_beside * 2e-6)
    assert found.stages["between launches"] == pytest.approx((2 + n_beside) * estimates.GAP)
    assert found.nodes == 4 + n_beside  # and the copy of x


@pytest.mark.slow
def test_the_page_is_that_of_this_tree() -> None:
    """Compiled in a process of its own: here kernels are for the interpreter."""
    page = estimates.PAGE.read_text()
    if f"Triton {version('triton')}" not in re.sub(r"\s+", " ", page):
        pytest.skip("the page is of another Triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.estimates"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == page
