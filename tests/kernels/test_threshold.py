"""The Triton above_threshold against `saefast.reference.above_threshold`, entry by entry.

On a GPU where there is one, else in Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.threshold import above_threshold, threshold_config
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes, needs_gpu

SHAPES = {  # B, F; a tile has 32 groups of 64
    "one token": (1, 300),
    "one latent": (3, 1),
    "under a group": (5, 63),
    "a group": (4, 64),
    "over a group": (4, 65),
    "a tile": (2, 2048),
    "over a tile": (3, 2049),
    "three tiles": (2, 5000),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def random_pre_acts(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Multiples of 1/8, so that every format holds them and many equal a threshold."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng) * 8).round().div(8).to(dtype).to(DEVICE)


def maxima_of(pre_acts: Tensor) -> Tensor:
    B, F = pre_acts.shape
    return torch.nn.functional.pad(pre_acts, (0, -F % 64), value=-INF).view(B, -(-F // 64), 64).amax(2)


def check(pre_acts: Tensor, threshold: Tensor | float, capacity: int | None = None) -> int:
    """Returns the number found."""
    threshold = torch.as_tensor(threshold, dtype=torch.float32, device=DEVICE)
    expected = reference.above_threshold(pre_acts, threshold, capacity)
    results = [above_threshold(pre_acts, threshold, capacity)]
    if threshold.ndim == 0:
        results.append(above_threshold(pre_acts, threshold, capacity, maxima_of(pre_acts)))
    for result in results:
        for got, want in zip(result, expected, strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want), f"{got} != {want}"
    return int(expected[2][-1])


@pytest.mark.each_value
@dtypes
@shapes
def test_one_threshold(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(random_pre_acts(shape, dtype), 0.5)


@pytest.mark.each_value
@dtypes
@shapes
def test_a_threshold_for_each_latent(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pre_acts = random_pre_acts(shape, dtype)
    check(pre_acts, random_pre_acts((1, shape[1]), seed=1)[0].abs())


@pytest.mark.parametrize("threshold", [0.0, -INF, -100.0, 100.0, INF], ids=str)
def test_extreme_thresholds(threshold: float) -> None:
    check(random_pre_acts((4, 150)), threshold)


@pytest.mark.each_value
@pytest.mark.parametrize("spare", [-10_000, -5, -1, 0, 1, 40], ids=lambda spare: f"spare {spare}")
@pytest.mark.parametrize("threshold", [0.5, torch.arange(2100) / 2100], ids=["one", "each"])
def test_capacity(threshold: float | Tensor, spare: int) -> None:
    pre_acts = random_pre_acts((3, 2100))
    found = check(pre_acts, threshold)
    assert found > 100
    check(pre_acts, threshold, capacity=max(0, found + spare))


def test_capacity_that_ends_in_an_earlier_row() -> None:
    pre_acts = random_pre_acts((5, 200))
    first_two = check(pre_acts[:2], 0.5)
    for capacity in (first_two - 1, first_two, first_two + 1):
        check(pre_acts, 0.5, capacity)


@dtypes
def test_rows_without_anything_and_rows_full(dtype: torch.dtype) -> None:
    pre_acts = -random_pre_acts((6, 2100), dtype).abs() - 1
    check(pre_acts, 0.0)
    pre_acts[1] = 2
    pre_acts[4, 2099] = 3
    pre_acts[5, 0] = 3
    assert check(pre_acts, 0.0) == 2102
    check(pre_acts, 0.0, capacity=2101)


def test_latent_above_in_every_token() -> None:
    pre_acts = torch.full((9, 130), -1.0, device=DEVICE)
    pre_acts[:, 128] = 1
    check(pre_acts, 0.0)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("threshold", [0.5, INF], ids=["finite", "infinite"])
def test_nan_counts_as_above(threshold: float, dtype: torch.dtype) -> None:
    """So that the loss becomes NaN and the step is refused. The reference leaves it out."""
    pre_acts = -random_pre_acts((3, 200), dtype).abs()
    pre_acts[1, 70] = NAN
    one = torch.tensor(threshold, device=DEVICE)
    for limit, maxima in ((one, None), (one, maxima_of(pre_acts)), (one.expand(200).contiguous(), None)):
        acts, indices, row_offsets = above_threshold(pre_acts, limit, 2, maxima)
        assert acts.isnan().tolist() == [True, False] and indices.tolist() == [70, 0]
        assert row_offsets.tolist() == [0, 0, 1, 1]


def test_threshold_is_not_rounded() -> None:
    """In fp16 0.9998 is 1: the reference, comparing a tensor with a number, would find nothing."""
    pre_acts = torch.ones(1, 3, dtype=torch.float16, device=DEVICE)
    assert len(above_threshold(pre_acts, torch.tensor(0.9998, device=DEVICE))[0]) == 3


@dtypes
@pytest.mark.parametrize("capacity", [None, 0, 3], ids=str)
def test_no_tokens(capacity: int | None, dtype: torch.dtype) -> None:
    check(random_pre_acts((0, 100), dtype), 0.5, capacity)


def test_row_offsets_stay_within_int32() -> None:
    from saefast.triton_kernels.threshold import fill_above

    pre_acts, threshold = torch.ones(2, 64, device=DEVICE), torch.zeros((), device=DEVICE)
    offsets = torch.tensor([0, 2**31 - 64, 2**31], device=DEVICE)
    groups = (
        torch.zeros(2, 1, dtype=torch.int32, device=DEVICE),
        torch.ones(2, dtype=torch.int32, device=DEVICE),
    )
    acts, indices = torch.zeros(64, device=DEVICE), torch.zeros(64, dtype=torch.int32, device=DEVICE)
    row_offsets = fill_above(pre_acts, threshold, offsets, groups, acts, indices)
    assert row_offsets.tolist() == [0, 2**31 - 64, 2**31 - 1]
    assert acts.eq(1).all() and indices.tolist() == list(range(64))


@needs_gpu
def test_addresses_beyond_int32() -> None:
    """The last row of pre_acts (4 GB) of more than 2^31 elements, with the first ones as bait for a wrapped address."""
    B, F = 2**15 + 1, 2**16
    pre_acts = torch.zeros(B, F, dtype=torch.bfloat16, device=DEVICE)
    pre_acts[-1, -1] = 2
    acts, indices, row_offsets = above_threshold(pre_acts, torch.ones((), device=DEVICE), 1)
    assert acts.tolist() == [2] and indices.tolist() == [F - 1] and row_offsets[-2:].tolist() == [0, 1]


def test_rejects_what_the_kernel_cannot_read() -> None:
    pre_acts, threshold = random_pre_acts((4, 100)), torch.zeros(100, device=DEVICE)
    with pytest.raises(AssertionError, match="pre_acts: expected contiguous"):
        above_threshold(pre_acts.T.contiguous().T, threshold)
    with pytest.raises(AssertionError, match="threshold: expected"):
        above_threshold(pre_acts, threshold[:50])
    with pytest.raises(AssertionError, match="maxima: expected one threshold"):
        above_threshold(pre_acts, threshold, maxima=maxima_of(pre_acts))


@pytest.mark.parametrize("G", [1, 2, 31, 32, 33, 384, 5000])
def test_config_holds_no_more_than_a_row(G: int) -> None:
    config = threshold_config(G)
    assert config.BLOCK_G <= 2 * G and config.BLOCK <= 2 * G
    per_thread = config.BLOCK_G * 64 / (32 * config.num_warps)
    assert per_thread <= 16
