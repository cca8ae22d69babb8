"""Transcoders and crosscoders are put at the right places in the model; against plain hooks."""

import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp.splice import evaluate_all_in_model, evaluate_in_model
from tests.helpers import tiny_lm
from tests.helpers.spliced import (
    batches,
    captured,
    cross_entropy,
    gpt2,
    kl,
    logits_with,
    perfect,
    random,
    zero,
)

INF = float("inf")


@pytest.fixture(name="gpt2")
def made():
    return gpt2()


def copied(mlp):
    sae = SAE(SAEConfig(d_in=32, d_out=32, d_sae=128, activation="relu", pre_bias=False))
    sae.W_enc.data.copy_(mlp.c_fc.weight.T)
    sae.b_enc.data.copy_(mlp.c_fc.bias)
    sae.W_dec.data.copy_(mlp.c_proj.weight)
    sae.b_dec.data.copy_(mlp.c_proj.bias)
    return sae


# --- transcoders


@pytest.mark.parametrize(
    "hook,output",
    [
        ("transformer.h.1.mlp:in", None),
        ("transformer.h.1.ln_2", "transformer.h.1.mlp"),
        (["transformer.h.1.mlp:in", "transformer.h.1.mlp"], None),  # as a cache names them
        (["transformer.h.1.mlp:in"], ["transformer.h.1.mlp.dropout"]),
    ],
    ids=["module's own output", "output_hook", "list", "lists"],
)
def test_a_transcoder_that_is_the_mlp_changes_nothing(gpt2, hook, output):
    got = evaluate_in_model(copied(gpt2.transformer.h[1].mlp), gpt2, hook, batches(), output_hook=output)
    assert got.ce_sae == pytest.approx(got.ce, rel=1e-6) and abs(got.kl) < 1e-6
    assert got.loss_recovered == pytest.approx(1, abs=1e-4) and abs(got.ce_zero - got.ce) > 0.01


def test_figures_of_a_transcoder_are_those_of_plain_hooks(gpt2):
    hook, out = "transformer.h.1.mlp:in", "transformer.h.1.mlp"
    saes = [
        random(SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False)),
        random(SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False, skip=True)),
        zero(SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False)),
    ]
    saes[1].W_skip.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    found = evaluate_all_in_model(saes, gpt2, hook, batches())
    ids = torch.cat(batches())
    seen, clean = captured(gpt2, [hook, out], input_ids=ids)
    rows, target = seen[hook].flatten(0, 1), seen[out].flatten(0, 1)

    def loss(x):
        logits = logits_with(gpt2, {out: x.view(6, 12, 32)}, input_ids=ids)
        return cross_entropy(logits, ids)[0] / (6 * 11), logits

    ce_zero, ce_mean = loss(0 * target)[0], loss(target.mean(dim=0).expand_as(target))[0]
    for sae, got in zip(saes, found):
        with torch.no_grad():
            ce, logits = loss(sae(rows).x_hat)
        assert got.n_tokens == 66 and got.ce == pytest.approx(cross_entropy(clean, ids)[0] / 66, rel=1e-5)
        assert got.ce_sae == pytest.approx(ce, rel=1e-5) and got.kl == pytest.approx(
            kl(clean, logits), rel=1e-3
        )
        assert got.ce_zero == pytest.approx(ce_zero, rel=1e-5)
        assert got.ce_mean == pytest.approx(ce_mean, rel=1e-5)
        assert got.loss_recovered == pytest.approx((ce_zero - ce) / (ce_zero - got.ce), abs=1e-3)
    assert found[2].ce_sae == found[2].ce_zero and found[2].loss_recovered == 0
    assert abs(found[0].ce_sae - found[0].ce_zero) > 1e-3


def test_a_transcoder_without_a_place_for_its_output_is_refused(gpt2):
    sae = random(SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False))
    with pytest.raises(
        InputError,
        match=r"^output_hook: expected a hook point, where .*, got None with hook 'transformer.h.1'$",
    ):
        evaluate_in_model(sae, gpt2, "transformer.h.1", batches())
    plain = SAE(SAEConfig(d_in=32, d_sae=64, k=4))
    with pytest.raises(
        InputError, match=r"^output_hook: expected None for an SAE that is no transcoder, got \['tr"
    ):
        evaluate_in_model(plain, gpt2, "transformer.h.1", batches(), output_hook="transformer.h.1")
    with pytest.raises(InputError, match="^saes: expected the same d_in and d_out, got"):
        evaluate_all_in_model([plain, sae], gpt2, "transformer.h.1.mlp:in", batches())
    for hook, output, got in (
        ("transformer.h.1.mlp:in", "lm_head", "32 at 'transformer.h.1.mlp:in', 64 at 'lm_head'"),
        (["lm_head", "transformer.h.1"], None, "64 at 'lm_head', 32 at 'transformer.h.1'"),
        ("transformer.h.1.mlp.c_proj:in", None, "128 at 'transformer.h.1.mlp.c_proj:in', 32 at 'tran"),
    ):
        with pytest.raises(
            InputError,
            match=f"^hook: expected activations of width d_in = 32 and, behind them, d_out = 32, got {got}",
        ):
            evaluate_in_model(sae, gpt2, hook, batches(), output_hook=output)


def test_a_row_that_is_a_sink_at_either_end_of_a_transcoder_stays(gpt2):
    hook, out = "transformer.h.1.mlp:in", "transformer.h.1.mlp"
    sae, ids = random(SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False)), batches(1)[0]
    seen, _ = captured(gpt2, [hook, out], input_ids=ids)
    low, high = (seen[name].norm(dim=-1) for name in (hook, out))
    for max_norm, limits in (
        ([float(low.median()), float(high.median())], (low.median(), high.median())),
        (float(low.median()), (low.median(), INF)),  # one number is that of the hook point that is named
        ([INF, float(high.median())], (INF, high.median())),
    ):
        stays = (low > limits[0]) | (high > limits[1])
        with torch.no_grad():
            new = torch.where(
                stays[..., None], seen[out], sae(seen[hook].flatten(0, 1)).x_hat.view_as(seen[out])
            )
        want = cross_entropy(logits_with(gpt2, {out: new}, input_ids=ids), ids)[0] / 33
        got = evaluate_in_model(sae, gpt2, hook, [ids], max_norm)
        assert 0 < int(stays.sum()) < 36 and got.ce_sae == pytest.approx(want, rel=1e-5)
    with pytest.raises(
        InputError, match=r"^max_norm: expected one number, or one for each of 2 hook points, got \[1.0\]"
    ):
        evaluate_in_model(sae, gpt2, hook, [ids], [1.0])


# --- crosscoders, and SAEs over several hook points

LAYERS = ["model.layers.0", "model.layers.1.mlp", "model.layers.2"]


def test_a_perfect_crosscoder_changes_nothing():
    got = evaluate_in_model(perfect(96, layers=3), tiny_lm.model(), LAYERS, batches())
    assert got.ce_sae == pytest.approx(got.ce, rel=1e-6) and abs(got.kl) < 1e-6
    assert got.loss_recovered == pytest.approx(1, abs=1e-5) and abs(got.ce_zero - got.ce) > 0.01


@pytest.mark.parametrize("order", [LAYERS, LAYERS[::-1]], ids=["in order", "against it"])
def test_a_crosscoder_is_read_once_and_put_at_all_of_its_layers(order):
    model, ids = tiny_lm.model(), torch.cat(batches())
    saes = [
        random(SAEConfig(d_in=96, d_sae=128, k=8, layers=3)),
        zero(SAEConfig(d_in=96, d_sae=128, k=8, layers=3)),
    ]
    found = evaluate_all_in_model(saes, model, order, batches())
    seen, clean = captured(model, order, input_ids=ids)
    x = torch.cat([seen[name] for name in order], dim=-1)

    def loss(x_hat):
        new = dict(zip(order, x_hat.view(6, 12, 96).split(32, dim=-1)))
        logits = logits_with(model, new, input_ids=ids)
        return cross_entropy(logits, ids)[0] / 66, kl(clean, logits)

    with torch.no_grad():
        ce, divergence = loss(saes[0](x.flatten(0, 1)).x_hat)
    assert found[0].ce_sae == pytest.approx(ce, rel=1e-5) and found[0].kl == pytest.approx(
        divergence, rel=1e-3
    )
    assert found[0].ce_zero == found[1].ce_sae == pytest.approx(loss(torch.zeros_like(x))[0], rel=1e-5)
    mean = x.flatten(0, 1).mean(dim=0).expand(72, -1)
    assert found[0].ce_mean == pytest.approx(loss(mean)[0], rel=1e-4)
    assert found[1].loss_recovered == 0 and abs(ce - found[0].ce) > 0.01


def test_a_transcoder_to_several_layers():
    model, ids = tiny_lm.model(), torch.cat(batches())
    sae = random(SAEConfig(d_in=32, d_out=64, d_sae=128, k=8, pre_bias=False))
    outputs = ["model.layers.1.mlp", "model.layers.2.mlp"]
    seen, _ = captured(model, ["model.layers.1.post_attention_layernorm"], input_ids=ids)
    with torch.no_grad():
        x_hat = sae(next(iter(seen.values())).flatten(0, 1)).x_hat.view(6, 12, 64)
    want = (
        cross_entropy(logits_with(model, dict(zip(outputs, x_hat.split(32, dim=-1))), input_ids=ids), ids)[0]
        / 66
    )
    for hook, output in (("model.layers.1.mlp:in", outputs), (["model.layers.1.mlp:in", *outputs], None)):
        got = evaluate_in_model(sae, model, hook, batches(), output_hook=output)
        assert got.ce_sae == pytest.approx(want, rel=1e-5)


def test_a_crosscoder_of_other_widths_is_refused():
    with pytest.raises(
        InputError,
        match="^hook: expected activations of width d_in = 96, got 32 at 'model.layers.0', 32 at 'model.layers.2'$",
    ):
        evaluate_in_model(perfect(96, layers=3), tiny_lm.model(), LAYERS[::2], batches())
