"""The Triton row sums against `saefast.reference.sum_rows`: on a GPU where there is one, else interpreted.

Fresh memory is NaN (conftest.py), so what a kernel leaves unwritten cannot look like a result.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.reference import sum_rows as spec
from saefast.triton_kernels.sum_rows import sum_rows, sum_rows_config
from tests.helpers.kernels import DEVICE, assert_fp32_sum, dtypes, needs_gpu

Groups = tuple[Tensor, Tensor, Tensor]
Case = tuple[Groups, Tensor, Tensor]


def random_indices(B: int, F: int, K: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(B, F, generator=rng).argsort(dim=1)[:, :K].to(torch.int32).contiguous()


def case_of(indices: Tensor, D: int, F: int, dtype: torch.dtype, acts: Tensor | None = None) -> Case:
    """Groups of `indices` (active where acts > 0) on the device, with weights of both signs and random rows."""
    rng = torch.Generator().manual_seed(1)
    acts = torch.ones(indices.shape) if acts is None else acts
    groups = reference.group_by_latent(acts, indices, F)
    per_pair, rows = torch.randn(indices.shape, generator=rng), torch.randn(len(indices), D, generator=rng)
    offsets, pairs, tokens = (t.to(DEVICE) for t in groups)
    return (offsets, pairs, tokens), per_pair.to(dtype).to(DEVICE), rows.to(dtype).to(DEVICE)


def check(case: Case, tiny: float = 1e-6) -> Tensor:
    """The error against fp64, where nothing but the sum rounds, is that of fp32 even with 16-bit inputs."""
    groups, per_pair, rows = case
    return assert_fp32_sum(sum_rows(*case), spec(groups, per_pair.double(), rows.double()), tiny)


SHAPES = {  # B, D, F, K; on the right the tiles of sum_rows_config in fp32
    "576": (5, 576, 12, 4),  # 4 x 128, five of them, the last half padding
    "768": (6, 768, 10, 4),  # 4 x 256, three of them
    "2304": (4, 2304, 8, 5),  # 4 x 512, padded
    "odd": (7, 130, 51, 7),  # 4 x 128; all but two columns of the second are padding
    "one column": (40, 1, 9, 5),  # 32 x 1
    "seven columns": (9, 7, 33, 4),
    "eight columns": (9, 8, 32, 5),
    "k 1": (6, 64, 17, 1),
    "k all": (9, 48, 13, 13),  # every latent in every token
    "one token": (1, 96, 40, 8),
    "one latent": (5, 20, 1, 1),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    B, D, F, K = shape
    check(case_of(random_indices(B, F, K), D, F, dtype))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_entries_around_the_block(count: int) -> None:
    """Latent 1 has `count` entries, with blocks of 4; latent 2 none."""
    indices = torch.zeros(12, 1, dtype=torch.int32)
    indices[:count] = 1
    case = case_of(indices, 256, 3, torch.float32)
    assert sum_rows_config(256, 4).BLOCK_N == 4
    assert (check(case)[2] == 0).all()


@dtypes
def test_latent_active_in_every_token(dtype: torch.dtype) -> None:
    indices = random_indices(50, 31, 4)
    indices[:, 1] = 31
    check(case_of(indices, 64, 32, dtype))


@dtypes
def test_inactive_entries_are_left_out(dtype: torch.dtype) -> None:
    """Entries of activation 0 are in no group: their weights must not be read, so they are NaN here."""
    indices, acts = random_indices(8, 20, 6), torch.ones(8, 6)
    acts[:, 4:], acts[3] = 0, -1
    groups, per_pair, rows = case_of(indices, 40, 20, dtype, acts)
    per_pair[(acts <= 0).to(DEVICE)] = torch.nan
    check((groups, per_pair, rows))


def test_only_what_is_listed_is_read() -> None:
    """What `group_by_latent` leaves after the last group may be anything."""
    acts = torch.ones(6, 3)
    acts[2:] = 0
    groups, per_pair, rows = case_of(random_indices(6, 9, 3), 24, 9, torch.float32, acts)
    want = sum_rows(groups, per_pair, rows)
    used = int(groups[0][-1])
    groups[1][used:], groups[2][used:] = 2**31 - 1, 2**31 - 1
    assert used == 6 and torch.equal(sum_rows(groups, per_pair, rows), want)


def test_no_active_entry() -> None:
    case = case_of(random_indices(4, 9, 3), 24, 9, torch.float32, torch.zeros(4, 3))
    assert torch.equal(sum_rows(*case), torch.zeros(9, 24, device=DEVICE))


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    empty = torch.empty(0, dtype=torch.int32, device=DEVICE)
    groups = torch.zeros(8, dtype=torch.int32, device=DEVICE), empty, empty
    no_weights, no_rows = (torch.empty(0, n, dtype=dtype, device=DEVICE) for n in (3, 24))
    assert torch.equal(sum_rows(groups, no_weights, no_rows), torch.zeros(7, 24, device=DEVICE))


@dtypes
def test_weights_wider_than_rows(dtype: torch.dtype) -> None:
    groups, per_pair, rows = case_of(random_indices(9, 16, 4), 40, 16, dtype)
    check((groups, per_pair.float() * 1.0001, rows))


def test_same_bits_every_time() -> None:
    case = case_of(random_indices(20, 24, 6), 100, 24, torch.float32)
    assert torch.equal(sum_rows(*case), sum_rows(*case))


@needs_gpu
def test_addresses_beyond_int32() -> None:
    """The last of more than 2^31 elements of rows, with the first ones as bait for a wrapped address."""
    D, B = 4096, 2**19 + 8
    rows = torch.zeros(B, D, dtype=torch.bfloat16, device=DEVICE)
    rows[-4:] = torch.arange(1, 5, device=DEVICE)[:, None]
    offsets = torch.tensor([0, 0, 4], dtype=torch.int32, device=DEVICE)
    pairs = torch.arange(4, dtype=torch.int32, device=DEVICE)
    tokens = torch.arange(B - 4, B, dtype=torch.int32, device=DEVICE)
    out = sum_rows((offsets, pairs, tokens), torch.ones(4, device=DEVICE), rows)
    assert (out[0] == 0).all() and (out[1] == 10).all()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [1, 7, 64, 100, 130, 576, 768, 1000, 2304, 4096, 5000])
def test_config_covers_every_column_with_little_padding(D: int, itemsize: int) -> None:
    config = sum_rows_config(D, itemsize)
    padded = -(-D // config.BLOCK_D) * config.BLOCK_D
    assert D <= padded <= max(D + D // 8, D + 127)
    assert config.BLOCK_N * config.BLOCK_D * itemsize <= config.num_warps * 32 * 16 * 4


def test_rejects_what_the_kernel_cannot_read() -> None:
    groups, per_pair, rows = case_of(random_indices(4, 9, 3), 24, 9, torch.float32)
    with pytest.raises(AssertionError, match="rows: expected contiguous"):
        sum_rows(groups, per_pair, rows.T.contiguous().T)
    with pytest.raises(AssertionError, match="per_pair: expected 12 entries, got 8"):
        sum_rows(groups, per_pair[:, :2].contiguous(), rows)
    with pytest.raises(AssertionError, match=r"pairs: expected torch.int32, got torch.int64"):
        sum_rows((groups[0], groups[1].long(), groups[2]), per_pair, rows)
