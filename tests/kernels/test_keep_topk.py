"""The Triton keep_topk against `saefast.reference.keep_topk`: on a GPU where there is one, else in the interpreter.

Exact, except that NaN counts as +inf.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.keep_topk import keep_topk
from saefast.triton_kernels.topk import SelectConfig
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes

module = importlib.import_module("saefast.triton_kernels.keep_topk")


def check(pre_acts: Tensor, k: int, count: int, count_dtype: torch.dtype = torch.int64) -> None:
    pre_acts, n = pre_acts.to(DEVICE), torch.tensor(count, dtype=count_dtype, device=DEVICE)
    before = pre_acts.clone()
    want = reference.keep_topk(pre_acts.nan_to_num(nan=INF, posinf=INF, neginf=-INF), k, n)
    got = keep_topk(pre_acts, k, n)
    assert got.dtype == pre_acts.dtype and torch.equal(got, want)
    assert torch.equal(pre_acts.nan_to_num(), before.nan_to_num())


def random_rows(B: int, C: int, seed: int = 0) -> Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(seed))


ROWS: dict[str, Callable[[int, int], Tensor]] = {
    "random": random_rows,
    "ties": lambda B, C: random_rows(B, C).mul(2).round(),
    "all equal": lambda B, C: torch.full((B, C), 2.5),
    "all negative": lambda B, C: -random_rows(B, C).abs(),
    "largest at the end": lambda B, C: random_rows(B, C) + 9 * (torch.arange(C) >= C - 4),
    "all zero": torch.zeros,
    "infinities and nan": lambda B, C: torch.tensor([-INF, NAN, 1.0, INF])[
        (random_rows(B, C) * 9).long() % 4
    ],
}
COUNTS = {
    "none": 0,
    "one": 1,
    "fewer than k": 8,
    "k": 12,
    "some": 150,
    "all but one": 199,
    "all": 200,
    "over": 900,
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("kind", ROWS)
def test_rows(kind: str, dtype: torch.dtype) -> None:
    for count in (150, 200):
        check(ROWS[kind](2, 200).to(dtype).contiguous(), 12, count)


@pytest.mark.each_value
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize("k", [12, 200, 1000], ids=["k below C", "k C", "k over C"])
def test_counts(k: int, count: int) -> None:
    check(random_rows(2, 200).mul(4).round(), k, count)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_count_of_either_width(dtype: torch.dtype) -> None:
    check(random_rows(2, 100), 5, 70, dtype)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("C, k", [(1, 1), (63, 7), (64, 1), (65, 64), (700, 350), (4097, 3), (16500, 30)])
def test_shapes(C: int, k: int, dtype: torch.dtype) -> None:
    check(random_rows(1, C).to(dtype), k, C - C // 10)


@pytest.mark.parametrize("seed", range(8))
def test_fuzz_few_values(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    C = int(torch.randint(1, 500, (), generator=rng))
    rows = torch.randint(-1, 3, (2, C), generator=rng).float()
    k, count = (int(torch.randint(1, C + 1, (), generator=rng)) for _ in range(2))
    check(rows, k, count)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("kind, k, count", [("random", 5, 600), ("ties", 150, 400), ("ties", 700, 690)])
def test_rows_too_long_for_registers(
    kind: str, k: int, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 4 groups, written 2 at a time, the last of them padding; k = 700 is everything."""
    monkeypatch.setattr(module, "select_config", lambda n_groups, itemsize: SelectConfig(4, False, 2, 1))
    check(ROWS[kind](2, 700).to(dtype), k, count)


@dtypes
@pytest.mark.parametrize("B, C", [(0, 200), (3, 0)])
def test_nothing_to_do(B: int, C: int, dtype: torch.dtype) -> None:
    pre_acts = torch.empty(B, C, dtype=dtype, device=DEVICE)
    out = keep_topk(pre_acts, 5, torch.tensor(C, device=DEVICE))
    assert out.shape == (B, C) and out.dtype == dtype


def test_rejects_what_the_kernel_cannot_read() -> None:
    pre_acts, count = random_rows(4, 32).to(DEVICE), torch.tensor(9, device=DEVICE)
    with pytest.raises(AssertionError, match="pre_acts: expected contiguous"):
        keep_topk(pre_acts[:, 1:], 3, count)
    with pytest.raises(AssertionError, match="count: expected a number"):
        keep_topk(pre_acts, 3, count[None])
    with pytest.raises(AssertionError, match="k: expected at least 1"):
        keep_topk(pre_acts, 0, count)
