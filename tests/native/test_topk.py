"""The C++ top-k agrees with the reference bit for bit, for every instruction set that this machine runs."""

import importlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import reference

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
native = importlib.import_module("saefast.native")
INF = float("inf")


def assert_parity(pre_acts: Tensor, k: int, threads: int = 1) -> None:
    want = reference.topk(pre_acts, k)
    for isa in _C.isas():
        acts, indices = (torch.from_numpy(a) for a in _C.topk(pre_acts.numpy(), k, threads, isa))
        assert indices.dtype == torch.int32 and torch.equal(indices, want[1]), f"indices, {isa}"
        assert torch.equal(acts.view(torch.int32), want[0].view(torch.int32)), f"bits of the values, {isa}"


ROWS: dict[str, Callable[[int, int], Tensor]] = {
    "random": lambda B, F: torch.randn(B, F),
    "ties": lambda B, F: torch.randint(-3, 4, (B, F)).float(),
    "all equal": lambda B, F: torch.full((B, F), 2.5),
    "all negative": lambda B, F: -1 - torch.rand(B, F),
    "ascending": lambda B, F: torch.randn(B, F).sort(dim=1).values,
    "descending": lambda B, F: torch.randn(B, F).sort(dim=1, descending=True).values,
    "mostly zero": lambda B, F: torch.randn(B, F).sub(2).relu(),
    "signed zeros": lambda B, F: torch.where(torch.rand(B, F) < 0.5, 0.0, -0.0),
    "all -inf": lambda B, F: torch.full((B, F), -INF),
    "infinities": lambda B, F: torch.tensor([-INF, -1.0, 0.0, 1.0, INF])[torch.randint(5, (B, F))],
    "denormals": lambda B, F: torch.randint(-2, 3, (B, F)) * 1e-45,
    "large values late": lambda B, F: torch.cat([torch.zeros(B, F - F // 4), torch.rand(B, F // 4)], dim=1),
}


@pytest.mark.parametrize("F", [1, 7, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("kind", ROWS)
def test_parity(kind: str, F: int) -> None:
    torch.manual_seed(F)
    pre_acts = ROWS[kind](5, F)
    for k in {1, min(8, F), min(32, F), (F + 1) // 2, F}:
        assert_parity(pre_acts, k)


@pytest.mark.parametrize("B", [0, 1])
def test_few_rows(B: int) -> None:
    assert_parity(torch.randn(B, 100), 10, threads=3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_does_not_change_the_result(threads: int) -> None:
    torch.manual_seed(0)
    assert_parity(torch.randn(800, 4097), 32, threads)  # enough elements for three threads


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    """Few distinct values: ties are where a selection goes wrong."""
    F = data.draw(st.integers(1, 700))
    k = data.draw(st.integers(1, F))
    value = st.sampled_from([-INF, -2.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 3e38, INF])
    row = data.draw(st.lists(value | st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    assert_parity(torch.from_numpy(np.array(row, np.float32)[rng.integers(len(row), size=(3, F))]), k)


def test_backend_function() -> None:
    pre_acts = torch.randn(6, 300)
    cases = {
        "contiguous": pre_acts,
        "transposed": torch.randn(300, 6).T,
        "strided": pre_acts[:, ::3],
        "fp64": pre_acts.double(),
        "bf16": pre_acts.bfloat16(),
        "requires grad": pre_acts.clone().requires_grad_(),
    }
    for name, case in cases.items():
        got, want = native.topk(case, 9), reference.topk(case, 9)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), name
        assert got[0].dtype == want[0].dtype and got[0].requires_grad == want[0].requires_grad, name
    assert native.NAME == "native"


@pytest.mark.parametrize("F, k", [(50, 50), (1000, 8), (4097, 600)])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_names_the_row(F: int, k: int, sign: int) -> None:
    for column in {0, F // 2, F - 1}:
        pre_acts = torch.randn(800, F)
        pre_acts[[417, 731], column] = torch.tensor(float("nan")).copysign(torch.tensor(float(sign)))
        for isa in _C.isas():
            for threads in 1, 3:
                with pytest.raises(ValueError, match="pre_acts: expected no NaN, got one in row 417"):
                    _C.topk(pre_acts.numpy(), k, threads, isa)
    with pytest.raises(ValueError, match="row 1"):
        native.topk(torch.tensor([[1.0], [float("nan")]]), 1)
    with pytest.raises(ValueError, match="row 0"):
        native.topk(torch.full((2, F), float("nan")), k)


GOOD = np.zeros((4, 10), np.float32)


@pytest.mark.parametrize(
    "error, message, args",
    [
        (TypeError, "pre_acts: expected dtype float32, got float64", (GOOD.astype(np.float64), 2, 1)),
        (ValueError, r"pre_acts: expected 2 dimensions, got shape \(10,\)", (GOOD[0], 2, 1)),
        (ValueError, r"pre_acts: expected a C-contiguous array, got strides \(4, 40\)", (GOOD.T, 2, 1)),
        (TypeError, "pre_acts", ([[1.0]], 1, 1)),
        (ValueError, r"k: expected 1 to 10 \(the columns of pre_acts\), got 0", (GOOD, 0, 1)),
        (ValueError, r"k: expected 1 to 10 \(the columns of pre_acts\), got 11", (GOOD, 11, 1)),
        (ValueError, "threads: expected 1 to 4096, got 0", (GOOD, 1, 0)),
        (ValueError, "isa: expected 'auto' or one of .*'plain'.*, got 'mmx'", (GOOD, 1, 1, "mmx")),
    ],
)
def test_boundary_errors(error: type[Exception], message: str, args: tuple) -> None:
    with pytest.raises(error, match=message):
        _C.topk(*args)


def test_missing_extension_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "saefast._C", None)  # importing it now raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, "saefast.native")
    with pytest.raises(ImportError, match=r"saefast\._C is not built \(no compiler at install time\?\)"):
        importlib.import_module("saefast.native")
