"""The evaluation in the model in modules of all shapes, with padding and special tokens; and what it refuses."""

import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp.splice import evaluate_all_in_model, evaluate_in_model
from saefast.train.end_to_end import EndToEnd
from tests.helpers import tiny_lm, tiny_models
from tests.helpers.spliced import (
    batches,
    captured,
    cross_entropy,
    gpt2,
    logits_with,
    perfect,
    random,
    zero,
)
from tests.helpers.tiny_models import tokens


@pytest.fixture(name="gpt2")
def made():
    return gpt2()


# --- what modules give


@pytest.mark.parametrize(
    "kind,hook,width",
    [
        ("llama", "model", 32),  # a ModelOutput
        ("llama", "model.layers.1.self_attn", 32),  # a tuple
        ("llama", "lm_head", 64),
        ("qwen3_moe", "model.layers.1.self_attn.q_norm", 8),  # [m, L, H, width]
        ("qwen3_moe", "model.layers.0.mlp.experts", 32),  # [m L, width]
        ("gpt_oss", "model.layers.1.mlp", 32),  # a tuple with what the router gave
        ("opt", "model.decoder.layers.1.fc2", 32),
        ("deepseek", "model.layers.1.self_attn.kv_b_proj:in", 8),  # [m, 1, L, width]
        ("mamba", "backbone.layers.1.mixer", 32),
        ("bloom", "transformer.h.1", 32),
    ],
)
def test_a_perfect_sae_changes_nothing_in_modules_of_all_shapes(kind, hook, width):
    model = tiny_models.model(kind)
    saes = [perfect(width), zero(SAEConfig(d_in=width, d_sae=64, k=4))]
    got, ablated = evaluate_all_in_model(saes, model, hook, batches(2, 9))
    assert got.ce_sae == pytest.approx(got.ce, rel=1e-5) and abs(got.kl) < 1e-4
    assert got.loss_recovered == pytest.approx(1, abs=1e-3) and ablated.loss_recovered == 0
    assert abs(ablated.ce_sae - got.ce) > 1e-3


def test_time_first_activations_are_put_back_as_they_were():
    """XLNet gives [L, m, width]. Only some rows are replaced, so another order of rows would show."""
    model, ids = tiny_models.model("xlnet"), tokens(4, 4)
    hook, drop = "transformer.layer.0.ff", [int(ids[1, 2])]
    got = evaluate_in_model(zero(SAEConfig(d_in=32, d_sae=64, k=4)), model, hook, [ids], drop_ids=drop)
    seen, _ = captured(model, [hook], input_ids=ids)
    new = torch.where((ids == drop[0]).T[..., None], seen[hook], 0)
    logits = logits_with(model, {hook: new}, input_ids=ids)
    assert got.ce_sae == pytest.approx(cross_entropy(logits, ids)[0] / 12, rel=1e-5)


def test_losses_of_an_encoder_decoder_are_those_of_the_decoders_tokens():
    model = tiny_models.model("t5")
    given = {"input_ids": tokens(3, 7), "decoder_input_ids": tokens(3, 5, seed=1)}
    for hook in ("encoder.block.1", "decoder.block.0"):
        sae = random(SAEConfig(d_in=32, d_sae=64, k=4))
        got = evaluate_in_model(sae, model, hook, [given])
        seen, clean = captured(model, [hook], **given)
        with torch.no_grad():
            new = sae(seen[hook].flatten(0, 1)).x_hat.view_as(seen[hook])
        ids = given["decoder_input_ids"]
        assert got.n_tokens == 12 and got.ce == pytest.approx(cross_entropy(clean, ids)[0] / 12, rel=1e-5)
        want = cross_entropy(logits_with(model, {hook: new}, **given), ids)[0] / 12
        assert got.ce_sae == pytest.approx(want, rel=1e-5)


# --- rows that stay: padding, special tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(side):
    model, sae, hook = tiny_lm.model(), random(SAEConfig(d_in=32, d_sae=64, k=4)), "model.layers.1"
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.int64)
    for context, n in enumerate((0, 3, 6)):
        mask[context, slice(0, n) if side == "left" else slice(12 - n, 12)] = 0
    ids[mask == 0] = 0
    position = (mask.cumsum(dim=1) - 1).clamp_min(0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
    padded = evaluate_in_model(sae, model, hook, [batch])
    alone = evaluate_in_model(
        sae, model, hook, [ids[c : c + 1][mask[c : c + 1] == 1][None] for c in range(3)]
    )
    assert padded.n_tokens == alone.n_tokens == 11 + 8 + 5
    for got, want in zip(padded[1:], alone[1:]):
        assert got == pytest.approx(want, rel=2e-4)


def test_special_tokens_stay_as_they_are():
    model, hook, ids = tiny_lm.model(), "model.layers.1", batches(1)[0]
    drop = ids[0, [2, 5]].tolist()
    sae = random(SAEConfig(d_in=32, d_sae=64, k=4))
    seen, _ = captured(model, [hook], input_ids=ids)
    stays = torch.isin(ids, torch.tensor(drop))
    with torch.no_grad():
        x_hat = sae(seen[hook].flatten(0, 1)).x_hat.view(3, 12, 32)
    mean = seen[hook][~stays].mean(dim=0).expand(3, 12, -1)
    got = evaluate_in_model(sae, model, hook, [ids], drop_ids=drop)
    for value, new in ((got.ce_sae, x_hat), (got.ce_zero, 0 * x_hat), (got.ce_mean, mean)):
        new = torch.where(stays[..., None], seen[hook], new)
        assert value == pytest.approx(
            cross_entropy(logits_with(model, {hook: new}, input_ids=ids), ids)[0] / 33, rel=1e-5
        )
    assert abs(got.ce_sae - evaluate_in_model(sae, model, hook, [ids]).ce_sae) > 1e-4


def test_training_end_to_end_and_the_evaluation_leave_the_same_tokens_alone():
    model, hook, ids = tiny_lm.model(), "model.layers.1", batches(1)[0]
    drop, sae = ids[0, [2, 5]].tolist(), random(SAEConfig(d_in=32, d_sae=64, k=4))
    metrics = EndToEnd(sae, model, hook, drop_ids=drop).gradients(ids)
    got = evaluate_in_model(sae, model, hook, [ids], drop_ids=drop)
    assert metrics.kl == pytest.approx(got.kl, rel=1e-4) and metrics.ce == pytest.approx(got.ce_sae, rel=1e-5)


# --- what the model is


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_another_dtype_than_the_sae(dtype):
    model = tiny_models.KINDS["llama"]().to(dtype)
    got = evaluate_in_model(perfect(32), model, "model.layers.0", batches())
    within = 1e-3 if dtype == torch.bfloat16 else 1e-6
    assert got.ce_sae == pytest.approx(got.ce, rel=within)
    share = got.ce / abs(got.ce_zero - got.ce)  # by which the units of loss_recovered are smaller
    assert got.loss_recovered == pytest.approx(1, abs=within * share)


def test_the_model_is_put_in_eval_mode(gpt2):
    want = evaluate_in_model(perfect(32), gpt2, "transformer.h.1", batches())
    assert evaluate_in_model(perfect(32), gpt2.train(), "transformer.h.1", batches()) == want
    assert not gpt2.training


def test_what_cannot_be_evaluated_is_said_before_work_starts(gpt2):
    sae = perfect(32)
    bert, t5 = tiny_models.model("bert"), tiny_models.model("t5")
    for model, hook, given, message in (
        (
            bert,
            "encoder.layer.0",
            tokens(2, 6),
            r"model: expected next-token logits \[contexts, length, vocabulary\] from it, got BaseModelOutput\w+ without .logits$",
        ),
        (
            gpt2,
            "transformer.h.0",
            tokens(2, 17),
            "batches: expected contexts of at most 16 tokens, the positions of the model, got 17$",
        ),
        (
            gpt2,
            "transformer.h.0",
            tokens(2, 6) + 64,
            "batches: expected token ids from 0 to 63, the vocabulary of the model, got",
        ),
        (
            gpt2,
            "transformer.h.0.attn.c_attn",
            tokens(2, 6),
            "hook: expected activations of width d_in = 32, got 96 at 'transformer.h.0.attn.c_attn'$",
        ),
        (
            gpt2,
            "transformer.wpe",
            tokens(2, 6),
            r"hook: expected activations \[2, 6, width\] of the tokens at 'transformer.wpe'",
        ),
        (
            t5,
            "encoder.block.0",
            {"input_ids": tokens(2, 6), "decoder_inputs_embeds": torch.randn(2, 5, 32)},
            r"model: expected a next-token prediction for each of the tokens \[\[2, 6\]\], got logits \[2, 5, 64\]$",
        ),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            evaluate_in_model(sae, model, hook, [given])
    broken = tiny_models.KINDS["llama"]()
    broken.model.layers[0].mlp.down_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(
        InputError,
        match="^batches: expected finite activations at 'model.layers.0', got NaN or Inf in torch.fl",
    ):
        evaluate_in_model(sae, broken, "model.layers.0", batches())


@pytest.mark.parametrize(
    "config",
    [
        SAEConfig(d_in=32, d_out=32, d_sae=64, k=4, pre_bias=False),
        SAEConfig(d_in=64, d_sae=64, k=4, layers=2),
    ],
    ids=["transcoder", "crosscoder"],
)
def test_training_end_to_end_refuses_what_has_several_places(config):
    with pytest.raises(InputError, match="^sae: expected a TopK autoencoder of one layer, got SAEConfig"):
        EndToEnd(SAE(config), tiny_lm.model(), "model.layers.1")


@pytest.mark.parametrize(
    "kind,hook,width", [("xlnet", "transformer.layer.0.ff", 32), ("qwen3_moe", "model.layers.1.mlp.gate", 4)]
)
def test_training_end_to_end_refuses_rows_in_another_order(kind, hook, width):
    trained = EndToEnd(SAE(SAEConfig(d_in=width, d_sae=64, k=4)), tiny_models.KINDS[kind](), hook)
    with pytest.raises(
        InputError, match=r"^hook: expected activations \[n, L, width\], got \[Layout\(context="
    ):
        trained.gradients(tokens(4, 4))
