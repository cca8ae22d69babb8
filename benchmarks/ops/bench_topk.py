"""Top-k of each row, with ReLU.

    pytest benchmarks/ops/bench_topk.py

"any order" is torch.topk without an order of the values, as no step needs one. Plain and it leave the choice between
equal values open, which the backends fix. "from maxima" is the Triton kernel given the maxima of groups, as the encoder is.
On random numbers without ties the values must be those of the reference.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import (
    DEVICE,
    DTYPE,
    FEWER_SHAPES,
    NO_GPU,
    ON_GPU,
    Case,
    backends,
    equal_to,
    stage,
)
from saefast import reference

MORE = {"C": (8192, 4096, 262144, 64), "auxk": (8192, 768, 8192, 256)} if ON_GPU else {}
ALL_SHAPES = FEWER_SHAPES | MORE


def plain(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = pre_acts.topk(k, dim=1)
    return values.relu(), indices


def any_order(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = pre_acts.topk(k, dim=1, sorted=False)
    return values.relu_(), indices


CONTENDERS = {"plain": plain, "any order": any_order, **backends("topk"), "from maxima": NO_GPU}


@pytest.fixture(scope="module", params=ALL_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, K = ALL_SHAPES[request.param]
    torch.manual_seed(0)
    pre_acts = torch.randn(B, F, device=DEVICE, dtype=DTYPE)
    want = reference.topk(pre_acts, K)[0].sort(dim=1).values

    def check(code: tuple[Tensor, Tensor]) -> None:
        acts, indices = code
        equal_to(want, acts)([acts.sort(dim=1).values, pre_acts.gather(1, indices.long()).relu()])

    return Case("topk", shape, (pre_acts, K), check, [stage("select", shape)])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_topk(contest, case: Case, contender: str) -> None:
    contenders = dict(CONTENDERS)
    if ON_GPU:
        from saefast.triton_kernels.topk import group_maxima, select_topk

        maxima = group_maxima(case.inputs[0])
        contenders["from maxima"] = lambda pre_acts, k: select_topk(pre_acts, maxima, k)
    contest(case, contenders, contender)
