"""The `isa` fixture: the ops of saefast.native on each instruction set that this machine runs."""

from functools import partial

import pytest

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
WITH_ISA = ["topk", "centre", "decode_error", "grad_top_acts", "update", "row_grads", "adam_rows"]
WITH_ISA += ["TopkBlock", "BatchTopk", "AboveBlock"]


@pytest.fixture(params=_C.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in WITH_ISA:
        monkeypatch.setattr(_C, name, partial(getattr(_C, name), isa=request.param))
    return request.param
