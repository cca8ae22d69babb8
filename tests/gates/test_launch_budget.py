"""No step launches more than its budget, and a launch more is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from tests.gates.launch_budget import BUDGET, Count, calls_of, count, over_budget

ROOT = Path(__file__).parents[2]


def test_what_is_launched_is_counted() -> None:
    """Not views, not fresh memory; more than one node where torch makes more of it."""
    x = torch.empty(4, 6, device="meta")

    def call() -> None:
        fresh = torch.empty_like(x[1:].T.reshape(-1)[None])
        (fresh[0] * 2).cumsum(0).masked_fill(fresh[0] > 0, 0.0)

    assert calls_of(call) == ["clone", "mul", "cumsum", "gt", "masked_fill"]
    assert count(calls_of(call)) == Count(5, 7)


def test_a_launch_too_many_is_noticed() -> None:
    """Planted: one small op more than what the step of the budget has."""
    x = torch.empty(4, 6, device="meta")
    budget = {"step": count(calls_of(lambda: x.sum() * 2))}
    assert over_budget({"step": count(calls_of(lambda: x.sum() * 2))}, budget) == []
    assert over_budget({"step": count(calls_of(lambda: x.sum()))}, budget) == []
    assert over_budget({"step": count(calls_of(lambda: x.sum() * 2 + 1))}, budget) == [
        "step: 3 calls and 3 nodes, the budget is 2 and 2"
    ]
    # as many calls, one of them of two nodes
    assert len(over_budget({"step": count(calls_of(lambda: x.cumsum(0) * 2))}, budget)) == 1


@pytest.mark.slow
def test_steps_stay_within_their_budget() -> None:
    """In a process of its own, because kernels that were imported for the interpreter cannot be recorded."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gates.launch_budget"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert [line.rsplit(maxsplit=4)[0] for line in run.stdout.splitlines()] == list(BUDGET)
