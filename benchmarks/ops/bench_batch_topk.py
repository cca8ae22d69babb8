"""BatchTopK: the B * k largest of the whole batch, as a ragged code; it must be that of the reference to the bit.

    pytest benchmarks/ops/bench_batch_topk.py

torch.topk of the flat batch leaves the order of ties open and does not say which token an entry belongs to: the sort of its
positions, the row offsets and the ReLU are part of plain. The native backend has it in `encode_batch_topk` only.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.contest import DEVICE, FEWER_SHAPES, Case, backends, equal_to
from benchmarks.roofline import Stage
from saefast import reference


def plain_batch_topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    B, F = pre_acts.shape
    chosen = pre_acts.flatten().topk(B * k, sorted=False).indices.sort().values
    row_offsets = torch.searchsorted(chosen, torch.arange(B + 1, device=DEVICE) * F, out_int32=True)
    return pre_acts.flatten()[chosen].relu(), (chosen % F).to(torch.int32), row_offsets


CONTENDERS = {"plain": plain_batch_topk, **backends("batch_topk")}


@pytest.fixture(scope="module", params=FEWER_SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = B, _, F, K = FEWER_SHAPES[request.param]
    torch.manual_seed(0)
    values = torch.linspace(-3, 3, B * F, device=DEVICE)
    pre_acts = values[torch.randperm(B * F, device=DEVICE)].view(B, F)
    read_once = Stage("batch_topk", B * F, 4 * B * F + 8 * B * K + 4 * B)
    return Case("batch_topk", shape, (pre_acts, K), equal_to(*reference.batch_topk(pre_acts, K)), [read_once])


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_batch_topk(contest, case: Case, contender: str) -> None:
    contest(case, CONTENDERS, contender)
