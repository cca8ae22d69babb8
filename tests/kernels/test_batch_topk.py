"""The Triton batch_topk against `saefast.reference.batch_topk`, entry by entry.

On a GPU where there is one, else in Triton's interpreter.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.batch_topk import BatchTopkConfig, batch_topk, find_candidates
from saefast.triton_kernels.topk import group_maxima
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes, needs_gpu

SMALL = BatchTopkConfig(BLOCK=512, BLOCK_ROW=128, n_programs=2)  # several rounds of every loop
SHAPES = {  # B, F, k
    "one token": (1, 300, 4),
    "one value": (1, 1, 1),
    "one latent": (5, 1, 1),
    "k 1": (5, 200, 1),
    "k all": (3, 130, 130),
    "k all but one": (3, 65, 64),
    "under a group": (6, 63, 3),  # one group a row, fewer than k: all values
    "a group": (6, 64, 1),
    "over a group": (6, 65, 2),  # as many groups as k
    "over a tile": (3, 2049, 5),
    "k near the groups": (4, 700, 10),
}


def random_pre_acts(B: int, F: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(B, F, generator=rng).to(dtype).to(DEVICE)


def check(pre_acts: Tensor, k: int, config: BatchTopkConfig | None = None) -> list[int]:
    """Returns the number of entries of each row."""
    got, expected = batch_topk(pre_acts, k, config=config), reference.batch_topk(pre_acts, k)
    for result, want in zip(got, expected, strict=True):
        assert result.dtype == want.dtype
        assert torch.equal(result, want), f"{result} != {want}"
    return got[2].diff().tolist()


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, k = shape
    check(random_pre_acts(B, F, dtype), k)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", [(4, 600, 3), (5, 65, 2), (4, 100, 40)], ids=str)
def test_ties(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, k = shape
    pre_acts = random_pre_acts(B, F, dtype)
    check(pre_acts.round(), k, SMALL)
    check(torch.full_like(pre_acts, 0.5), k, SMALL)
    check(torch.where(pre_acts > 0, 0.0, -0.0).to(dtype), k, SMALL)


@dtypes
def test_all_negative(dtype: torch.dtype) -> None:
    pre_acts = -random_pre_acts(4, 300, dtype).abs() - 1
    acts, _, _ = batch_topk(pre_acts, 3)
    assert (acts == 0).all()
    check(pre_acts, 3)


def n_candidates(pre_acts: Tensor, k: int) -> float:
    """In units of B * k."""
    found = find_candidates(pre_acts, group_maxima(pre_acts), len(pre_acts) * k, BatchTopkConfig())
    return int(found.row_offsets[-1]) / (len(pre_acts) * k)


def test_candidates_are_hardly_more_than_chosen() -> None:
    """1.12 times as many on average over seeds, with a standard deviation of 0.03; of 3 rows it would be 0.1."""
    assert 1 <= n_candidates(random_pre_acts(30, 2049), 5) < 1.3


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("room", [1, 1000], ids=["candidates overflow", "candidates fit"])
def test_clustered(room: int, dtype: torch.dtype) -> None:
    """One row and one group hold what is large."""
    pre_acts = random_pre_acts(4, 330, dtype) * 0.01
    pre_acts[2] += 5
    pre_acts[3, 128:192] += 3
    assert n_candidates(pre_acts, 2) > 40
    assert check(pre_acts, 2, replace(SMALL, room=room)) == [0, 0, 8, 0]


def test_clustered_beyond_a_whole_row() -> None:
    pre_acts = random_pre_acts(4, 330) * 0.01
    pre_acts[2] += 5
    pre_acts[3, 128:192] += 3
    assert check(pre_acts, 95, SMALL)[2:] == [330, 50]


def test_ties_end_between_and_within_rows() -> None:
    """8 values are above, each row holds 5 equal to the threshold: 12, 13 or 14 of them are taken."""
    pre_acts = -random_pre_acts(4, 200).abs()
    for b in range(4):
        pre_acts[b, [3, 60, 64, 130, 199]] = 1
    pre_acts[3, 10:15] = 2
    pre_acts[1, 180:183] = 3
    assert check(pre_acts, 5, SMALL) == [5, 8, 2, 5]  # 12
    pre_acts[1, 182] = -1
    assert check(pre_acts, 5, SMALL) == [5, 7, 3, 5]
    pre_acts[1, 181] = -1
    assert check(pre_acts, 5, SMALL) == [5, 6, 4, 5]


@dtypes
def test_latent_active_in_every_token(dtype: torch.dtype) -> None:
    pre_acts = random_pre_acts(8, 100, dtype)
    pre_acts[:, 99] = 9
    _, indices, _ = batch_topk(pre_acts, 1)
    assert (indices == 99).all()
    check(pre_acts, 2, SMALL)


@dtypes
def test_infinities(dtype: torch.dtype) -> None:
    """-inf, as of masked latents, is selected last, and from the left."""
    pre_acts = torch.full((3, 200), -INF, dtype=dtype, device=DEVICE)
    pre_acts[1, 100] = INF
    pre_acts[2, 150:] = -1
    check(pre_acts, 2, SMALL)
    check(pre_acts[:2], 2, SMALL)
    check(pre_acts, 40, SMALL)


@dtypes
def test_nan_counts_as_infinity(dtype: torch.dtype) -> None:
    pre_acts = random_pre_acts(3, 200, dtype)
    pre_acts[1, 70] = NAN
    acts, indices, row_offsets = batch_topk(pre_acts, 2, config=SMALL)
    assert acts.isnan().sum() == 1
    slot = int(acts.isnan().int().argmax())
    assert indices[slot] == 70 and row_offsets[1] <= slot < row_offsets[2]
    pre_acts[1, 70] = INF
    expected = reference.batch_topk(pre_acts, 2)
    assert torch.equal(indices, expected[1]) and torch.equal(row_offsets, expected[2])


def test_maxima_are_used() -> None:
    """Groups said to hold nothing are not read, so what is in them is not found."""
    pre_acts = random_pre_acts(2, 256).abs()
    maxima = pre_acts.view(2, 4, 64).amax(2)
    assert torch.equal(batch_topk(pre_acts, 2, maxima)[0], batch_topk(pre_acts, 2)[0])
    hidden = maxima.clone()
    hidden[0] = -1
    assert batch_topk(pre_acts, 2, hidden)[2].tolist() == [0, 0, 4]


def test_same_bits_every_time() -> None:
    pre_acts = random_pre_acts(4, 300).round(decimals=1)
    for first, second in zip(batch_topk(pre_acts, 3), batch_topk(pre_acts, 3), strict=True):
        assert torch.equal(first, second)


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    check(random_pre_acts(0, 100, dtype), 2)


@needs_gpu
@pytest.mark.parametrize("k", [1, 1025], ids=["by groups", "all values"])
def test_addresses_beyond_int32(k: int) -> None:
    """The last row of pre_acts (4 GB) of more than 2^31 elements, with the first ones as bait for a wrapped address."""
    B, F = 2**15 + 1, 2**16
    pre_acts = torch.zeros(B, F, dtype=torch.bfloat16, device=DEVICE)
    pre_acts[-1, -1] = 2
    acts, indices, row_offsets = batch_topk(pre_acts, k)
    assert acts[-1] == 2 and indices[-1] == F - 1
    assert row_offsets[-1] - row_offsets[-2] == 1 and acts[:-1].eq(0).all()


def test_rejects_what_the_kernel_cannot_read() -> None:
    pre_acts = random_pre_acts(4, 100)
    with pytest.raises(AssertionError, match="pre_acts: expected contiguous"):
        batch_topk(pre_acts.T.contiguous().T, 2)
    with pytest.raises(AssertionError, match="k: expected"):
        batch_topk(pre_acts, 101)
    with pytest.raises(AssertionError, match="maxima: expected"):
        batch_topk(pre_acts, 2, pre_acts)
