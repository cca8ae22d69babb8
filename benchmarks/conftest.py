"""`pytest benchmarks`: every op and the whole step, each beside its plain PyTorch formulation. See `contest.py`.

    pytest benchmarks                             time, and print the table
    pytest benchmarks --results                   and write benchmarks/results/<device>/ops.json
    pytest benchmarks -k smoke --benchmark-disable   tiny sizes, nothing timed: is everything that can run here right?

The smoke shapes run with -k smoke only. `torch.compile` takes seconds for each op and shape, so it takes part where it has
something to fuse: an op with a pass over memory that is more than a product or a selection, and the loss of the step.
"""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import measuring
from benchmarks.ops import contest as contests
from benchmarks.roofline import Device

ROWS, DEVICE = pytest.StashKey[list[dict[str, Any]]](), pytest.StashKey[Device]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", action="store_true", help="write the table of all benchmarks as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("results") and (config.option.keyword or config.option.benchmark_disable):
        raise pytest.UsageError("--results is for all benchmarks, timed: not with -k or --benchmark-disable")
    config.option.benchmark_quiet = True  # its table has neither a floor nor a ratio
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.benchmark_disable or "smoke" in config.option.keyword:
        return
    smoke = [item for item in items if "smoke" in item.name]
    config.hook.pytest_deselected(items=smoke)
    items[:] = [item for item in items if item not in smoke]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Device:
    pytestconfig.stash[DEVICE] = contests.measured_device()
    return pytestconfig.stash[DEVICE]


@pytest.fixture
def contest(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[..., None]:
    """contest(case, contenders, name): see `contest.compete`."""
    rows = request.config.stash[ROWS]

    def run(case: contests.Case, contenders: contests.Contenders, name: str) -> None:
        if benchmark.disabled and name == "compiled":
            benchmark.skipped = True
            pytest.skip("nothing is compiled where nothing is timed")
        timed_on = None if benchmark.disabled else request.getfixturevalue("device")
        row = contests.compete(case, contenders, name, benchmark, timed_on)
        rows.extend([row] if row else [])

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    found = config.stash[DEVICE]
    terminalreporter.write_line(
        f"\nB, d_in, d_sae, k; median (10th to 90th percentile). Floor: a copy of {found.bandwidth / 1e9:.1f} GB/s, "
        f"a product of {found.flops / 1e9:.0f} GFLOP/s."
    )
    for row in rows:
        terminalreporter.write_line(contests.line_of(row))
    if config.getoption("results"):
        floor = {"GB/s of a copy": found.bandwidth / 1e9, "GFLOP/s of a product": found.flops / 1e9}
        floor = {unit: round(value, 1) for unit, value in floor.items()}
        terminalreporter.write_line(str(measuring.write_result("ops", {"device": floor, "rows": rows})))
