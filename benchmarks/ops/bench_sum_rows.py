"""Row sums, the gradient of a weight matrix: plain is the dense product that autograd makes.

    pytest benchmarks/ops/bench_sum_rows.py

"index_add" adds up the contributions of all entries as one [B * K, D] tensor, as sparsify does without its kernels; the
reference is the best formulation in stock ops, embedding_bag over groups. Compared with fp64 before anything is timed. The
native backend has it inside `update_` only.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import (
    DEVICE,
    DTYPE,
    FEWER_SHAPES,
    Case,
    backends,
    close_to,
    exactly,
    first,
    last_cache,
    random_code,
)
from benchmarks.roofline import Stage, gathered_bytes
from saefast import reference
from saefast.reference import Groups, sum_rows


def plain(groups: Groups, acts: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    dense = rows.new_zeros(len(rows), len(groups[0]) - 1).scatter_(1, indices.long(), acts.to(rows.dtype))
    return dense.T @ rows


def index_add(groups: Groups, acts: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    contributions = acts[:, :, None] * rows[:, None, :]
    sums = acts.new_zeros(len(groups[0]) - 1, rows.shape[1])
    return sums.index_add_(0, indices.flatten(), contributions.flatten(0, 1))


CONTENDERS = {"plain": plain, "index_add": index_add, **backends("sum_rows", 3)}
CONTENDERS["reference"] = first(3, sum_rows)


@pytest.fixture(scope="module", params=FEWER_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, D, F, K = FEWER_SHAPES[request.param]
    torch.manual_seed(0)
    acts, indices = random_code(shape)
    groups, rows = reference.group_by_latent(acts, indices, F), torch.randn(B, D, device=DEVICE).to(DTYPE)
    read = gathered_bytes(B * K, B, rows.itemsize * D, last_cache()) + 12 * B * K
    check = close_to(exactly(sum_rows, groups, acts, rows))
    return Case(
        "sum_rows", shape, (groups, acts, rows, indices), check, [Stage("", 2 * B * K * D, read + 4 * F * D)]
    )


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_sum_rows(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
