"""Runs of llamascopium's trainer and of ours, by its own `fit` from the same seed on the same activations."""

import math

import llamascopium.trainer as stock_module
import torch
from llamascopium import InitializerConfig, SAEConfig, TrainerConfig
from llamascopium.initializer import Initializer

from saefast.adapters import llamascopium as ours

HOOK, OUT = "blocks.12.hook_resid_post", "blocks.12.hook_mlp_out"
D, D_SAE, B = 190, 577, 250  # multiples of nothing
TOPK = {"act_fn": "topk", "top_k": 8}
DEAD = {"auxk_coefficient": 0.1, "dead_threshold": 2.5 * B}
TANH = {"sparsity_loss_type": "tanh", "l1_coefficient": 0.3, "tanh_stretch_coefficient": 2.0}


def batches_of(real_rows):
    """Thirty batches of 250 tokens: some columns of real activations."""
    rows = real_rows[: 30 * B, :D].reshape(30, B, D)
    return [{HOOK: x, OUT: x.roll(1, 1), "tokens": torch.arange(B), "mask": torch.ones(B)} for x in rows]


def new_sae(batches, seed=0, **options):
    torch.manual_seed(seed)
    settings = {
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": D,
        "expansion_factor": (D_SAE + 0.5) / D,
    }
    init = InitializerConfig(init_log_jumprelu_threshold_value=math.log(0.1), decoder_uniform_bound=0.06)
    return Initializer(init).initialize_sae_from_config(SAEConfig(**settings | options), batches)


class Recorded:
    """In front of a trainer: the losses, and what it logs."""

    def _training_step(self, sae, batch):
        ctx = super()._training_step(sae, batch)
        self.losses.append(ctx["loss"].item())
        return ctx

    def fit(self, *args, **kwargs):
        self.losses, self.logged = [], []
        Recorded.latest = self

        def keep(logger, metrics, **_):
            self.logged.append(metrics)

        before, stock_module.log_metrics = stock_module.log_metrics, keep
        try:
            return super().fit(*args, **kwargs)
        finally:
            stock_module.log_metrics = before


class Stock(Recorded, stock_module.Trainer):
    pass


class Ours(Recorded, ours.Trainer):
    pass


def run_settings(folder, n_steps):
    """Of `TrainerConfig`, for n_steps of B tokens."""
    return {
        "amp_dtype": torch.float32,
        "lr": 1e-3,
        "lr_warm_up_steps": 5,
        "lr_cool_down_steps": 0.3,
        "k_warmup_steps": 0,
        "total_training_tokens": n_steps * B,
        "log_frequency": 10,
        "n_checkpoints": 0,
        "exp_result_path": str(folder),
    }


def run(kind, batches, tmp_path, n_steps=20, sae=None, eval_fn=None, **options):
    """-> the trainer and its SAE after n_steps."""
    trainer = kind(TrainerConfig(**run_settings(tmp_path, n_steps) | options))
    trainer.fit(sae, batches * math.ceil(n_steps / len(batches)), eval_fn)
    return trainer, sae


def pair(batches, tmp_path, model, n_steps=20, **options):
    """The same SAE trained by both. (A deepcopy of one would take its k from the original.)"""
    return [run(k, batches, tmp_path, n_steps, new_sae(batches, **model), **options) for k in (Stock, Ours)]


def engine_steps(monkeypatch):
    """Counts the steps of the engine."""
    counted, step = [], ours.Linked.step

    def counting(*args):
        counted.append(1)
        return step(*args)

    monkeypatch.setattr(ours.Linked, "step", counting)
    return counted
