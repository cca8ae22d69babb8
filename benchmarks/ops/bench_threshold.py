"""Everything above a threshold (JumpReLU, BatchTopK's inference); the code must be that of the reference to the bit.

    pytest benchmarks/ops/bench_threshold.py

The kernels are given room for what is found, so that unlike plain they wait for nothing. "from maxima" is given the maxima
of groups, as the encoder has them. The native backend has it in `encode_threshold` only.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, FEWER_SHAPES, NO_GPU, ON_GPU, Case, backends, equal_to
from benchmarks.roofline import Stage
from saefast import reference

Code = tuple[Tensor, Tensor, Tensor]


def plain_threshold(pre_acts: Tensor, threshold: Tensor, capacity: int | None = None) -> Code:
    is_above = pre_acts > threshold
    row_offsets = torch.nn.functional.pad(is_above.sum(dim=1).cumsum(0), (1, 0))
    return pre_acts[is_above], is_above.nonzero()[:, 1].int(), row_offsets.int()


CONTENDERS = {"plain": plain_threshold, **backends("above_threshold"), "from maxima": NO_GPU}


@pytest.fixture(scope="module", params=FEWER_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, K = FEWER_SHAPES[request.param]
    torch.manual_seed(0)
    pre_acts = torch.randn(B, F, device=DEVICE)
    threshold = pre_acts.flatten().kthvalue(B * (F - K)).values
    expected = reference.above_threshold(pre_acts, threshold)
    read_once = Stage("threshold", B * F, 4 * B * F + 8 * len(expected[0]) + 4 * B)
    inputs = pre_acts, threshold, len(expected[0])
    return Case("above_threshold", shape, inputs, equal_to(*expected), [read_once])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_threshold(contest, case: Case, contender: str) -> None:
    contenders = dict(CONTENDERS)
    if ON_GPU:
        from saefast.triton_kernels.threshold import above_threshold
        from saefast.triton_kernels.topk import group_maxima

        maxima = group_maxima(case.inputs[0])
        contenders["from maxima"] = lambda *inputs: above_threshold(*inputs, maxima)
    contest(case, contenders, contender)
