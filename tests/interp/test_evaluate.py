"""`evaluate` against direct formulas in fp64."""

import sys

import pytest
import torch

import saefast
from saefast import SAE, InputError, SAEConfig, evaluate
from tests.helpers import dense


def make(d_in=6, d_sae=40, k=3, dtype=torch.float32):
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, k=k)).to(dtype)
    generator = torch.Generator().manual_seed(2)
    for param in sae.params:
        param += 0.2 * torch.randn(param.shape, generator=generator, dtype=dtype)
    sae.b_enc.data[:25] -= 2  # latents that are never active
    return sae


def rows(n=100, d_in=6):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(3)) + 1


def direct(sae, x):
    """Every figure as its definition says, at once, in fp64."""
    params, x = [p.double() for p in sae.params], x.double()
    x_hat = dense.forward(x, *params, sae.config.k)
    pre_acts = (x - params[3]) @ params[0].T + params[1]
    active = (pre_acts * dense.topk_mask(pre_acts, sae.config.k)) > 0
    variance = (x - x.mean(dim=0)).square().sum()
    error = x_hat - x
    return {
        "n_tokens": len(x),
        "fvu": float(error.square().sum() / variance),
        "explained_variance": float(1 - (error - error.mean(dim=0)).square().sum() / variance),
        "cosine": float(((x * x_hat).sum(dim=1) / (x.norm(dim=1) * x_hat.norm(dim=1))).mean()),
        "l0": float(active.sum() / len(x)),
        "dead_frac": float((~active.any(dim=0)).double().mean()),
        "density": (active.sum(dim=0) / len(x)).tolist(),
    }


def assert_is(result, want, rel=1e-5):
    for name, value in want.items():
        assert getattr(result, name) == pytest.approx(value, rel=rel, abs=1e-7), name


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_every_figure_is_its_definition(backend, k):
    if reason := saefast.backend.unavailable(backend):
        pytest.skip(reason)
    sae, x = make(k=k), rows()
    want = direct(sae, x)
    assert 0 < want["dead_frac"] < 1 and want["l0"] > 0
    result = evaluate(sae, x, backend)
    assert_is(result, want)
    assert result.rows_skipped == 0 and len(result.density) == 40
    assert result.explained_variance > 1 - result.fvu  # the reconstruction is off by a constant


def test_a_large_mean_does_not_cost_precision():
    sae, x = make(dtype=torch.float64), rows() + 1e4
    assert_is(evaluate(sae, x.double()), direct(sae, x.double()), rel=1e-6)


@pytest.mark.parametrize("entries", [1, 40, 7 * 40 + 3])
def test_figures_do_not_depend_on_the_size_of_the_blocks_or_chunks(monkeypatch, entries):
    sae, x = make(), rows()
    monkeypatch.setattr(
        sys.modules["saefast.interp.evaluate"], "MAX_PRE_ACTS", entries
    )  # the name is the function's too
    blocks = []
    centre = saefast.reference.centre
    monkeypatch.setattr(
        saefast.reference, "centre", lambda x, *rest: blocks.append(len(x)) or centre(x, *rest)
    )
    result = evaluate(sae, list(x.split(33)), "reference")
    assert max(blocks) == max(1, entries // 40) and sum(blocks) == 100
    assert_is(result, direct(sae, x))


def test_rows_with_nan_are_left_out_and_counted():
    sae, x = make(), rows()
    with_nan = x.clone()
    with_nan[[5, 50]] = float("nan")
    with_nan[70, 2] = -float("inf")
    result = evaluate(sae, list(with_nan.split(33)))
    assert result.rows_skipped == 3
    assert_is(result, direct(sae, x[[i for i in range(100) if i not in (5, 50, 70)]]))


def test_no_finite_row_is_an_error():
    for source in ([], [torch.full((4, 6), float("nan"))]):
        with pytest.raises(InputError, match="^source: expected at least one finite row, got none$"):
            evaluate(make(), source)


ROWS = {
    "one": rows(1),
    "equal": rows(1).expand(91, 6),
    "0.1": torch.full((50, 6), 0.1),
    "zeros": torch.zeros(7, 6),
    "minus zeros": torch.full((7, 6), -0.0),
}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("kind", ROWS)
def test_the_fvu_of_rows_without_variance_is_their_mean_square_error(kind, backend):
    if reason := saefast.backend.unavailable(backend):
        pytest.skip(reason)
    sae, x = make(), ROWS[kind]
    result, want = evaluate(sae, x, backend), direct(sae, x)
    assert_is(result, {name: want[name] for name in ("n_tokens", "l0", "dead_frac", "density")})
    x_hat = dense.forward(x.double(), *(p.double() for p in sae.params), sae.config.k)
    error = x_hat - x
    mean_square = float(error.square().mean())
    some = bool(x.any())
    of_norm = (
        float((error.square().sum(dim=1) / x.double().square().sum(dim=1)).mean()) if some else mean_square
    )
    cosine = want["cosine"] if some else 0.0
    figures = {"fvu": mean_square, "explained_variance": 1.0, "normalized_mse": of_norm, "cosine": cosine}
    assert_is(result, figures)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_rows_of_zeros_count_for_everything_but_norm_and_direction(backend):
    if reason := saefast.backend.unavailable(backend):
        pytest.skip(reason)
    x = rows()
    x[::3] = 0
    sae, some = make(), x[x.any(dim=1)]
    result, want = evaluate(sae, [x[:34], x[34:]], backend), direct(sae, x)
    assert_is(result, want | {"cosine": direct(sae, some)["cosine"]})
    assert result.normalized_mse == pytest.approx(evaluate(sae, some, backend).normalized_mse, rel=1e-9)
    error = dense.forward(some.double(), *(p.double() for p in sae.params), sae.config.k) - some
    of_rows = error.square().sum(dim=1) / some.double().square().sum(dim=1)
    assert result.normalized_mse == pytest.approx(float(of_rows.mean()), rel=1e-5)


@pytest.mark.parametrize("unit,shift", [(1e30, 0), (1e-30, 0), (1e-36, 0), (1.0, 1000.0)])
def test_values_of_any_magnitude_and_a_large_mean(unit, shift):
    sae, x = make(), (rows() + shift) * unit
    sae.b_enc.data *= unit
    sae.b_dec.data *= unit
    assert_is(evaluate(sae, x), direct(sae, x), rel=1e-3 if shift else 1e-5)


def test_a_source_in_fp64_may_hold_what_fp32_does_not():
    x = rows().double()
    x[4, 2] = 1e200
    kept = torch.cat([x[:4], x[5:]]).float()
    result = evaluate(make(), x)
    assert result.rows_skipped == 1 and result._replace(rows_skipped=0) == evaluate(make(), kept)


def test_half_precision_rows_and_another_width():
    sae, x = make(), rows().half()
    assert_is(evaluate(sae, x), direct(sae, x))
    with pytest.raises(InputError, match="^source: expected activations of width d_in = 6, got 7$"):
        evaluate(sae, rows(d_in=7))
