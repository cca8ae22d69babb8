"""What the C++ ops are given is checked where it enters: sizes, dtypes, layouts, the range of every index."""

import numpy as np
import pytest
import torch

from saefast import native
from saefast.native.arrays import numpy_of
from tests.helpers.native_cases import FORMS, case_of, step_case
from tests.helpers.native_isa import _C
from tests.helpers.sparse_codes import fixed_code

f4, i4 = np.float32, np.int32


def decode_args(**change: object) -> list[object]:
    args = {
        "acts": np.zeros((3, 2), f4),
        "indices": np.zeros((3, 2), i4),
        "row_offsets": None,
        "W_dec": np.zeros((5, 4), f4),
        "b_dec": np.zeros(4, f4),
        "x": np.zeros((3, 4), f4),
        "error": np.zeros((3, 4), f4),
        "squares": np.zeros(3, f4),
        "threads": 1,
    }
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
        ("threads: expected 1 to 4096, got 0", {"threads": 0}),
        (
            "row_offsets: expected numbers that rise from 0 to at most 6, got 7 at 3",
            {"acts": np.zeros(6, f4), "indices": np.zeros(6, i4), "row_offsets": np.array([0, 2, 4, 7], i4)},
        ),
        (
            "row_offsets: expected .* got 1 at 2",
            {"acts": np.zeros(6, f4), "indices": np.zeros(6, i4), "row_offsets": np.array([0, 2, 1, 6], i4)},
        ),
    ],
)
def test_boundary_of_decode(message: str, change: dict) -> None:
    _C.decode_error(*decode_args())
    with pytest.raises((ValueError, TypeError), match=message):
        _C.decode_error(*decode_args(**change))


def test_boundary_of_update() -> None:
    weights, args, numbers = step_case("fixed", 16, True)
    params, batch = native._params(weights), numpy_of(*args[:2], args[2].flatten(), *args[5])
    aux, numbers_list = numpy_of(*args[7]), native._numbers(numbers)

    def call(params=params, batch=batch, aux=aux):
        return _C.update(params, batch, 0.5, aux, None, numbers_list, 2)

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


def changed(arrays: tuple, i: int, value: object) -> tuple:
    return (*arrays[:i], value, *arrays[i + 1 :])


def test_boundary_of_what_is_given() -> None:
    """40 latents, 13 tokens in 3 parts, rows of W_enc of 7 and of W_dec of 66 columns."""
    weights, args, numbers, made = case_of(fixed_code(13, 40, 5), FORMS["in parts, wider"], 40, with_aux=True)
    params, batch = native._params(weights), numpy_of(*args[:2], args[2].flatten(), *args[5])
    inputs = {"batch": batch, "aux": numpy_of(*args[7]), "given": native._given(made)}
    plain, grads = native._numbers(numbers), numpy_of(*(torch.empty(part[0].shape) for part in params))

    def calls(numbers=plain, grads=grads, **options):
        batch, aux, given = (inputs | options).values()
        _C.row_grads(params, batch, 0.5, aux, given, numbers, grads, 2)
        _C.update(params, batch, 0.5, aux, given, numbers, 2)

    calls()
    given, aux, tokens = inputs["given"], inputs["aux"], batch[5]

    def with_given(i: int, value: object) -> dict[str, object]:
        return {"given": changed(given, i, value)}

    for message, options in (
        ("given: expected five", {"given": given[:4]}),
        ("given.grad_pre: expected shape .65,., got .64,.", with_given(0, given[0][:-1])),
        ("given.grad_pre: expected dtype float32", with_given(0, given[0].astype(np.float64))),
        ("given.bias: expected shape .40,.", with_given(1, given[1][:-1])),
        ("given.push: expected 1 dimensions", with_given(2, given[2][:, None])),
        ("given.push_row: expected shape .7,., got .66,.", with_given(3, np.zeros(66, f4))),
        (
            "given.pull: expected a number of columns that divides 66, got 4",
            with_given(4, np.zeros((40, 4), f4)),
        ),
        (
            "given.pull: expected a number of columns that divides 66, got 0",
            with_given(4, np.zeros((40, 0), f4)),
        ),
        ("given.pull: expected shape .40, 3., got .41, 3.", with_given(4, np.zeros((41, 3), f4))),
        ("given.pull: expected a C-contiguous", with_given(4, np.zeros((3, 40), f4).T)),
        ("error: expected a multiple of 13 rows, got 38", {"batch": changed(batch, 1, batch[1][:-1])}),
        ("error: expected a multiple of 13 rows, got 0", {"batch": changed(batch, 1, batch[1][:0])}),
        ("error: expected shape .39, 66.", {"batch": changed(batch, 1, np.zeros((39, 7), f4))}),
        ("error: expected shape .13, 66., got .39, 66.", {"given": None}),
        ("tokens: expected 0 to 38, got", {"batch": changed(batch, 5, tokens + 39)}),
        ("tokens: expected 0 to 25, got", {"batch": changed(batch, 1, batch[1][:26])}),
        ("aux.W_dec: expected shape .2, 66.", {"aux": changed(aux, 3, aux[1])}),
        (
            "numbers.tied: expected 0, for rows of W_enc have 7 columns and those of W_dec 66",
            {"numbers": [*plain[:15], 1.0]},
        ),
        ("incompatible function arguments", {"numbers": plain[:12]}),
        ("grads.W_dec: expected shape .40, 66.", {"grads": changed(grads, 2, grads[0])}),
        ("not writeable", {"grads": changed(grads, 3, read_only(grads[3].copy()))}),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            calls(**options)


def test_boundary_of_grad_top_acts() -> None:
    args = {
        "error": np.zeros((3, 4), f4),
        "W_dec": np.zeros((5, 4), f4),
        "acts": np.ones((3, 2), f4),
        "indices": np.zeros((3, 2), i4),
        "row_offsets": None,
        "grads": np.zeros((3, 2), f4),
        "threads": 2,
    }
    flat = {"acts": np.ones(6, f4), "indices": np.zeros(6, i4), "grads": np.zeros(6, f4)}
    _C.grad_top_acts(*args.values())
    for message, change in (
        ("indices: expected 0 to 4, got 5 at 3", {"indices": np.array([[0, 1], [2, 5], [0, 0]], i4)}),
        ("W_dec: expected shape .5, 4., got .5, 3.", {"W_dec": np.zeros((5, 3), f4)}),
        ("acts: expected shape .2, 2., got .3, 2.", {"error": np.zeros((2, 4), f4)}),
        ("grads: expected shape .3, 2., got .2, 3.", {"grads": np.zeros((2, 3), f4)}),
        ("not writeable", {"grads": read_only(np.zeros((3, 2), f4))}),
        ("row_offsets: expected .* got 7 at 3", flat | {"row_offsets": np.array([0, 2, 4, 7], i4)}),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            _C.grad_top_acts(*(args | change).values())


def test_boundary_of_sum_entries() -> None:
    args = {
        "offsets": np.array([0, 2, 3], i4),
        "pairs": np.array([0, 2, 1], i4),
        "per_pair": np.ones(3, f4),
        "sums": np.zeros(2, f4),
        "threads": 2,
    }
    _C.sum_entries(*args.values())
    for message, change in (
        ("offsets: expected shape .3,., got .2,.", {"offsets": np.array([0, 2], i4)}),
        ("offsets: expected numbers that rise", {"offsets": np.array([0, 4, 4], i4)}),
        ("pairs: expected 0 to 2, got 3 at 1", {"pairs": np.array([0, 3, 1], i4)}),
        ("pairs: expected shape .3,., got .4,.", {"pairs": np.zeros(4, i4)}),
        ("per_pair: expected dtype float32, got float64", {"per_pair": np.ones(3)}),
        ("not writeable", {"sums": read_only(np.zeros(2, f4))}),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            _C.sum_entries(*(args | change).values())


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


def test_boundary_of_addresses_and_of_what_is_no_array() -> None:
    """pybind11 makes an array of a list, which is gone when the call reads it; UBSan refuses an odd address."""
    odd = np.zeros(3 * 4 * 4 + 1, np.uint8)[1:].view(f4).reshape(3, 4)
    with pytest.raises(ValueError, match="x: expected an address that is a multiple of 4"):
        _C.decode_error(*decode_args(x=odd))
    weights, args, numbers = step_case("fixed", 16, False)
    params, batch = native._params(weights), numpy_of(*args[:2], args[2].flatten(), *args[5])
    for message, given, arrays in (
        ("acts: expected an array, got list", params, changed(batch, 2, list(batch[2]))),
        (
            "b_enc.exp_avg: expected an array, got list",
            changed(params, 1, (params[1][0], [f4(0)], params[1][2])),
            batch,
        ),
        ("W_dec: expected .value, exp_avg, exp_avg_sq.", changed(params, 2, ()), batch),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            _C.update(given, arrays, 0.5, None, None, native._numbers(numbers), 1)


def test_boundary_of_sizes_that_wrap_around() -> None:
    nothing = np.zeros((1, 0), np.uint8)
    with pytest.raises(ValueError, match="d_in: expected less than 2.60"):
        _C.stream.gather(nothing, np.zeros(1, np.int64), nothing.copy(), d_in=2**62, dtype="float32")
    with pytest.raises(ValueError, match="1 to 64 threads"):
        _C.stream.gather(nothing, np.zeros(1, np.int64), nothing, d_in=0, dtype="float32", threads=2**31 - 1)
    sizes = {
        "d_in": 4,
        "dtype": "float32",
        "batch": 1,
        "capacity": 2,
        "seed": 0,
        "widen": False,
        "skip": False,
    }
    sizes |= {"readers": 1, "mixers": 1, "ahead": 1, "ring_bytes": 0, "chunk_bytes": 64, "direct": False}
    file = {"path": "x", "file_bytes": 64, "offset": 0, "rows": 4}
    for message, segment, change in (
        ("x: expected rows and parts that lie in its 64 bytes", file | {"rows": 2**60}, {}),
        ("x: expected rows and parts that lie in its 64 bytes", file | {"offset": 2**64 - 16}, {}),
        ("batch: expected rows of 4 numbers that fit", file, {"batch": 2**60, "capacity": 2**60}),
        ("batch: expected rows of 4611686018427387904 numbers", file, {"d_in": 2**62}),
        ("at most 64 readers and mixers", file, {"mixers": 65}),
        ("chunk_bytes: expected what fits", file, {"chunk_bytes": 2**63}),
        ("path: expected one without a zero byte", file | {"path": "\0"}, {}),
        ("segments: expected .* one is missing", {"path": "x"}, {}),
        ("segments: expected a dict", file | {"rows": "4"}, {}),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            _C.stream.ShuffleBuffer([segment], **(sizes | change))


def test_boundary_of_parts_that_are_merged() -> None:
    """A part of wider rows would count its entries in rows beyond the last."""
    one, wider = _C.BatchTopk(2, 4), _C.BatchTopk(2, 5)
    one.feed(np.ones((1, 4), f4), 0, 0)
    wider.feed(np.ones((3, 5), f4), 0, 0)
    for other, message in (
        (wider, "other.F: expected 4 to 4, got 5"),
        (one, "expected another one, got the same"),
    ):
        with pytest.raises(ValueError, match=message):
            one.merge(other)
    with pytest.raises(ValueError, match="other.keep: expected 2 to 2, got 3"):
        one.merge(_C.BatchTopk(3, 4))
    with pytest.raises(ValueError, match="row_offsets: the number of rows: expected 0 to"):
        one.finish(np.zeros(2, f4), np.zeros(2, i4), np.zeros(0, i4))


def test_rows_without_columns_take_no_time() -> None:
    nothing = np.zeros((2**40, 0), f4)
    assert _C.centre(nothing, np.zeros(0, f4), nothing, 1) == 0
    acts, indices = np.zeros((2**40, 0), f4), np.zeros((2**40, 0), i4)
    _C.grad_top_acts(nothing, np.zeros((5, 0), f4), acts, indices, None, acts, 1)
