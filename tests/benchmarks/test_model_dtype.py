"""`benchmarks/activations/model_dtype.py`: it runs at a toy size, and tells a format that is exact from one that is not."""

import pytest
import torch

from benchmarks.activations import model_dtype

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")


def test_a_toy_runs() -> None:
    found = model_dtype.main(["--smoke"])
    assert found["speed"]["bf16, 2 contexts"]["times fp32"][0] > 0
    of = found["effect"]["1"]
    assert (
        1e-4 < of["activations"]["bf16"]["relative error"][0] < of["activations"]["int8"]["relative error"][0]
    )
    assert abs(of["FVU"]["trained on fp32"]["change, %"]) < 1 > abs(of["FVU"]["trained on bf16"]["change, %"])


def test_an_error_is_that_of_the_rows_and_one_row_can_be_left_out() -> None:
    rows = torch.eye(4) * 2
    other = rows.clone()
    other[0, 0] += 1
    found = model_dtype.errors(rows, other)
    assert found["relative error"] == [0.0, 0.0, 0.35]  # the 90th percentile of 0, 0, 0, 0.5
    assert found["squares over variance"] == pytest.approx(1 / 12, abs=1e-3)
    assert found["squares over variance, without the row that changed most"] == 0
