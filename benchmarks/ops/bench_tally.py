"""The counters and metrics of a step: plain is an op of torch for each of them.

    pytest benchmarks/ops/bench_tally.py

Every call counts once more, so what is compared is what does not depend on how often that was: the metrics.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, SHAPES, Case, backends, close_to
from benchmarks.roofline import Stage
from saefast import reference

DEAD = 2**62  # tokens: nothing is


def plain(silent_for: Tensor, before: Tensor, fired: Tensor, *rest: object) -> tuple[Tensor, ...]:
    threshold, n_tokens, loss, fvu, squared = rest
    n_dead = (silent_for >= threshold).sum()
    before += fired
    silent_for.add_(n_tokens).masked_fill_(fired > 0, 0)
    none, n_active = torch.zeros_like(loss), fired.sum()
    return loss, fvu, n_active / n_tokens, n_dead / len(fired), none, none, squared.sqrt(), n_active


CONTENDERS = {"plain": plain, **backends("tally_")}


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, _ = SHAPES[request.param]
    torch.manual_seed(0)
    silent_for, before = (torch.zeros(F, dtype=torch.int64, device=DEVICE) for _ in range(2))
    fired = torch.randint(3, (F,), device=DEVICE, dtype=torch.int32)
    found = (torch.tensor(value, device=DEVICE) for value in (0.5, 0.25, 9.0))
    inputs = silent_for, before, fired, DEAD, B, *found
    want = torch.stack([value.double() for value in reference.tally_(*inputs)])

    def check(got: tuple[Tensor, ...]) -> None:
        close_to(want)(torch.stack([value.double() for value in got]))

    return Case("tally", shape, inputs, check, [Stage("tally", F, 36 * F)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_tally(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
