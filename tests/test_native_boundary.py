"""What the C++ ops are given is checked where it enters: sizes, dtypes, layouts, the range of every index."""

import numpy as np
import pytest
from native_isa import _C
from test_native_step import step_case

from saefast import native

f4, i4 = np.float32, np.int32


def decode_args(**change: object) -> list[object]:
    args = {
        "acts": np.zeros((3, 2), f4), "indices": np.zeros((3, 2), i4), "row_offsets": None, "W_dec": np.zeros((5, 4), f4),
        "b_dec": np.zeros(4, f4), "x": np.zeros((3, 4), f4), "error": np.zeros((3, 4), f4), "squares": np.zeros(3, f4),
        "threads": 1,
    }  # fmt: skip
    return list((args | change).values())


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "message,change",
    [
        ("indices: expected 0 to 4, got 5 at 3", {"indices": np.array([[0, 1], [2, 5], [0, 0]], i4)}),
        ("indices: expected 0 to 4, got -1 at 0", {"indices": np.array([[-1, 1], [2, 4], [0, 0]], i4)}),
        ("acts: expected shape .3, 2., got .2, 2.", {"acts": np.zeros((2, 2), f4)}),
        ("acts: expected dtype float32, got float64", {"acts": np.zeros((3, 2))}),
        ("indices: expected dtype int32, got int64", {"indices": np.zeros((3, 2), np.int64)}),
        ("W_dec: expected shape .5, 4., got .5, 3.", {"W_dec": np.zeros((5, 3), f4)}),
        ("W_dec: expected a C-contiguous array", {"W_dec": np.zeros((4, 5), f4).T}),
        ("error: expected shape", {"error": np.zeros((3, 3), f4)}),
        ("not writeable", {"error": read_only(np.zeros((3, 4), f4))}),
        ("threads: expected at least 1, got 0", {"threads": 0}),
        ("row_offsets: expected numbers that rise from 0 to at most 6, got 7 at 3",
         {"acts": np.zeros(6, f4), "indices": np.zeros(6, i4), "row_offsets": np.array([0, 2, 4, 7], i4)}),
        ("row_offsets: expected .* got 1 at 2",
         {"acts": np.zeros(6, f4), "indices": np.zeros(6, i4), "row_offsets": np.array([0, 2, 1, 6], i4)}),
    ],
)  # fmt: skip
def test_boundary_of_decode(message: str, change: dict) -> None:
    _C.decode_error(*decode_args())
    with pytest.raises((ValueError, TypeError), match=message):
        _C.decode_error(*decode_args(**change))


def test_boundary_of_update() -> None:
    weights, args, numbers = step_case("fixed", 16, True)
    params, batch = native._params(weights), native._numpy(*args[:2], args[2].flatten(), *args[5])
    aux, numbers_list = native._numpy(*args[7]), numbers.tolist()

    def call(params=params, batch=batch, aux=aux):
        return _C.update(params, batch, 0.5, aux, numbers_list, 2)

    def changed(arrays, i, value):
        return (*arrays[:i], value, *arrays[i + 1 :])

    assert np.isfinite(call())
    for message, options in (
        ("weights: expected four", {"params": params[:3]}),
        (
            r"W_dec: expected 2 dimensions, got shape \(16,\)",
            {"params": changed(params, 2, params[3][:1] + params[2][1:])},
        ),
        (r"batch: expected six", {"batch": batch[:5]}),
        ("error: expected shape", {"batch": changed(batch, 1, batch[1][:-1])}),
        ("offsets: expected shape", {"batch": changed(batch, 3, batch[3][:-1])}),
        ("offsets: expected numbers that rise", {"batch": changed(batch, 3, batch[3][::-1].copy())}),
        ("pairs: expected 0 to", {"batch": changed(batch, 4, batch[4] + 1000)}),
        ("tokens: expected 0 to 12, got", {"batch": changed(batch, 5, batch[5] - 1)}),
        ("aux.slots: expected -1 to 2, got 3", {"aux": changed(aux, 0, np.full(40, 3, i4))}),
        ("aux: expected five", {"aux": aux[:4]}),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call(**options)


def test_boundary_of_the_blocks() -> None:
    block = _C.TopkBlock(3, 4)
    with pytest.raises(ValueError, match="the number of rows: expected 3 to 3, got 2"):
        block.feed(np.zeros((2, 5), f4))
    block.feed(np.zeros((3, 2), f4))
    with pytest.raises(ValueError, match=r"k: expected 1 to 2 \(the columns fed\), got 4"):
        block.finish(np.zeros((3, 4), f4), np.zeros((3, 4), i4))
    batch = _C.BatchTopk(6, 10)
    with pytest.raises(ValueError, match="column: expected 0 to 5, got 6"):
        batch.feed(np.zeros((3, 5), f4), 0, 6)
    batch.feed(np.zeros((3, 5), f4), 0, 5)
    with pytest.raises(ValueError, match="row_offsets: expected at least 4 numbers, got 3"):
        batch.finish(np.zeros(6, f4), np.zeros(6, i4), np.zeros(3, i4))
    with pytest.raises(ValueError, match="thresholds: expected shape"):
        _C.AboveBlock(3).feed(np.zeros((3, 5), f4), np.zeros(4, f4))
    for make in (lambda: _C.TopkBlock(-1, 4), lambda: _C.TopkBlock(3, 0), lambda: _C.BatchTopk(0, 4)):
        with pytest.raises(ValueError, match="expected"):
            make()
