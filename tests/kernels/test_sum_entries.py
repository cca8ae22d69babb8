"""The Triton entry sums against `saefast.reference.sum_entries`: on a GPU where there is one, else interpreted.

Fresh memory is NaN (conftest.py).
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.sum_entries import BLOCK_F, BLOCK_N, sum_entries, sum_entries_bytes
from tests.helpers.kernels import DEVICE, assert_fp32_sum, dtypes
from tests.helpers.sparse_codes import Code, code_to, fixed_code, ragged_code

Groups = tuple[Tensor, Tensor, Tensor]


def case_of(code: Code, F: int, dtype: torch.dtype = torch.float32) -> tuple[Groups, Tensor]:
    """Groups of a code, and a number of either sign per entry."""
    acts, indices, row_offsets = code_to(code, DEVICE)
    per_pair = torch.randn(acts.shape, generator=torch.Generator().manual_seed(3))
    return reference.group_by_latent(acts, indices, F, row_offsets), per_pair.to(dtype).to(DEVICE)


def check(groups: Groups, per_pair: Tensor) -> Tensor:
    """The error against fp64, where nothing but the sum rounds, is that of fp32 even with 16-bit inputs."""
    return assert_fp32_sum(sum_entries(groups, per_pair), reference.sum_entries(groups, per_pair.double()))


SHAPES = {  # B, F, K
    "few": (6, 5, 2),
    "one block of latents": (9, BLOCK_F, 4),
    "one more": (9, BLOCK_F + 1, 4),
    "several blocks of entries": (200, 40, 30),
    "one token": (1, 40, 8),
    "one latent": (5, 1, 1),
    "k all": (9, 13, 13),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(*case_of(fixed_code(*shape), shape[1], dtype))


def test_ragged_code() -> None:
    """What `group_by_latent` leaves after the last group may be anything, and is not read."""
    (offsets, pairs, tokens), per_pair = case_of(ragged_code([3, 0, 7, 1, 5], 20, unused=4), 20)
    used = int(offsets[-1])
    assert used == 16 and len(pairs) == 20
    want = check((offsets, pairs, tokens), per_pair)
    pairs[used:], per_pair[used:] = 2**31 - 1, torch.nan
    assert torch.equal(sum_entries((offsets, pairs, tokens), per_pair), want)


@pytest.mark.parametrize("count", [0, 1, BLOCK_N - 1, BLOCK_N, BLOCK_N + 1, 3 * BLOCK_N])
def test_one_latent_among_idle_ones(count: int) -> None:
    indices = torch.full((800, 1), 7, dtype=torch.int32)
    acts = (torch.arange(800) < count).float()[:, None]
    got = check(*case_of((acts, indices, None), 20))
    assert (got[torch.arange(20) != 7] == 0).all()


def test_nan_stays_with_its_latent() -> None:
    groups, per_pair = case_of(fixed_code(12, 20, 4), 20)
    latent, pair = 5, groups[1][groups[0][5]]
    per_pair.view(-1)[pair] = torch.nan
    assert sum_entries(groups, per_pair).isnan().nonzero().flatten().tolist() == [latent]


def test_nothing_is_active() -> None:
    acts, indices, _ = fixed_code(6, 20, 3)
    groups, per_pair = case_of((0 * acts, indices, None), 20)
    assert torch.equal(sum_entries(groups, per_pair * torch.nan), torch.zeros(20, device=DEVICE))


def test_no_tokens() -> None:
    empty = torch.empty(0, dtype=torch.int32, device=DEVICE)
    groups = torch.zeros(8, dtype=torch.int32, device=DEVICE), empty, empty
    assert torch.equal(sum_entries(groups, torch.empty(0, 3, device=DEVICE)), torch.zeros(7, device=DEVICE))


def test_same_bits_every_time() -> None:
    case = case_of(fixed_code(60, 24, 6), 24)
    assert torch.equal(sum_entries(*case), sum_entries(*case))


def test_bytes() -> None:
    assert sum_entries_bytes(100, 10) == 880 and sum_entries_bytes(100, 10, 2) == 680


def test_rejects_what_the_kernel_cannot_read() -> None:
    groups, per_pair = case_of(fixed_code(4, 9, 3), 9)
    with pytest.raises(AssertionError, match="per_pair: expected 12 entries, got 8"):
        sum_entries(groups, per_pair[:, :2].contiguous())
    with pytest.raises(AssertionError, match="per_pair: expected contiguous"):
        sum_entries(groups, per_pair.T.contiguous().T)
    with pytest.raises(AssertionError, match=r"pairs: expected torch.int32, got torch.int64"):
        sum_entries((groups[0], groups[1].long(), groups[2]), per_pair)
