"""`pytest benchmarks`: a wrong result is never timed, the arithmetic of a row, and no op without a benchmark."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.ops import bench_encode, bench_step, contest
from benchmarks.ops.contest import Case, close_to, compete, equal_to
from benchmarks.roofline import Device, Stage
from saefast import reference
from saefast.backend import unavailable

ROOT = Path(__file__).parents[2]
BENCHES = {
    path.stem.removeprefix("bench_"): path.read_text()
    for path in (ROOT / "benchmarks" / "ops").glob("bench_*.py")
}
MACHINE = Device("made up", bandwidth=100e9, flops=1e12, l2=2**20, memory=2**30)


class Clock:
    """Stands in for pytest-benchmark's fixture: calls in its order, and every round takes 2 ms."""

    def __init__(self) -> None:
        self.extra_info, self.stats = {}, SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.skipped = False

    def pedantic(self, call, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            setup()
            call()
        self.stats.stats.data = [2e-3] * rounds


class Never(Clock):
    def pedantic(self, *args, **kwargs):
        raise AssertionError("timed")


def doubling() -> Case:
    x = torch.arange(1.0, 9.0)
    return Case("double", (8,), (x,), close_to(2 * x.double()), [Stage("double", 8, 64)])


def double(x):
    return 2 * x


@pytest.mark.parametrize("wrong", ["plain", "new"])
def test_a_wrong_contender_is_not_timed(wrong):
    contenders = {"plain": double, "new": double} | {wrong: lambda x: 2 * x + (x == 3)}
    with pytest.raises(AssertionError, match="off by 6.2e-02"):
        compete(doubling(), contenders, "new", Never(), MACHINE)


def test_one_that_cannot_run_is_skipped_with_its_reason():
    with pytest.raises(pytest.skip.Exception, match="no such machine"):
        compete(doubling(), {"plain": double, "new": "no such machine"}, "new", Never(), MACHINE)


def test_plain_and_contender_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(contest, "seconds_of", lambda call: (call(), 6e-3)[1])
    contenders = {
        "plain": lambda x: (turns.append("plain"), double(x))[1],
        "new": lambda x: (turns.append("new"), double(x))[1],
    }
    row = compete(doubling(), contenders, "new", Clock(), MACHINE)
    checks, rounds = turns[:4], turns[4:-1]  # the last call is that of the peak
    assert checks == ["plain", "plain", "new", "new"]
    assert rounds == ["plain", "new"] * (row["rounds"] + 1) and turns[-1] == "new"
    assert row["rounds"] == int(contest.BUDGET / 12e-3)
    assert row["times as fast as plain"] == [3, 3, 3] and row["seconds"] == [2e-3] * 3


@pytest.mark.parametrize(
    ("stages", "share", "rate"),
    [
        ([Stage("product", 2e9, 1e6)], 0.5, ("GFLOP/s", 500)),
        ([Stage("copy", 1e6, 0.3e9)], 0.75, ("GB/s", 75)),
        ([Stage("product", 2e9, 1e6), Stage("copy", 0, 1e8)], 0.75, ("GFLOP/s", 500)),
    ],
)
def test_the_arithmetic_of_a_row(stages, share, rate):
    case = Case("op", (1, 2), (), equal_to(), stages)
    row = contest.row_of(case, "new", MACHINE, [4e-3, 2e-3, 8e-3], [8e-3, 6e-3, 8e-3], peak=1.5)
    assert row["share of floor"] == share and row[rate[0]] == rate[1]
    assert row["times as fast as plain"][0] == 2  # of 2, 3, 1: within rounds
    assert row["seconds"][0] == 4e-3 and row["peak MiB"] == 1.5
    line = contest.line_of(row)
    assert f"{share:.0%} of floor" in line and f"{rate[1]:.1f} {rate[0]}" in line and "2.00 x plain" in line


def test_checks_refuse():
    for wrong in (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.1]), torch.ones(3)):
        with pytest.raises(AssertionError):
            close_to(torch.tensor([1.0, 2.0]).double())(wrong)
    with pytest.raises(AssertionError, match="not equal"):
        equal_to(torch.ones(2))([torch.zeros(2)])


def test_a_code_must_be_of_what_is_above_the_bar():
    pre_acts = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bar = pre_acts.kthvalue(40 - 4, dim=1, keepdim=True).values
    check, (acts, indices) = bench_encode.above(bar, pre_acts), reference.topk(pre_acts, 5)
    check((acts, indices))
    check((acts.flatten(), indices.flatten(), torch.arange(7, dtype=torch.int32) * 5))
    swapped, lowest = indices.clone(), int(pre_acts[2].argmin())
    swapped[2, 0] = lowest
    changed, twice = acts.clone(), indices.clone()
    changed[3, 1] *= 1.2
    twice[1, 0] = twice[1, 1]
    right = acts.clone()
    right[2, 0] = pre_acts[2, lowest].relu()
    for wrong in ((right, swapped), (changed, indices), (acts, twice), (acts[:, 1:], indices[:, 1:])):
        with pytest.raises(AssertionError):
            check(wrong)


def is_timed(op: str) -> bool:
    found = rf'backends\(\s*"{op}"|^def {op}\('
    return any(re.search(found, text, re.MULTILINE) for text in BENCHES.values())


@pytest.mark.skipif(bool(unavailable("native")), reason="the C++ extension saefast._C is not built")
def test_every_native_op_has_a_benchmark():
    from saefast import native

    assert [op for op in native.__all__ if op != "NAME" and not is_timed(op)] == []


def test_every_triton_op_has_a_benchmark_of_the_name_of_its_file():
    text = (ROOT / "triton_kernels" / "__init__.py").read_text()
    files = dict(re.findall(r"from saefast\.triton_kernels\.(\w+) import (\([^)]+\)|.+)", text))
    assert len(files) > 10 and files.keys() <= BENCHES.keys()
    assert [op for ops in files.values() for op in re.findall(r"\w+", ops) if not is_timed(op)] == []


@pytest.mark.parametrize(("plain", "passes"), [([4.0], True), ([1.4, 4.0], True), ([1.4, 1.4], False)])
def test_the_guard_fails_where_both_attempts_do(monkeypatch, capsys, plain, passes):
    attempts = iter({"plain": [ratio] * 3, "stock": [1.2] * 3} for ratio in plain)
    monkeypatch.setattr(bench_step, "guarded_ratios", lambda: next(attempts))
    if passes:
        bench_step.bench_guard(capsys)
    else:
        with pytest.raises(pytest.fail.Exception, match="too slow"):
            bench_step.bench_guard(capsys)
    assert next(attempts, None) is None
