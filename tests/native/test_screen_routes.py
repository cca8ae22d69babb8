"""What saefast.native gives to the screened encoder, and what it leaves to torch's products."""

import pytest
import torch

from saefast import native, reference
from saefast.errors import InputError
from saefast.native import encode as native_encode
from tests.helpers.encoder_cases import assert_equal, operands
from tests.helpers.screened import above, batch_topk, group_max, thresholds

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")


@pytest.fixture
def screening(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the screened encoder and answered."""
    if not native_encode.can_screen(10**6, 10**5, 100, 10):
        pytest.skip("this processor multiplies no bytes: saefast.native takes torch's products")
    answered: list[str] = []
    screened = native_encode.screened

    def watched(selection: str, *args: object) -> bool:
        done = screened(selection, *args)
        answered.extend([selection] * done)
        return done

    monkeypatch.setattr(native_encode, "screened", watched)
    return answered


def test_native_takes_it(screening: list[str]) -> None:
    x = operands(native_encode.SCREENED_ROWS, 64, 1024)
    encoder, bounds = _C.ScreenedEncoder(), thresholds(*x, 32)
    few = x[0][:-1], *x[1:]
    for name, want, plain in [
        ("encode_batch_topk", batch_topk(encoder, *x, 32), lambda ops: ops.encode_batch_topk(*few, 32)),
        ("encode_group_max", group_max(encoder, *x, 32), lambda ops: ops.encode_group_max(*few, 32)),
        ("encode_threshold", above(encoder, *x, bounds), lambda ops: ops.encode_threshold(*few, bounds)),
    ]:
        last = bounds if name == "encode_threshold" else 32
        assert_equal(getattr(native, name)(*x, last), want)
        assert len(screening) == 1, name
        assert_equal(plain(native), plain(reference))  # torch's products
        assert len(screening) == 1, name
        screening.clear()


def test_capacity_of_a_threshold(screening: list[str]) -> None:
    """Integers, so that the sums are exact: equal to the specification, with -Inf, Inf and NaN among the thresholds."""
    x = operands(300, 24, 1000, kind="ties")
    one = torch.tensor(7.0)
    for bounds in (
        thresholds(*x, 20),
        one,
        one.expand(1000),
        torch.tensor(torch.nan),
        torch.tensor(torch.inf),
    ):
        for capacity in (None, 0, 50, 10**5):
            got = native.encode_threshold(*x, bounds, capacity)
            assert_equal(got, reference.encode_threshold(*x, bounds, capacity), f"{capacity}")
    assert len(screening) == 20


def test_a_code_that_is_not_sparse_takes_the_product(screening: list[str]) -> None:
    x = operands(300, 64, 1024)
    for bounds in (torch.tensor(0.0), torch.full((1024,), -torch.inf)):
        assert_equal(native.encode_threshold(*x, bounds), reference.encode_threshold(*x, bounds))
    equal = x[0], torch.ones_like(x[1]), torch.zeros_like(x[2])
    assert_equal(native.encode_batch_topk(*equal, 16), reference.encode_batch_topk(*equal, 16))
    assert_equal(native.encode_group_max(*equal, 16), reference.encode_group_max(*equal, 16))
    assert screening == []


def test_a_scale_goes_into_the_weights(screening: list[str]) -> None:
    x, W, b = operands(native_encode.SCREENED_ROWS, 64, 1024)
    scale = torch.rand(1024, generator=torch.Generator().manual_seed(1)) + 0.1
    kept = W.clone()
    got = native.encode_batch_topk(x, W, b, 32, scale)
    assert torch.equal(W, kept) and screening == ["batch_topk"]
    assert_equal(got, native.encode_batch_topk(x, W * scale[:, None], b * scale, 32))
    exact = (x.double() @ W.double().T + b.double()) * scale.double()
    want = reference.batch_topk(exact, 32)
    torch.testing.assert_close(got[0].sort().values.double(), want[0].sort().values, rtol=1e-4, atol=1e-5)


def test_multi_topk_is_screened_at_usual_sizes() -> None:
    if "vnni" not in _C.isas():
        pytest.skip("this processor multiplies no bytes: saefast.native takes torch's products")
    for d_in, d_sae, k in [(576, 4608, 32), (576, 9216, 32), (768, 16384, 50), (1536, 24576, 64)]:
        assert native_encode.can_screen(512, d_sae, d_in, 4 * k)
    x = operands(native_encode.SCREENED_ROWS, 64, 4096)
    encoder = native_encode.screened_encoder()
    native.encode_topk(*x, 4 * 32)
    assert 4 * 32 * len(x[0]) <= encoder.candidates + 4096 * encoder.dense_rows < len(x[0]) * 4096


@pytest.mark.parametrize("row", [0, 417, 799])
def test_nan_names_the_row(row: int) -> None:
    x = operands(800, 16, 1500)
    x[0][row, 3] = float("nan")
    for encode in (
        lambda: native.encode_batch_topk(*x, 10),
        lambda: native.encode_threshold(*x, torch.tensor(5.0)),
        lambda: native.encode_group_max(*x, 10),
        lambda: native.encode_group_max(*x, 750),  # too many groups for screening
    ):
        with pytest.raises(InputError, match=f"pre_acts: expected no NaN, got one in row {row} "):
            encode()


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("value", [float("inf"), 1e20])
def test_what_is_too_large_to_screen(where: int, value: float) -> None:
    """Rows are scored whole; weights leave it to torch's products. Infinite pre-activations have their place."""
    x = operands(native_encode.SCREENED_ROWS, 16, 640, kind="ties")
    x[where][3] = torch.where(x[where][3] == 0, 1.0, x[where][3]).abs() * value
    x[1][:] = x[1].abs() + 1  # no difference of infinities
    pre_acts, bounds = torch.addmm(x[2], x[0], x[1].T), torch.tensor(20.0)
    for got, want in [
        (lambda: native.encode_batch_topk(*x, 8), lambda: reference.batch_topk(pre_acts, 8)),
        (lambda: native.encode_threshold(*x, bounds), lambda: reference.above_threshold(pre_acts, bounds)),
        (lambda: native.encode_group_max(*x, 8), lambda: reference.group_max(pre_acts, 8)),
    ]:
        if pre_acts.isnan().any():
            with pytest.raises(InputError, match="pre_acts: expected no NaN, got one in row"):
                got()
        else:
            torch.testing.assert_close(got()[0], want()[0], rtol=1e-6, atol=0)
