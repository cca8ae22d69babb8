"""Around the steps of llamascopium's trainer: logs, evaluation, files, going on, what is left to it."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("llamascopium")

import llamascopium.trainer as stock_module
from llamascopium import InitializerConfig, SAEConfig, TrainerConfig
from llamascopium.activation.factory import (
    ActivationFactoryActivationsSource,
    ActivationFactoryConfig,
    ActivationFactoryTarget,
)
from llamascopium.models.sparse_dictionary import SparseDictionary
from llamascopium.runners import train as runner

from saefast import InputError
from saefast.adapters import llamascopium as ours
from tests.peers.llamascopium_runs import (
    D_SAE,
    DEAD,
    HOOK,
    TOPK,
    B,
    D,
    Ours,
    Recorded,
    Stock,
    batches_of,
    engine_steps,
    new_sae,
    pair,
    run,
    run_settings,
)


@pytest.fixture(scope="module")
def batches(real_rows):
    return batches_of(real_rows)


def test_what_is_logged_is_what_the_stock_trainer_logs(batches, tmp_path):
    """The mean over the steps where the engine counts it; of the logged step alone where it does not."""
    (stock, _), (fast, _) = pair(batches, tmp_path, TOPK, n_steps=20, **DEAD)
    assert len(stock.logged) == len(fast.logged) == 2
    of_one_step = [
        "metrics/mean_feature_act",
        "metrics/explained_variance_legacy",
        "metrics/l2_norm_error",
        "metrics/l2_norm_error_ratio",
        "metrics/gradient_norm_per_param",
        "metrics/gradient_norm_before_clipping",
    ]
    for got, want in zip(fast.logged, stock.logged):
        assert got.keys() == want.keys()
        for name in got.keys() - of_one_step:
            assert got[name] == pytest.approx(want[name], rel=1e-4), name
        for name in of_one_step:
            assert got[name] == pytest.approx(want[name], rel=0.5), name
    assert 0 < fast.logged[0]["sparsity/above_1e-2"] < D_SAE
    assert fast.logged[1]["metrics/l0"] == pytest.approx(TOPK["top_k"], rel=0.01)


def test_dead_latents_that_are_counted_once_in_a_while(batches, tmp_path, monkeypatch):
    """As on a GPU. Steps 1 and 10 are stock steps: neither is skipped where it would be time to count."""
    monkeypatch.setattr(ours.Linked, "_interval", 9)
    (stock, _), (fast, _) = pair(batches, tmp_path, TOPK, **DEAD | {"dead_threshold": 12 * B})
    assert fast.losses == pytest.approx(stock.losses, rel=2e-5) and stock.is_dead.any()


def test_without_metrics_every_step_is_the_engines(batches, tmp_path, monkeypatch):
    steps = engine_steps(monkeypatch)
    (stock, _), (fast, _) = pair(batches, tmp_path, TOPK, skip_metrics_calculation=True, log_frequency=1)
    assert len(steps) == 20 and not fast.logged and fast.losses == pytest.approx(stock.losses, rel=2e-5)


PARTS = {
    "k that falls, from half of all": (TOPK, {"initial_k": D_SAE // 2, "k_warmup_steps": 12}, 11),
    "batchtopk, more dead than k_aux": (TOPK | {"act_fn": "batchtopk"}, DEAD | {"k_aux": 3}, 6),
}


@pytest.mark.parametrize("model,options,n_most", PARTS.values(), ids=PARTS.keys())
def test_steps_that_the_engine_leaves_to_the_stock_code(
    batches, tmp_path, monkeypatch, model, options, n_most
):
    steps = engine_steps(monkeypatch)
    (stock, _), (fast, _) = pair(batches, tmp_path, model, **options)
    assert 0 < len(steps) <= n_most
    assert fast.losses == pytest.approx(stock.losses, rel=2e-5)


@pytest.mark.parametrize("act_fn,n_steps", [("topk", 17), ("relu", 17), ("batchtopk", 0)])
def test_contexts_with_masked_tokens(batches, tmp_path, monkeypatch, act_fn, n_steps):
    """[batch, context, d_model]; the choice of BatchTopK is also among tokens that do not count."""
    contexts = []
    for i, batch in enumerate(batches):
        mask = torch.arange(25)[None] < torch.arange(10)[:, None] * 3 + i % 3
        x = (batch[HOOK].view(10, 25, D) * mask[..., None]).half() + ~mask[..., None]
        contexts.append({HOOK: x, "tokens": torch.zeros(10, 25), "mask": mask.long()})
    steps = engine_steps(monkeypatch)
    model = TOPK | {"act_fn": act_fn}
    (stock, _), (fast, _) = pair(contexts, tmp_path, model, **DEAD if act_fn == "topk" else {})
    assert len(steps) == n_steps and stock.cur_tokens == fast.cur_tokens < 20 * B
    assert fast.losses == pytest.approx(stock.losses, rel=5e-5)
    if act_fn == "topk":
        counts = [trainer.tokens_since_last_activation for trainer in (stock, fast)]
        assert (counts[0] != counts[1]).sum() <= 3


def test_evaluation_sees_the_trained_weights_and_may_change_them(batches, tmp_path):
    def evaluate(sae):
        seen.append(sae.compute_loss(sae.normalize_activations(batches[29]))["l_rec"].item())
        with torch.no_grad():
            sae.W_D.div_(sae.W_D.norm(dim=1, keepdim=True))
        assert sae.state_dict()["W_E"].is_contiguous()
        if len(seen) == 2:  # other memory
            sae.W_E.data = sae.W_E.data.clone()
        elif len(seen) == 3:
            optimizer = Recorded.latest.optimizer
            optimizer.load_state_dict(optimizer.state_dict())

    found = []
    for kind in (Stock, Ours):
        seen = []
        trainer, _ = run(kind, batches, tmp_path, 20, new_sae(batches, **TOPK), evaluate, eval_frequency=4)
        found.append(torch.tensor([*seen, *trainer.losses]))
    assert len(seen) == 5
    torch.testing.assert_close(found[1], found[0], rtol=3e-5, atol=0)


def test_checkpoints_of_a_run_and_its_files_load_in_the_stock_library(batches, tmp_path):
    options = {"n_checkpoints": 4, "check_point_save_mode": "linear"}
    _, sae = run(Ours, batches, tmp_path, 20, new_sae(batches, **TOPK), **options)
    sae.cfg.save_hyperparameters(tmp_path)
    sae.save_pretrained(tmp_path)
    loaded = SparseDictionary.from_pretrained(str(tmp_path))
    x = sae.normalize_activations(batches[0])[HOOK]
    assert torch.equal(loaded.encode(x), sae.encode(x)) and torch.equal(loaded(x), sae(x))
    run(Stock, batches, tmp_path / "stock", 20, new_sae(batches, **TOPK), **options)
    for step in (5, 10, 15):
        saved, want = (SparseDictionary.from_config(sae.cfg) for _ in range(2))
        for model, folder in ((saved, tmp_path), (want, tmp_path / "stock")):
            model.load_full_state_dict(load_file(folder / "checkpoints" / f"{step}.safetensors"))
        assert (saved.W_E - want.W_E).norm() < 1e-3 * want.W_E.norm()


@pytest.mark.parametrize(
    "first,second", [(Stock, Ours), (Ours, Stock), (Ours, Ours)], ids=["to us", "from us", "ours"]
)
def test_a_run_goes_on_from_a_checkpoint_of_either(batches, tmp_path, first, second):
    model = TOPK | {"norm_activation": "token-wise"}
    whole, want = run(Stock, batches, tmp_path, 20, new_sae(batches, **model))
    settings = {"total_training_tokens": 20 * B}
    trainer, sae = run(first, batches[:10], tmp_path, 10, new_sae(batches, **model), **settings)
    assert trainer.cur_step == 10
    trainer.save_checkpoint(sae, tmp_path)
    folder = tmp_path / "checkpoints" / "step_10"
    loaded = SparseDictionary.from_pretrained(str(folder))
    other = second.from_checkpoint(loaded, str(folder))
    other.fit(loaded, batches[10:20])
    assert [*trainer.losses, *other.losses] == pytest.approx(whole.losses, rel=2e-5)
    assert other.cur_step == 20 and (loaded.W_D - want.W_D).norm() < 1e-3 * want.W_D.norm()


def test_a_second_fit_goes_on_with_the_moments(batches, tmp_path):
    found = []
    for kind in (Stock, Ours):
        trainer, sae = run(kind, batches, tmp_path, 10, new_sae(batches, **TOPK))
        trainer.cfg.from_pretrained_path, trainer.total_training_steps = str(tmp_path), 20
        trainer.fit(sae, batches)
        found.append((trainer.losses, trainer.optimizer.state[sae.W_D]["step"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-5) and found[0][1] == found[1][1] == 20


def test_mixed_precision_is_fp32_on_a_cpu(batches, tmp_path):
    """The default of llamascopium is bf16; on a CPU the engine is more precise than that, and no slower."""
    (stock, _), (fast, _) = pair(batches, tmp_path, TOPK, amp_dtype=torch.bfloat16)
    exact, _ = run(Stock, batches, tmp_path, 20, new_sae(batches, **TOPK))
    assert fast.losses == pytest.approx(stock.losses, rel=0.02)
    assert fast.losses[1:9] == pytest.approx(exact.losses[1:9], rel=2e-3)


FALLBACKS = {
    "use_glu_encoder": (TOPK | {"use_glu_encoder": True}, {}),
    "sparsity_loss_type is 'power'": (TOPK, {"sparsity_loss_type": "power"}),
    "p = 2": ({"act_fn": "relu"}, {"sparsity_loss_type": "power", "p": 2}),
    "sparsity_loss_type is 'tanh'": ({"act_fn": "relu"}, {"sparsity_loss_type": "tanh"}),
    "act_fn 'jumprelu'": ({"act_fn": "jumprelu"}, {"sparsity_loss_type": "power"}),
    "auxk_coefficient is set, act_fn is 'jumprelu'": ({"act_fn": "jumprelu"}, DEAD),
    "auxk_coefficient is set, act_fn is 'relu'": ({"act_fn": "relu"}, DEAD),
    "optimizer_class is 'sparseadam'": (TOPK, {"optimizer_class": "sparseadam"}),
    "clip_grad_norm": (TOPK, {"clip_grad_norm": 1e-3}),
    "log_frequency is 1": (TOPK, {"log_frequency": 1}),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_the_engine_does_not_have_is_trained_by_the_stock_code(
    batches, tmp_path, monkeypatch, caplog, reason
):
    steps, (model, options) = engine_steps(monkeypatch), FALLBACKS[reason]
    with caplog.at_level(logging.WARNING, "saefast"):
        (stock, _), (fast, _) = pair(batches, tmp_path, model, n_steps=10, **options)
    assert not steps and repr(fast.losses) == repr(stock.losses)  # GLU's bias is never initialised: NaN here
    assert [reason in r.message for r in caplog.records if r.name == "saefast"] == [True]


def test_other_things_that_stop_the_engine(batches, tmp_path):
    sae, cfg = new_sae(batches, **TOPK), TrainerConfig(exp_result_path=str(tmp_path))
    assert ours.unsupported(sae, cfg) is None
    sae.b_E.requires_grad_(False)
    assert ours.unsupported(sae, cfg) == "a parameter does not require a gradient"
    sae.b_E.requires_grad_(True)
    sae.hook_feature_acts.add_hook(lambda acts, hook: acts)
    assert ours.unsupported(sae, cfg) == "there is a hook on the SAE"
    wide = [batch | {HOOK: batch[HOOK].double()} for batch in batches[:9]]
    assert ours.unsupported(new_sae(wide, dtype=torch.float64, **TOPK), cfg) == "dtype is torch.float64"


def bad(batches, what):
    found = [dict(batch) for batch in batches[:5]]
    if what == "nan":
        found[3][HOOK] = found[3][HOOK].clone()
        found[3][HOOK][7, 7] = math.nan
    else:
        found[3]["mask"] = torch.zeros(B)
    return found


@pytest.mark.parametrize(
    "what,message", [("nan", "x: expected finite values"), ("none", "mask: expected at least one")]
)
def test_bad_input_stops_the_run_and_leaves_a_plain_sae(batches, tmp_path, what, message):
    sae = new_sae(batches, norm_activation="inference", **TOPK)
    before = sae.W_E.detach().clone()
    trainer = Ours(
        TrainerConfig(exp_result_path=str(tmp_path), total_training_tokens=10 * B, k_warmup_steps=0)
    )
    with pytest.raises(InputError, match=message):
        trainer.fit(sae, bad(batches, what))
    assert sae.W_E.is_contiguous() and not torch.equal(sae.W_E, before) and sae.W_E.isfinite().all()
    assert "compute_loss" not in vars(sae) and not sae._state_dict_hooks
    assert not trainer.optimizer._optimizer_step_pre_hooks and trainer.optimizer.state[sae.W_E]["step"] == 3


def test_importing_patches_nothing_and_a_patch_is_undone():
    assert runner.Trainer is stock_module.Trainer
    with pytest.raises(KeyError), ours.patched():
        assert runner.Trainer is ours.Trainer
        raise KeyError
    assert runner.Trainer is stock_module.Trainer


def test_train_sae_from_settings(batches, tmp_path, monkeypatch):
    """The runner, from activations on disk to its files: the engine trains, and what is left behind loads."""
    rows = torch.cat([batch[HOOK] for batch in batches]).view(-1, 25, D)
    ones = torch.ones(rows.shape[:2], dtype=torch.int64)
    (tmp_path / "acts" / HOOK).mkdir(parents=True)
    chunk = {"activation": rows, "tokens": ones, "mask": ones.clone(), "attention_mask": ones.clone()}
    save_file(chunk, tmp_path / "acts" / HOOK / "chunk-0.safetensors")
    path = str(tmp_path / "acts")
    source = ActivationFactoryActivationsSource(path=path, name="a", num_workers=0, prefetch=None)
    activations = ActivationFactoryConfig(
        sources=[source],
        target=ActivationFactoryTarget.ACTIVATIONS_1D,
        hook_points=[HOOK],
        batch_size=B,
        buffer_size=None,
    )
    found = []
    for name, train_sae in (("stock", runner.train_sae), ("ours", ours.train_sae)):
        torch.manual_seed(0)
        folder = tmp_path / name
        settings = runner.TrainSAESettings(
            sae=SAEConfig(hook_point_in=HOOK, hook_point_out=HOOK, d_model=D, expansion_factor=3, **TOPK),
            sae_name="sae",
            sae_series="series",
            initializer=InitializerConfig(grid_search_init_norm=True),
            trainer=TrainerConfig(**run_settings(folder, 20)),
            activation_factory=activations,
        )
        steps = engine_steps(monkeypatch)
        train_sae(settings)
        assert len(steps) == (17 if name == "ours" else 0)
        found.append(SparseDictionary.from_pretrained(str(folder)))
    assert runner.Trainer is stock_module.Trainer
    stock, fast = found
    assert stock.cfg == fast.cfg and stock.cfg.norm_activation == "dataset-wise"
    for (name, a), b in zip(fast.named_parameters(), stock.parameters()):
        assert (a - b).norm() < 1e-3 * b.norm(), name
