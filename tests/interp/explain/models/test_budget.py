import os
import signal
import subprocess
import sys
import threading

import pytest

from saefast.errors import InputError
from saefast.interp.explain.models import Turn
from saefast.interp.explain.models.budget import FILE, Budget, BudgetReached, Cost, estimate
from saefast.interp.explain.models.cache import Cached
from saefast.interp.explain.models.endpoint import Endpoint
from tests.helpers import llm_server


@pytest.fixture
def server():
    pytest.importorskip("openai")
    with llm_server.FakeServer() as made:
        yield made


def asked(*texts):
    return [(Turn("user", text),) for text in texts]


def used(server, n_in, n_out):
    """Every answer says that it took so many tokens."""
    server.with_usage = lambda made, asked, said: (
        made | {"usage": {"prompt_tokens": n_in, "completion_tokens": n_out}}
    )


def test_it_stops_before_a_request_that_could_exceed_it(server, tmp_path):
    used(server, 9, 6)
    budget = Budget(tokens=59, folder=tmp_path)
    model = Cached(Endpoint(server.url, "toy", concurrency=1, budget=budget), tmp_path)
    # each could take 1 + 8 tokens of prompt and 20 of answer: 0 + 29, 15 + 29, then 30 + 29 = 59, and no more
    with pytest.raises(BudgetReached, match="59 tokens reached: 45 tokens.*could take 29 tokens.*is kept"):
        model.write(asked(*"abcdef"), max_tokens=20)
    assert len(server.requests) == 3 and budget.spent == Cost(27, 18, 0.0)
    more = Budget(tokens=200, folder=tmp_path)
    model = Cached(Endpoint(server.url, "toy", budget=more), tmp_path)
    assert len(model.write(asked(*"abcdef"), max_tokens=20)) == 6
    assert len(server.requests) == 6 and more.spent == Cost(
        54, 36, 0.0
    )  # what was paid for is not paid again


def test_dollars(server):
    used(server, 1_000, 500)
    budget = Budget(dollars=0.02, price_in=1.0, price_out=10.0)  # 0.006 each
    model = Endpoint(server.url, "toy", concurrency=1, budget=budget)
    for _ in range(3):
        model.write(asked("a"), max_tokens=199)
    assert budget.spent.dollars == pytest.approx(0.018)
    model.write(asked("a"), max_tokens=199)  # 0.018 + 9 e-6 + 0.00199 < 0.02
    with pytest.raises(BudgetReached, match=r"\$0.02 reached: 6000 tokens, \$0.0240"):
        model.write(asked("a"), max_tokens=1)
    assert len(server.requests) == 4


def test_a_request_waits_for_what_others_hold(server):
    """8 at once, of which the worst cases do not fit together, though what they take does."""
    used(server, 5, 5)
    server.delay = 0.02
    budget = Budget(tokens=8 * 10 + 30)
    model = Endpoint(server.url, "toy", concurrency=8, budget=budget)
    assert len(model.write(asked(*"abcdefgh"), max_tokens=20)) == 8
    assert server.most_at_once <= 3 and budget.spent == Cost(40, 40, 0.0)


def test_many_threads_never_exceed_it(server):
    used(server, 9, 20)
    budget = Budget(tokens=29 * 10 + 5)
    model = Endpoint(server.url, "toy", concurrency=8, budget=budget)
    with pytest.raises(BudgetReached):
        model.write(asked(*"abcdefghijklmnopqrst"), max_tokens=20)
    assert len(server.requests) == 10 and budget.spent == Cost(90, 200, 0.0)


def test_without_usage_it_is_estimated(server):
    server.usage = False
    budget = Budget()
    Endpoint(server.url, "toy", budget=budget).write(asked("a" * 400), max_tokens=30)
    assert budget.spent == Cost(108, 30, 0.0)
    server.with_usage = lambda made, asked, said: made | {"usage": {"prompt_tokens": "many"}}
    Endpoint(server.url, "toy", budget=budget).write(asked("a" * 400), max_tokens=30)
    assert budget.spent == Cost(216, 60, 0.0)


def test_failures(server):
    """An error status costs nothing; what never came may have been worked on."""
    budget = Budget()
    model = Endpoint(server.url, "toy", budget=budget, retries=0, timeout=0.3)
    for fault, spent in [("error", 0), ("rate limit", 0), ("slow", 29), ("no json", 58)]:
        server.faults = [fault]
        with pytest.raises(InputError):
            model.write(asked("a"), max_tokens=20)
        assert sum(budget.spent) == spent, fault


def test_runs_and_processes_share_one_account(tmp_path):
    code = f"""
import os, signal
from saefast.interp.explain.models.budget import Budget
budget = Budget(tokens=100, folder={str(tmp_path)!r})
for _ in range(2):
    worst = budget.cost(20, 10)
    budget.reserve(worst)
    budget.settle(worst, budget.cost(5, 1))
budget.reserve(worst)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    budget = Budget(tokens=100, folder=tmp_path)
    assert budget.spent == Cost(30, 12, 0.0)  # the one under way at its worst case
    budget.reserve(budget.cost(58, 0))
    with pytest.raises(BudgetReached):
        Budget(tokens=100, folder=tmp_path).reserve(Cost(1, 0, 0.0))
    assert (tmp_path / FILE).exists() and os.access(tmp_path / FILE, os.R_OK)


def test_who_waits_is_told_when_nothing_comes_back(tmp_path):
    budget, worst, told = Budget(tokens=10), Cost(8, 0, 0.0), []
    budget.reserve(worst)

    def wait():
        try:
            budget.reserve(worst)
        except BudgetReached as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and told == []
    budget.settle(worst, worst)
    thread.join(5)
    assert len(told) == 1


def test_estimates():
    prompts = [(Turn("system", "a" * 10), Turn("user", "b" * 8)), (Turn("user", ""),)]
    assert estimate(prompts, 20) == Cost(3 + 2 + 3 * 8, 40, 0.0)
    budget = Budget(price_in=2.0, price_out=4.0)
    found = estimate(["one two three"] * 1000, 5, budget, n_tokens=lambda text: len(text.split()))
    assert found == Cost(3000, 5000, pytest.approx(0.026)) and budget.spent == Cost(0, 0, 0.0)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="dollars need price_in"):
        Budget(dollars=1.0)
    for bad in ({"tokens": -1}, {"dollars": float("nan"), "price_in": 1.0}, {"price_out": float("inf")}):
        with pytest.raises(InputError, match="0 or more"):
            Budget(**bad)
    (tmp_path / FILE).write_bytes(b"nonsense " * 100)
    with pytest.raises(InputError, match=f"{FILE}: damaged"):
        Budget(folder=tmp_path)
    with pytest.raises(BudgetReached, match="0 tokens reached"):
        Budget(tokens=0).reserve(Cost(1, 0, 0.0))
