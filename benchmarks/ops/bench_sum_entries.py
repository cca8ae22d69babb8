"""Entry sums, the gradient of a bias: plain is index_add_, which needs no groups.

    pytest benchmarks/ops/bench_sum_entries.py

Compared with fp64 before anything is timed.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import SHAPES, Case, backends, close_to, exactly, random_code
from benchmarks.roofline import Stage
from saefast import reference
from saefast.reference import Groups


def plain(groups: Groups, acts: Tensor, indices: Tensor) -> Tensor:
    return acts.new_zeros(len(groups[0]) - 1).index_add_(0, indices.flatten(), acts.flatten())


CONTENDERS = {"plain": plain, **backends("sum_entries", 2)}


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, K = SHAPES[request.param]
    torch.manual_seed(0)
    acts, indices = random_code(shape)
    groups = reference.group_by_latent(acts, indices, F)
    check = close_to(exactly(reference.sum_entries, groups, acts))
    read_once = Stage("sum_entries", B * K, 8 * B * K + 8 * F)  # pairs and entries; offsets and sums
    return Case("sum_entries", shape, (groups, acts, indices), check, [read_once])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_sum_entries(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
