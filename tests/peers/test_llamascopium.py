"""llamascopium's trainer and ours: the same losses, weights and moments, for every recipe the engine has."""

import pytest
import torch

pytest.importorskip("llamascopium")

from tests.peers.llamascopium_runs import DEAD, HOOK, OUT, TANH, TOPK, B, batches_of, engine_steps, pair


@pytest.fixture(scope="module")
def batches(real_rows):
    return batches_of(real_rows)


BATCHTOPK = TOPK | {"act_fn": "batchtopk"}
RELU, JUMPRELU = {"act_fn": "relu"}, {"act_fn": "jumprelu"}
FREE_NORMS = {"sparsity_include_decoder_norm": False}
TRANSCODER = TOPK | {"hook_point_out": OUT}
FALLING = {"initial_k": 40, "k_warmup_steps": 10, "k_cold_booting_steps": 3}
EXPONENTIAL = {"initial_k": 40, "k_warmup_steps": 0.5, "k_schedule_type": "exponential"}
COSINE = {"lr_scheduler_name": "cosineannealingwarmup"}
L1 = {"sparsity_loss_type": "power", "l1_coefficient": 0.05}
LP = {"lp_coefficient": 3e-3}
RECIPES = {
    "topk": (TOPK, {}),
    "topk, free norms": (TOPK | FREE_NORMS, {}),
    "topk, no bias": (TOPK | {"use_decoder_bias": False}, {}),
    "topk, k falls": (TOPK, FALLING),
    "topk, k falls exponentially": (TOPK, EXPONENTIAL),
    "topk, auxk": (TOPK, DEAD),
    "topk, auxk, few": (TOPK, DEAD | {"k_aux": 9}),
    "topk, auxk, few, free norms": (TOPK | FREE_NORMS, DEAD | {"k_aux": 9}),
    "topk, transcoder": (TRANSCODER, {}),
    "topk, transcoder, auxk": (TRANSCODER, DEAD),
    "topk, per token": (TOPK | {"norm_activation": "token-wise"}, {}),
    "topk, per batch": (TOPK | {"norm_activation": "batch-wise"}, COSINE),
    "batchtopk": (BATCHTOPK, {}),
    "batchtopk, free norms": (BATCHTOPK | FREE_NORMS, {}),
    "batchtopk, auxk": (BATCHTOPK, DEAD | {"k_aux": 2000}),
    "relu": (RELU, {}),
    "relu, l1": (RELU, L1),
    "relu, l1, free norms": (RELU | FREE_NORMS, L1),
    "jumprelu": (JUMPRELU, {}),
    "jumprelu, free norms": (JUMPRELU | FREE_NORMS, {}),
    "jumprelu, tanh": (JUMPRELU, TANH),
    "jumprelu, lp": (JUMPRELU | {"jumprelu_threshold_window": 0.5}, LP),
    "jumprelu, tanh, lp": (JUMPRELU, TANH | LP | {"jumprelu_lr_factor": 0.3}),
    "jumprelu, tanh, lp, free norms": (JUMPRELU | FREE_NORMS, TANH | LP),
}


@pytest.mark.parametrize("model,options", RECIPES.values(), ids=RECIPES.keys())
def test_losses_weights_and_moments_are_those_of_the_stock_trainer(
    batches, tmp_path, monkeypatch, model, options
):
    steps = engine_steps(monkeypatch)
    (stock, want), (fast, got) = pair(batches, tmp_path, model, **options)
    assert len(steps) == 20 - 3  # all but the first, and the two that are logged
    torch.testing.assert_close(torch.tensor(fast.losses), torch.tensor(stock.losses), rtol=3e-5, atol=0)
    for (name, a), b in zip(got.named_parameters(), want.parameters()):
        assert a.is_contiguous()
        assert (a - b).norm() < 1e-3 * b.norm(), name
        for key in ("exp_avg", "exp_avg_sq"):
            mine, theirs = fast.optimizer.state[a][key], stock.optimizer.state[b][key]
            assert (mine - theirs).norm() < 5e-3 * theirs.norm(), (name, key)
        assert fast.optimizer.state[a]["step"] == stock.optimizer.state[b]["step"] == 20
    if "auxk_coefficient" in options:
        assert stock.is_dead.sum() > 20 and (stock.is_dead != fast.is_dead).sum() <= 3
    assert want.current_k == got.current_k == model.get("top_k", 50)


@pytest.mark.parametrize("model", [TOPK, BATCHTOPK], ids=["topk", "batchtopk"])
def test_a_longer_run_reaches_the_same_reconstruction(batches, tmp_path, model):
    """With dead latents and AuxK, when the two have long since chosen other latents in places."""
    options = {"auxk_coefficient": 1 / 32, "dead_threshold": 10 * B, "k_aux": 2000, "n_checkpoints": 0}
    found = []
    for trainer, sae in pair(batches[:25], tmp_path, model, n_steps=200, **options):
        held_out = {HOOK: torch.cat([batch[HOOK] for batch in batches[25:]])}
        x = sae.normalize_activations(held_out)[HOOK]
        with torch.no_grad():
            acts = sae.encode(x)
            error = (sae.decode(acts) - x).square().sum() / (x - x.mean(dim=0)).square().sum()
        found.append((float(error), float((acts > 0).sum(dim=1).float().mean()), trainer.losses[-1]))
    assert found[1] == pytest.approx(found[0], rel=0.01), found
    assert found[0][0] < 0.7
