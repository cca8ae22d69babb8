"""The screened encoder gives the top k of the fp32 scores, exactly: bounds may exclude nothing that belongs to them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import native, reference
from saefast.errors import InputError
from saefast.native import encode as native_encode
from tests.helpers.encoder_cases import KINDS, assert_equal, operands
from tests.helpers.screened import HARD, hard, top_k

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
SHAPES = [(1, 16, 32, 1), (7, 33, 321, 5), (130, 100, 1025, 32), (70, 576, 2304, 40), (65, 1536, 1000, 1)]
ULP = 2.0**-24


@pytest.mark.each_value
@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("kind", [*KINDS, *HARD])
@pytest.mark.parametrize("B,D,F,k", SHAPES)
def test_screening_excludes_nothing(isa: str, kind: str, B: int, D: int, F: int, k: int) -> None:
    """Equal to the top k of the scores of all latents, which `limit=0` takes, and near to those in fp64."""
    x, W, b = operands(B, D, F, F, kind)
    hard(kind, x, W)
    encoder = _C.ScreenedEncoder(isa)
    screened = top_k(encoder, x, W, b, k)
    scored = top_k(encoder, x, W, b, k, limit=0)
    assert encoder.dense_rows == B
    assert_equal(screened, scored)

    exact = x.double() @ W.double().T + b.double()
    bound = (
        (D / 16 + 8) * ULP * (x.double().norm(dim=1)[:, None] * W.double().norm(dim=1) + 2 * b.double().abs())
    )
    chosen = exact.gather(1, screened[1].long())
    assert ((chosen.relu() - screened[0]).abs() <= bound.gather(1, screened[1].long()) + 1e-37).all()
    assert (chosen[:, -1:] + bound.amax(dim=1, keepdim=True) >= exact.topk(k, dim=1).values[:, -1:]).all()
    if kind == "ties":  # integers: the sums are exact, and so are the ties
        assert_equal(screened, reference.encode_topk(x, W, b, k))


@pytest.mark.parametrize("kind", ["random", "outlier", "heavy"])
def test_bounds_are_good_for_something(kind: str) -> None:
    x, W, b = operands(200, 576, 9216, 1, "random")
    W /= W.norm(dim=1, keepdim=True)
    hard(kind, x, W)
    encoder = _C.ScreenedEncoder()
    top_k(encoder, x, W, b * 0, 32)
    assert encoder.dense_rows == 0 and 32 <= encoder.candidates / 200 < 400


def test_bits_depend_on_nothing_else() -> None:
    x, W, b = operands(700, 96, 2000)
    encoder = _C.ScreenedEncoder()
    want = top_k(encoder, x, W, b, 20, 1)
    for n in (2, 3, 7):
        assert_equal(top_k(encoder, x, W, b, 20, n), want)
    for rows in (slice(0, 1), slice(95, 97), slice(3, 640)):
        assert_equal(top_k(_C.ScreenedEncoder(), x[rows], W, b, 20), tuple(t[rows] for t in want))
    operands_of_another_size = operands(100, 33, 640)
    top_k(encoder, *operands_of_another_size, 3)
    assert_equal(top_k(encoder, x, W, b, 20), want)  # memory that is used again holds nothing of others


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    B, D = draw(st.integers(1, 40)), draw(st.integers(16, 150))
    k = draw(st.integers(1, 12))
    F = draw(st.integers(32 * k, 32 * k + 500))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = st.sampled_from([0, 1, 3, 9])  # powers: of heavy tails
    x, W, b = (
        torch.randn(shape, generator=generator).pow(draw(values)) * 10.0 ** draw(st.integers(-6, 6))
        for shape in ((B, D), (F, D), (F,))
    )
    encoder = _C.ScreenedEncoder(draw(st.sampled_from(_C.isas())))
    limit = draw(st.sampled_from([None, 0, 5, F]))
    assert_equal(top_k(encoder, x, W, b, k, limit=limit), top_k(encoder, x, W, b, k, limit=0))


@pytest.fixture
def screening() -> None:
    if _C.isas() == ["plain"]:
        pytest.skip("this processor multiplies no bytes: saefast.native takes torch's products")


@pytest.mark.usefixtures("screening")
def test_native_takes_it() -> None:
    x = operands(native_encode.SCREENED_ROWS, 64, 1024)
    assert_equal(native.encode_topk(*x, 32), top_k(_C.ScreenedEncoder(), *x, 32))
    few = native.encode_topk(x[0][:-1], *x[1:], 32)
    assert_equal(few, reference.encode_topk(x[0][:-1], *x[1:], 32))  # torch's products


@pytest.mark.usefixtures("screening")
def test_a_scale_goes_into_the_weights() -> None:
    """The k largest of pre_acts * scale: that of fp64, but for those within rounding of the last."""
    x, W, b = operands(native_encode.SCREENED_ROWS, 64, 1024)
    scale = torch.rand(1024, generator=torch.Generator().manual_seed(1)) + 0.1
    kept = W.clone()
    acts, indices = native.encode_topk(x, W, b, 32, scale)
    assert torch.equal(W, kept)
    assert_equal((acts, indices), native.encode_topk(x, W * scale[:, None], b * scale, 32))
    exact = (x.double() @ W.double().T + b.double()) * scale.double()
    want = exact.topk(32, dim=1)
    torch.testing.assert_close(acts.double(), want.values.relu(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact.gather(1, indices.long()).relu(), acts.double(), rtol=1e-4, atol=1e-5)
    other = native.encode_topk(x, W, b, 32, scale.flip(0))  # the memory that is used again
    assert_equal(other, native.encode_topk(x, W * scale.flip(0)[:, None], b * scale.flip(0), 32))


@pytest.mark.usefixtures("screening")
@pytest.mark.parametrize("row", [0, 417, 799])
def test_nan_names_the_row(row: int) -> None:
    x = operands(800, 16, 1500)
    x[0][row, 3] = float("nan")
    with pytest.raises(InputError, match=f"pre_acts: expected no NaN, got one in row {row} "):
        native.encode_topk(*x, 8)


@pytest.mark.usefixtures("screening")
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("value", [float("inf"), 1e20])
def test_what_is_too_large_to_screen(where: int, value: float) -> None:
    """Rows are scored whole; weights leave it to torch's products. Infinite pre-activations have their place."""
    x = operands(native_encode.SCREENED_ROWS, 16, 640, kind="ties")
    tensor = x[where]
    tensor[3] = (
        tensor[3].abs() * value
        if value != float("inf")
        else torch.where(tensor[3] == 0, 1.0, tensor[3]) * value
    )
    pre_acts = torch.addmm(x[2], x[0], x[1].T)
    if pre_acts.isnan().any():
        with pytest.raises(InputError, match="pre_acts: expected no NaN, got one in row"):
            native.encode_topk(*x, 8)
    else:
        acts, _ = native.encode_topk(*x, 8)
        want = reference.topk(pre_acts, 8)
        torch.testing.assert_close(acts, want[0], rtol=1e-6, atol=0)


def test_boundary() -> None:
    encoder, (x, W, b) = _C.ScreenedEncoder(), operands(10, 16, 320)

    def call(x=x, W=W, b=b, k=4, threads=1, acts=None, indices=None, **options):
        acts = torch.empty(len(x), k) if acts is None else acts
        indices = torch.empty(len(x), k, dtype=torch.int32) if indices is None else indices
        arrays = [t.numpy() for t in (x, W, b)]
        encoder.top_k(*arrays, k, acts.numpy(), indices.numpy(), threads, **options)

    call()
    for options, message in [
        (
            {"x": x[:, :15].contiguous(), "W": W[:, :15].contiguous()},
            "centred: the width: expected 16 to 32768, got 15",
        ),
        ({"W": W[:, :15].contiguous()}, "W_enc: expected shape"),
        ({"b": b[:5]}, "b_enc: expected shape"),
        ({"k": 11}, r"k: expected 1 to 10 \(a 32nd of the latents\), got 11"),
        ({"k": 0}, "k: expected 1 to 10"),
        ({"threads": 0}, "threads: expected 1 to 4096, got 0"),
        ({"limit": 321}, "limit: expected 0 to 320, got 321"),
        ({"acts": torch.empty(10, 5)}, "top_acts: expected shape"),
        ({"x": x.T.contiguous().T}, "centred: expected a C-contiguous array"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**options)
    with pytest.raises(TypeError, match="centred: expected dtype float32"):
        call(x=x.double())
    with pytest.raises(ValueError, match="isa: expected 'auto' or one of"):
        _C.ScreenedEncoder("sse")
