"""BatchTopK, thresholds and groups from the screened encoder: what scoring every latent gives, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import native, reference
from tests.helpers import screened
from tests.helpers.encoder_cases import KINDS, assert_equal, operands
from tests.helpers.screened import (
    HARD,
    INT32,
    SELECTIONS,
    above,
    arrays,
    batch_topk,
    group_max,
    hard,
    thresholds,
)

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
NEW = [name for name in SELECTIONS if name != "top_k"]
SHAPES = [(1, 16, 32, 1), (7, 33, 320, 5), (130, 100, 1056, 33), (65, 301, 1000, 1)]
SPECS = {
    "batch_topk": reference.batch_topk,
    "group_max": reference.group_max,
}


@pytest.mark.each_value
@pytest.mark.parametrize("selection", NEW)
@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("kind", [*KINDS, *HARD])
@pytest.mark.parametrize("B,D,F,k", SHAPES)
def test_screening_excludes_nothing(
    selection: str, isa: str, kind: str, B: int, D: int, F: int, k: int
) -> None:
    """Equal to the selection from the scores of all latents, which `limit=0` takes; on exact sums, to the specification."""
    x, W, b = operands(B, D, F, F, kind)
    hard(kind, x, W)
    encoder, select = _C.ScreenedEncoder(isa), SELECTIONS[selection]
    got = select(encoder, x, W, b, k)
    scored = select(encoder, x, W, b, k, 1, limit=0)
    assert encoder.dense_rows == B
    assert_equal(got, scored)
    assert_equal(select(encoder, x, W, b, k, 3, limit=F), scored)
    if kind in ("ties", "zero"):  # small integers, or nothing: the sums are exact, and so are the ties
        pre_acts = torch.addmm(b, x, W.T)
        want = (
            reference.above_threshold(pre_acts, thresholds(x, W, b, k))
            if selection == "above"
            else SPECS[selection](pre_acts, k)
        )
        assert_equal(got, want)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("isa", _C.isas())
def test_an_error_as_large_as_its_bound(selection: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding leaves of each row points along latent 40, which is therefore underrated by as much as can be: latent 7,
    which is smaller, without an error, seems larger by far more than a margin."""
    ints = torch.randint(0, 127, (5, 16), generator=torch.Generator().manual_seed(0))
    x, W = ints + 0.49, torch.zeros(64, 16)
    x[:, 0] = 127  # the step of the rounding is 1
    x[:, 1:] = x[:1, 1:]
    W[40], W[7, 0] = 1, (float(x[0].sum()) - 0.1) / 127
    exact = x @ W.T
    assert (exact.argmax(dim=1) == 40).all()
    monkeypatch.setattr(screened, "thresholds", lambda *_: torch.full((64,), float(exact[0, 40]) - 0.05))
    _, indices, *_ = SELECTIONS[selection](_C.ScreenedEncoder(isa), x, W, torch.zeros(64), 1)
    assert indices.flatten().tolist() == [40] * 5


@pytest.mark.parametrize("selection", NEW)
@pytest.mark.parametrize("kind", ["random", "outlier", "heavy"])
def test_bounds_are_good_for_something(selection: str, kind: str) -> None:
    x, W, b = operands(200, 576, 9216, 1, "random")
    W /= W.norm(dim=1, keepdim=True)
    hard(kind, x, W)
    encoder = _C.ScreenedEncoder()
    SELECTIONS[selection](encoder, x, W, b * 0, 32, most=200 * 9216 // 10)
    assert encoder.dense_rows < 10 and 32 <= encoder.candidates / 200 < 500


@pytest.mark.parametrize("selection", NEW)
def test_bits_depend_on_nothing_else(selection: str) -> None:
    x, W, b = operands(700, 96, 2000)
    encoder, select = _C.ScreenedEncoder(), SELECTIONS[selection]
    x *= torch.linspace(0.1, 3, 700)[:, None]
    want = select(encoder, x, W, b, 20, 1)
    assert_equal(want, select(_C.ScreenedEncoder(), x, W, b, 20, limit=0))
    found = encoder.candidates, encoder.dense_rows
    for n in (2, 3, 7):
        assert_equal(select(encoder, x, W, b, 20, n), want)
        assert (encoder.candidates, encoder.dense_rows) == found  # nor does what is scored
    for other in SELECTIONS.values():
        other(encoder, *operands(100, 33, 640), 4)
        assert_equal(select(encoder, x, W, b, 20), want)  # memory that is used again holds nothing of others


def test_one_row_holds_the_batch() -> None:
    """Rows of very different norms: the B * k largest are in a few of them, of which hardly any is in the sample."""
    x, W, b = operands(500, 64, 1280)
    x *= 0.01
    for rows in ([377], [*range(0, 500, 11)], [0, 1]):
        huge = x.clone()
        huge[rows] *= 1000
        encoder = _C.ScreenedEncoder()
        acts, indices, row_offsets = batch_topk(encoder, huge, W, b * 0, 2)
        assert_equal((acts, indices, row_offsets), batch_topk(encoder, huge, W, b * 0, 2, limit=0))
        assert row_offsets.diff()[rows].sum() > 600


def test_a_guess_that_is_too_high() -> None:
    """All that is large stands in the rows that the guess is made from: then every latent is scored, or nothing."""
    B, k = 400, 5
    x, W, b = operands(B, 64, 1000)
    sample = [int((i + 0.5) * 0.6180339887498949 % 1 * B) for i in range(B // 16)]
    x *= 0.01
    x[sample] *= 1000
    encoder = _C.ScreenedEncoder()
    got = batch_topk(encoder, x, W, b * 0, k)
    assert encoder.dense_rows >= B
    assert_equal(got, batch_topk(encoder, x, W, b * 0, k, limit=0))
    assert batch_topk(encoder, x, W, b * 0, k, most=B * 1000 - 1) == encoder.TOO_MANY
    other = x.flip(0)  # the same rows at other places
    code = batch_topk(encoder, other.contiguous(), W, b * 0, k)
    assert encoder.dense_rows < B / 4
    assert torch.equal(code[2].diff().flip(0), got[2].diff())


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_too_many_is_a_matter_of_numbers(n_threads: int) -> None:
    x, W, b = operands(300, 32, 640)
    encoder = _C.ScreenedEncoder()
    everything = torch.full((640,), -torch.inf)
    assert above(encoder, x, W, b, everything, n_threads, most=300 * 640 - 1) == encoder.TOO_MANY
    assert len(above(encoder, x, W, b, everything, n_threads, most=300 * 640)[0]) == 300 * 640
    for select in (batch_topk, group_max):
        select(encoder, x, W, b, 8, n_threads)
        needed = encoder.candidates + 640 * encoder.dense_rows
        assert select(encoder, x, W, b, 8, n_threads, most=needed // 2) == encoder.TOO_MANY
    high = torch.full((640,), 1e9)
    assert len(above(encoder, x, W, b, high, n_threads, most=0)[0]) == 0


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    B, D = draw(st.integers(1, 60)), draw(st.integers(16, 150))
    k = draw(st.integers(1, 12))
    F = k * draw(st.integers(32, 80))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = st.sampled_from([0, 1, 3, 9])  # powers: of heavy tails
    x, W, b = (
        torch.randn(shape, generator=generator).pow(draw(values)) * 10.0 ** draw(st.integers(-6, 6))
        for shape in ((B, D), (F, D), (F,))
    )
    if draw(st.booleans()):
        x *= 10.0 ** torch.randint(-3, 4, (B, 1), generator=generator)
    encoder = _C.ScreenedEncoder(draw(st.sampled_from(_C.isas())))
    limit = draw(st.sampled_from([None, 0, 5, F]))
    for selection in NEW:
        got = SELECTIONS[selection](encoder, x, W, b, k, draw(st.integers(1, 4)), limit=limit)
        assert_equal(got, SELECTIONS[selection](encoder, x, W, b, k, limit=0), selection)


def test_no_rows() -> None:
    encoder, x = _C.ScreenedEncoder(), operands(0, 16, 64)
    for name, select in SELECTIONS.items():
        if name != "above":
            assert len(select(encoder, *x, 2)[0]) == 0
    acts, _, row_offsets = above(encoder, *x, torch.zeros(64))
    assert len(acts) == 0 and row_offsets.tolist() == [0]
    for name in ("encode_batch_topk", "encode_group_max"):
        assert_equal(getattr(native, name)(*x, 2), getattr(reference, name)(*x, 2))


def test_boundary() -> None:
    encoder, (x, W, b) = _C.ScreenedEncoder(), operands(10, 16, 320)
    acts, indices, row_offsets = torch.empty(40), torch.empty(40, **INT32), torch.empty(11, **INT32)
    plain = arrays(x, W, b)
    for call, message in [
        (
            lambda: encoder.batch_topk(*plain, 4, *arrays(acts[1:], indices, row_offsets), 1),
            "acts: expected shape",
        ),
        (
            lambda: encoder.batch_topk(*plain, 11, *arrays(acts, indices, row_offsets), 1),
            "k: expected 1 to 10",
        ),
        (
            lambda: encoder.batch_topk(*plain, 4, *arrays(acts, indices, row_offsets[1:]), 1),
            "row_offsets: expected",
        ),
        (
            lambda: encoder.batch_topk(*plain, 4, *arrays(acts, indices, row_offsets), 1, most=-1),
            "most: expected 0",
        ),
        (lambda: encoder.above(*arrays(x, W, b, b[1:], row_offsets), 1), "thresholds: expected shape"),
        (lambda: encoder.above(*arrays(x, W, b, b, row_offsets), 1, limit=321), "limit: expected 0 to 320"),
        (lambda: encoder.write_above(*arrays(acts, indices[1:])), "indices: expected shape"),
        (
            lambda: encoder.group_max(*plain, 3, *arrays(acts, indices), 1),
            "k: expected a divisor of the latents, 320",
        ),
        (
            lambda: encoder.group_max(*plain, 4, *arrays(acts, indices), 0),
            "threads: expected 1 to 4096|acts: expected",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert encoder.above(*arrays(x, W, b, b, row_offsets), 1) == -1
    assert encoder.write_above(*arrays(acts, indices)) == min(40, int(row_offsets[-1])) > 0
    batch_topk(encoder, x, W, b, 4)
    assert encoder.write_above(*arrays(acts, indices)) == 0  # of another selection there is nothing to write
