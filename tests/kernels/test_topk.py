"""The Triton top-k against `saefast.reference.topk`: on a GPU where there is one, else in Triton's interpreter.

The selection is exact, so everything is compared bit for bit, after sorting each row by index. NaN counts as +inf,
which the reference does not know: it gets +inf in its place.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.topk import (
    SelectConfig,
    by_groups,
    group_maxima,
    select_config,
    select_topk,
    topk,
)
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes, needs_gpu

module = importlib.import_module("saefast.triton_kernels.topk")
Code = tuple[Tensor, Tensor]


def by_maxima(pre_acts: Tensor, k: int) -> Code:
    return select_topk(pre_acts, group_maxima(pre_acts), k)


def by_index(code: Code) -> Code:
    order = code[1].argsort(dim=1)
    return code[0].gather(1, order), code[1].gather(1, order)


def check(
    pre_acts: Tensor, k: int, functions: tuple[Callable[[Tensor, int], Code], ...] = (topk, by_maxima)
) -> None:
    want = by_index(reference.topk(pre_acts.nan_to_num(nan=INF, posinf=INF, neginf=-INF), k))
    for function in functions:
        got = function(pre_acts, k)
        assert got[0].dtype == pre_acts.dtype and got[1].dtype == torch.int32
        assert torch.equal(by_index(got)[1], want[1]), f"{function.__name__}: indices"
        assert torch.equal(by_index(got)[0], want[0]), f"{function.__name__}: values"


def random_rows(B: int, F: int, seed: int = 0) -> Tensor:
    return torch.randn(B, F, generator=torch.Generator().manual_seed(seed))


def clustered(B: int, F: int, first: int, last: int) -> Tensor:
    """The largest numbers, some of them equal, in the columns from `first` to `last`."""
    rows = random_rows(B, F)
    rows[:, first:last] = rows[:, first:last].mul(4).round() + 40
    return rows


ROWS: dict[str, Callable[[int, int], Tensor]] = {
    "random": random_rows,
    "ties": lambda B, F: random_rows(B, F).round(),
    "two values": lambda B, F: (random_rows(B, F) > 1).float(),
    "all equal": lambda B, F: torch.full((B, F), 2.5),
    "all negative": lambda B, F: -random_rows(B, F).abs().mul(8).round() - 1,
    "negative ties at the end": lambda B, F: -1 - (torch.arange(F) < F // 2).float().expand(B, F),
    "one group": lambda B, F: clustered(B, F, 64, 128),
    "adjacent groups": lambda B, F: clustered(B, F, 100, 200),
    "last columns": lambda B, F: clustered(B, F, F - 5, F),
    "ascending": lambda B, F: random_rows(B, F).sort(dim=1).values,
    "signed zeros": lambda B, F: torch.where(random_rows(B, F) > 0, 0.0, -0.0),
    "all -inf": lambda B, F: torch.full((B, F), -INF),
    "infinities": lambda B, F: torch.tensor([-INF, -1.0, 0.0, 1.0, INF])[(random_rows(B, F) * 9).long() % 5],
    "denormals": lambda B, F: random_rows(B, F).round() * 6e-8,  # in fp16
    "nan": lambda B, F: random_rows(B, F).where(
        random_rows(B, F, 1) < 2, torch.tensor([[NAN], [-NAN], [INF]])[:B]
    ),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("kind", ROWS)
def test_rows(kind: str, dtype: torch.dtype) -> None:
    """11 groups, so that `topk` takes the row whole."""
    pre_acts = ROWS[kind](2, 650).to(dtype).contiguous().to(DEVICE)
    check(pre_acts, 6)


SHAPES = {  # B, F, k
    "one": (1, 1, 1),
    "F under 64": (4, 37, 5),
    "F 63": (2, 63, 2),
    "F 64": (2, 64, 3),
    "F 65": (2, 65, 2),
    "F 513": (2, 513, 9),
    "k 1": (3, 700, 1),
    "k all": (2, 130, 130),
    "k groups": (2, 450, 8),
    "k over groups": (2, 450, 9),
    "by groups": (2, 2100, 8),
    "by 128 groups": (1, 40000, 128),  # written in two parts
    "one token": (1, 1000, 12),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    B, F, k = shape
    check(random_rows(B, F).to(dtype).to(DEVICE), k)


@pytest.mark.parametrize("seed", range(8))
def test_fuzz_few_values(seed: int) -> None:
    """Ties are where a selection goes wrong: at the k-th value, within groups and across them."""
    rng = torch.Generator().manual_seed(seed)
    F, n_values = (int(torch.randint(1, top, (), generator=rng)) for top in (900, 5))
    values = torch.randn(n_values + 1, generator=rng)
    rare = torch.rand(2, F, generator=rng) < 0.02
    rows = torch.where(rare, values[-1] + 1, values[torch.randint(n_values, (2, F), generator=rng)])
    for k in {int(torch.randint(1, top + 1, (), generator=rng)) for top in (-(-F // 64), F)}:
        check(rows.to(DEVICE), k)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("k, kind", [(3, "random"), (7, "ties"), (11, "nan"), (300, "ties")])
def test_rows_too_long_for_registers(
    k: int, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 4 groups, written 2 at a time; the last are padding, in the row and (k = 7) in the list of groups."""
    monkeypatch.setattr(module, "select_config", lambda n_groups, itemsize: SelectConfig(4, False, 2, 1))
    check(ROWS[kind](1, 840).to(dtype).contiguous().to(DEVICE), k)


def test_long_row() -> None:
    """260 groups of fp32 do not stay in registers."""
    assert not select_config(260, 4).RESIDENT
    check(random_rows(1, 260 * 64).mul(50).round().to(DEVICE), 261)


def test_ascending_order_of_index() -> None:
    for F, k in (650, 6), (2100, 8):
        indices = topk(random_rows(3, F).to(DEVICE), k)[1]
        assert (indices.diff(dim=1) > 0).all()


def test_same_bits_every_time() -> None:
    pre_acts = random_rows(4, 2100).round().to(DEVICE)
    first, second = topk(pre_acts, 8), topk(pre_acts, 8)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    for F, k in (650, 6), (2100, 8):
        acts, indices = topk(torch.empty(0, F, dtype=dtype, device=DEVICE), k)
        assert acts.shape == indices.shape == (0, k) and acts.dtype == dtype and indices.dtype == torch.int32


@dtypes
def test_slices_of_columns(dtype: torch.dtype) -> None:
    """Maxima of one chunk of latents at a time, into a slice; rows of both lie apart. Nothing else is written."""
    pre_acts = random_rows(3, 1000).to(dtype).to(DEVICE)
    maxima = torch.full((3, 20), -7.0, dtype=dtype, device=DEVICE)
    for start in range(0, 1000, 384):
        chunk = pre_acts[:, start : start + 384]
        out = maxima[:, 2 + start // 64 : 2 + -(-(start + chunk.shape[1]) // 64)]
        assert group_maxima(chunk, out=out) is out
    assert torch.equal(maxima[:, 2:18], group_maxima(pre_acts))
    assert (maxima[:, :2] == -7).all() and (maxima[:, 18:] == -7).all()
    got, want = select_topk(pre_acts, maxima[:, 2:18], 9), reference.topk(pre_acts, 9)
    assert torch.equal(by_index(got)[1], by_index(want)[1])
    check(pre_acts[:, 100:900], 5)


@needs_gpu
def test_addresses_beyond_int32() -> None:
    pre_acts = torch.full((2**13 + 1, 2**18), -1.0, dtype=torch.bfloat16, device=DEVICE)
    pre_acts[-1, 7::1000] = 3
    check(pre_acts, 64)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_config_covers_the_row(itemsize: int) -> None:
    for n_groups in (1, 2, 7, 8, 63, 64, 65, 128, 256, 257, 512, 513, 5000):
        config = select_config(n_groups, itemsize)
        assert config.ROWS % config.CHUNK == 0 and config.CHUNK * 64 <= 2**15
        assert not config.RESIDENT or n_groups <= config.ROWS <= 2048 // itemsize


def test_by_groups_needs_k_groups() -> None:
    assert by_groups(24576, 32, 2) and by_groups(262144, 64, 2) and by_groups(65536, 512, 2)
    assert not by_groups(4608, 32, 2)
    assert not any(by_groups(F, k, 2) for F in (1, 64, 65, 100000) for k in (F, -(-F // 64) + 1))


def test_rejects_what_the_kernel_cannot_read() -> None:
    pre_acts = random_rows(4, 128).to(DEVICE)
    with pytest.raises(AssertionError, match=r"pre_acts: expected stride\(1\) == 1"):
        topk(pre_acts.T, 2)
    with pytest.raises(AssertionError, match=r"pre_acts: expected stride\(1\) == 1"):
        group_maxima(pre_acts[:, ::2])
    with pytest.raises(AssertionError, match=r"out: expected stride\(1\) == 1"):
        group_maxima(pre_acts, out=torch.empty(2, 4, device=DEVICE).T)
    with pytest.raises(AssertionError, match=r"maxima: expected \(4, 2\), got \(4, 1\)"):
        select_topk(pre_acts, group_maxima(pre_acts)[:, :1], 2)
    for k in (0, 129):
        with pytest.raises(AssertionError, match=f"k: expected 1 to 128, got {k}"):
            topk(pre_acts, k)
