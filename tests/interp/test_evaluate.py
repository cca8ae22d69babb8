"""`evaluate` against direct formulas in fp64, and `evaluate_in_model` on a tiny language model."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

import saefast
from saefast import SAE, InputError, SAEConfig, evaluate
from saefast.activations.lm import HookPoint
from saefast.interp.splice import evaluate_in_model
from tests.helpers import dense, tiny_lm


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
        "cosine": float(F.cosine_similarity(x, x_hat).mean()),
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


@pytest.mark.parametrize(
    "x", [rows(1), rows(1).expand(91, 6), torch.full((50, 6), 0.1)], ids=["one", "equal", "0.1"]
)
def test_rows_without_variance_have_no_fvu_but_all_other_figures(x):
    result = evaluate(make(), x)
    assert math.isnan(result.fvu) and math.isnan(result.explained_variance)
    want = direct(make(), x)
    assert_is(result, {name: want[name] for name in ("n_tokens", "cosine", "l0", "dead_frac", "density")})


def test_half_precision_rows_and_another_width():
    sae, x = make(), rows().half()
    assert_is(evaluate(sae, x), direct(sae, x))
    with pytest.raises(InputError, match="^source: expected activations of width d_in = 6, got 7$"):
        evaluate(sae, rows(d_in=7))


HOOK, VOCAB = "model.layers.1", 64


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


def batches(n=3):
    generator = torch.Generator().manual_seed(8)
    return list(torch.randint(2, VOCAB, (n, 2, 16), generator=generator))


def perfect():
    """relu(x) and relu(-x) along the axes: the reconstruction is x."""
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=32))
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    sae.W_dec.data.copy_(both)
    sae.W_enc.data.copy_(both)
    return sae


def constant(value):
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=4))
    sae.W_dec.data.zero_()
    sae.b_dec.data.copy_(value)
    return sae


def cross_entropy(model, function=None, max_norm=float("inf")):
    """Oracle: the loss with function(rows) in place of the residual stream after block 1, by a plain hook."""

    def hook(module, args, output):
        hidden = output if torch.is_tensor(output) else output[0]
        new = torch.where(hidden.norm(dim=-1, keepdim=True) > max_norm, hidden, function(hidden))
        return new if torch.is_tensor(output) else (new, *output[1:])

    handle = model.model.layers[1].register_forward_hook(hook) if function else None
    with torch.no_grad():
        logits = torch.cat([model(batch).logits for batch in batches()])
    if handle:
        handle.remove()
    target = torch.cat(batches())[:, 1:]
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten())), logits


def mean_activation(model, max_norm=float("inf")):
    hidden = torch.cat([HookPoint(model, HOOK).capture(batch).detach().flatten(0, 1) for batch in batches()])
    return hidden[hidden.norm(dim=1) <= max_norm].double().mean(dim=0).float()


def test_a_perfect_sae_recovers_the_loss(model):
    result = evaluate_in_model(perfect(), model, HOOK, batches())
    assert result.n_tokens == 3 * 2 * 15
    assert result.ce == pytest.approx(cross_entropy(model)[0], rel=1e-6)
    assert result.ce_sae == pytest.approx(result.ce, rel=1e-6) and abs(result.kl) < 1e-6
    assert result.loss_recovered == pytest.approx(1, abs=1e-5)
    assert result.loss_recovered_mean == pytest.approx(1, abs=1e-4)


def test_an_sae_that_gives_zeros_is_zero_ablation(model):
    result = evaluate_in_model(constant(0), model, HOOK, batches())
    want, spliced = cross_entropy(model, torch.zeros_like)
    assert result.ce_sae == result.ce_zero == pytest.approx(want, rel=1e-6)
    assert result.loss_recovered == 0 and abs(want - result.ce) > 1e-3
    clean, spliced = (
        logits[:, :-1].double().log_softmax(dim=-1) for logits in (cross_entropy(model)[1], spliced)
    )
    kl = float((clean.exp() * (clean - spliced)).sum(dim=-1).mean())
    assert kl > 0.01 and result.kl == pytest.approx(kl, rel=1e-4)


def test_an_sae_that_gives_the_mean_is_mean_ablation(model):
    mean = mean_activation(model)
    result = evaluate_in_model(constant(mean), model, HOOK, batches())
    want, _ = cross_entropy(model, lambda hidden: mean.expand_as(hidden))
    assert result.ce_sae == pytest.approx(want, rel=1e-5) and result.ce_mean == pytest.approx(want, rel=1e-5)
    assert result.loss_recovered_mean == pytest.approx(0, abs=1e-3) and abs(want - result.ce_zero) > 1e-3


def test_rows_above_max_norm_stay_as_they_are(model):
    norms = torch.cat(
        [HookPoint(model, HOOK).capture(batch).detach().norm(dim=-1).flatten() for batch in batches()]
    )
    limit = float(norms.median())
    result = evaluate_in_model(constant(0), model, HOOK, batches(), max_norm=limit)
    want, _ = cross_entropy(model, torch.zeros_like, limit)
    mean = mean_activation(model, limit)
    want_mean, _ = cross_entropy(model, lambda hidden: mean.expand_as(hidden), limit)
    assert result.ce_sae == result.ce_zero == pytest.approx(want, rel=1e-6)
    assert result.ce_mean == pytest.approx(want_mean, rel=1e-5)
    assert abs(want - cross_entropy(model, torch.zeros_like)[0]) > 1e-4


def test_where_ablation_changes_nothing_there_is_no_loss_to_recover(model):
    result = evaluate_in_model(constant(0), model, HOOK, batches(), max_norm=0.0)  # every row stays
    assert result.ce == result.ce_sae == result.ce_zero == result.ce_mean and result.kl == 0
    assert math.isnan(result.loss_recovered) and math.isnan(result.loss_recovered_mean)


def test_bad_input_of_the_evaluation_in_the_model(model):
    for sae, hook, given, message in (
        (perfect(), "model.layers.9", batches(), "^hook: expected a module path"),
        (make(), HOOK, batches(), r"^x: expected a tensor \[B, 6\], got \[32, 32\]$"),
        (perfect(), HOOK, [], "^batches: expected at least one batch of tokens, got none$"),
        (perfect(), HOOK, [torch.ones(4, 1).long()], "^batches: expected contexts of at least two tokens"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_in_model(sae, model, hook, given)
