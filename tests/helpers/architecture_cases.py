"""One small SAE for every architecture, penalty and target, and its gradients: of `train_step`, and of the formula."""

from typing import NamedTuple

import torch

import saefast
from saefast.engine.architectures import ARCHITECTURES
from saefast.engine.step import train_step

DENSE = [name for name, arch in ARCHITECTURES.items() if arch.unbounded]
from tests.helpers import formulas

D, F, K, B = 24, 80, 6, 96


class Case(NamedTuple):
    sae: dict
    train: dict
    dense: bool = False  # a code [B, F]

    @property
    def transcoder(self):
        return "d_out" in self.sae


AUXK = {"auxk_alpha": 0.5, "k_aux": 5, "dead_feature_threshold": 50}
COUNTED = AUXK | {"count_before_auxk": True, "dead_feature_threshold": 50 + B}
KEPT = {"auxk_detached": False, "auxk_scale": "loss", "loss": "mse"}
FREE = {"unit_norm": False}
TANH = {"penalty": "tanh", "norm_weighted": True, "preact": "all", "preact_coefficient": 0.3, **FREE}
POSITIVE = TANH | {"straight_through": "positive", "log_threshold": True, "bandwidth": 1.5, "loss": "mse"}
JUMP = {"activation": "jumprelu"}
TRANSCODER = {"d_out": 15, "pre_bias": False}
LISTS = {
    "relu": ({"activation": "relu"}, {}),
    "relu-l1": ({"activation": "relu"}, {"penalty": "l1"}),
    "relu-l1-mse": ({"activation": "relu"}, {"penalty": "l1", "loss": "mse"}),
    "relu-april": (
        {"activation": "relu", "pre_bias": False},
        {"penalty": "l1", "norm_weighted": True, "loss": "mse", **FREE},
    ),
    "relu-lp": ({"activation": "relu"}, {"penalty": "lp", "p_end": 0.5, "loss": "mse_mean"}),
    "relu-lp-norms": ({"activation": "relu"}, {"penalty": "lp", "p_end": 0.5, "norm_weighted": True, **FREE}),
    "crosscoder": ({"activation": "relu", "layers": 3}, {"penalty": "l1", "norm_weighted": True, **FREE}),
    "topk": ({}, {}),
    "topk-mse": ({}, {"loss": "mse"}),
    "topk-untied": ({"pre_bias": False}, {"loss": "mse_mean", **FREE}),
    "topk-by-norm": ({"scale_by_norm": True}, FREE),
    "multi-topk": ({}, {"multi_topk": 4}),
    "batch-topk": ({"activation": "batch_topk"}, {"loss": "mse"}),
    "batch-topk-by-norm": ({"activation": "batch_topk", "scale_by_norm": True}, FREE),
    "matryoshka": ({"activation": "matryoshka"}, {}),
    "matryoshka-weights": (
        {"activation": "matryoshka", "group_sizes": (10, 33, F)},
        {"group_weights": (0.5, 2.0, 1.0), "loss": "mse"},
    ),
    "matryoshka-one": ({"activation": "matryoshka", "group_sizes": (F,)}, {}),
    "group-max": ({"activation": "group_max", "k": 5}, {}),
    "jumprelu": (JUMP, {"penalty": "l0"}),
    "jumprelu-untied-mse": (JUMP | {"pre_bias": False}, {"penalty": "l0", "loss": "mse"}),
    "jumprelu-target": (JUMP, {"penalty": "target_l0", "target_l0": 9.0, "loss": "mse"}),
    "jumprelu-anthropic": (JUMP, TANH | {"straight_through": "all"}),
    "jumprelu-dead": (
        JUMP,
        {"penalty": "l0", "preact": "dead", "preact_coefficient": 0.7, "dead_feature_threshold": 50},
    ),
    "jumprelu-acts": (
        JUMP | {"pre_bias": False},
        {"penalty": "target_l0", "target_l0": 9.0, "loss": "mse", "straight_through": "acts"},
    ),
    "jumprelu-by-norm": (JUMP | {"scale_by_norm": True}, {"penalty": "l0", **FREE}),
    "jumprelu-positive": (JUMP | {"pre_bias": False}, POSITIVE),
    "jumprelu-positive-by-norm": (JUMP | {"pre_bias": False, "scale_by_norm": True}, POSITIVE),
    "jumprelu-log": (JUMP, {"penalty": "l0", "log_threshold": True, "straight_through": "all"}),
    "gated": ({"activation": "gated"}, {"penalty": "l1", "loss": "mse"}),
    "gated-norms": ({"activation": "gated"}, {"penalty": "l1", "norm_weighted": True, **FREE}),
    "topk-auxk": ({}, AUXK),
    "topk-auxk-as-loss": ({}, AUXK | {"auxk_scale": "loss", "auxk_ramp": True, "k_aux": 40, "loss": "mse"}),
    "topk-auxk-raw": ({}, AUXK | {"auxk_relu": False, "auxk_scale": "loss", "auxk_ramp": True, "k_aux": 40}),
    "batch-topk-auxk-raw": (
        {"activation": "batch_topk", "scale_by_norm": True},
        AUXK | {"auxk_relu": False, "auxk_scale": "loss", "loss": "mse", **FREE},
    ),
    "topk-auxk-by-norm": ({"scale_by_norm": True}, AUXK | FREE),
    "topk-auxk-kept": ({"scale_by_norm": True, "pre_bias": False}, COUNTED | KEPT | FREE),
    "batch-topk-auxk-kept": ({"activation": "batch_topk"}, AUXK | KEPT),
    "transcoder-auxk-kept": (TRANSCODER, AUXK | KEPT | FREE),
    "relu-auxk": ({"activation": "relu", "pre_bias": False}, AUXK | {"penalty": "l1"}),
    "jumprelu-auxk": (JUMP, AUXK | {"penalty": "l0"}),
    "matryoshka-auxk": ({"activation": "matryoshka"}, AUXK),
    "topk-auxk-counted": ({}, COUNTED),
    "jumprelu-auxk-counted": (JUMP, COUNTED | {"penalty": "l0"}),
    "transcoder-auxk": (TRANSCODER, AUXK),
    "transcoder": (TRANSCODER, {"loss": "mse"}),
    "skip-transcoder": (TRANSCODER | {"skip": True, "activation": "batch_topk"}, {}),
    "transcoder-jumprelu": (
        {"d_out": 32, "pre_bias": False, "skip": True, "activation": "jumprelu"},
        {"penalty": "l0"},
    ),
    "transcoder-matryoshka": (TRANSCODER | {"activation": "matryoshka"}, {}),
}
CASES = {name: Case(*case) for name, case in LISTS.items()} | {
    f"{name}-dense": Case(*case, dense=True)
    for name, case in LISTS.items()
    if case[0].get("activation") in DENSE
}


class Setup(NamedTuple):
    trainer: saefast.Trainer
    rows: torch.Tensor
    numbers: torch.Tensor

    @property
    def in_data_units(self):
        arch, train = self.trainer.arch, self.trainer.config
        return [
            "b_enc",
            "b_dec",
            *(name for name in self.trainer.state.extra if arch.in_data_units(name, train)),
        ]


def set_up(case, dtype=torch.float64, backend="reference", n_tokens=B, device="cpu", **train):
    """A trainer with random parameters, everything away from its initial value, and rows for it."""
    generator = torch.Generator().manual_seed(4)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    sizes = {"d_in": D, "d_sae": F} | ({"k": K} if case.sae.get("activation", "topk") not in DENSE else {})
    sae = saefast.SAE(saefast.SAEConfig(**(sizes | case.sae)), seed=3).double()
    options = {"total_tokens": 10**6, "batch_size": B, "lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8}
    options |= {"warmup_fraction": 0.0, "auxk_alpha": 0.0, "backend": backend}
    if (case.train | train).get("penalty", "none") != "none":
        options |= {"sparsity_coefficient": 0.4, "sparsity_warmup_fraction": 0.0}
    if sae.config.activation == "jumprelu":
        options["bandwidth"] = 0.5
    options |= case.train | train
    for name, param in sae.named_parameters():
        if name not in ("W_dec", "threshold"):
            param.data += 0.3 * random(*param.shape)
    sae.b_enc.data -= 0.5
    if options.get("count_before_auxk"):  # some of the dead stay silent, and have something to say
        sae.b_enc.data[::3] -= 4
    if not options.get("unit_norm", True):
        sae.W_dec.data *= 0.5 + random(F, 1).abs()
    if sae.config.activation == "jumprelu":
        sae.threshold.data.copy_(0.3 + 0.2 * random(F).abs())
        if options.get("straight_through") == "acts":
            sae.threshold.data[::9], sae.threshold.data[1::9] = -0.1, -0.6
    rows = random(n_tokens, sae.config.row_width) + 0.5
    trainer = saefast.Trainer(sae.to(device, dtype), saefast.TrainConfig(**options))
    trainer.input_scale, trainer.output_scale = 0.7, (1.3 if case.transcoder else 0.7)
    trainer.state.dense = case.dense
    trainer.state.num_tokens_since_fired[::3] = 60
    numbers = trainer.numbers(trainer.plan(n_tokens), 1, n_tokens)
    return Setup(trainer, rows.to(device, dtype), numbers)


def gradients(setup):
    """-> metrics, gradients by name, of one step that changes no parameter."""
    trainer, found = setup.trainer, {}

    def keep(grads, extra_grads, factor):
        found.update(zip(("W_enc", "b_enc", "W_dec", "b_dec"), grads), **extra_grads)
        assert float(factor) == 1

    plan = trainer.plan(len(setup.rows))
    metrics = train_step(trainer.ops, trainer.state, setup.rows, plan, setup.numbers, optimizer=keep)
    return metrics, found


def leaves_of(setup):
    state = setup.trainer.state
    values = state.params._asdict() | {name: v.value for name, v in state.extra.items()}
    return {name: v.detach().double().clone().requires_grad_(v.ndim > 0) for name, v in values.items()}


def objective(setup, leaves):
    """The formula at `leaves`, in fp64: loss and penalty."""
    trainer, sae = setup.trainer, setup.trainer.sae.config
    config, rows = trainer.config, setup.rows.double()
    c = {
        "sparsity": config.sparsity_coefficient,
        "scale": trainer.input_scale,
        "exponent": 1.0,
        "output_scale": trainer.output_scale,
        "bandwidth": config.bandwidth_of(sae.d_in) / trainer.input_scale,
        "inactive": config.preact_coefficient,
    }
    c["exponent"] = float(trainer.scheduled(trainer.state.step + 1).exponent)
    counted = len(rows) * config.count_before_auxk
    dead = trainer.state.num_tokens_since_fired + counted >= config.dead_feature_threshold
    target = rows[:, sae.d_in :] if sae.d_out else None
    return formulas.loss(leaves, sae, trainer.plan(len(rows)), c, rows[:, : sae.d_in], target, dead)


def oracle(setup):
    """-> loss, penalty, gradients by name, of autograd."""
    leaves = leaves_of(setup)
    loss, penalty = objective(setup, leaves)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    grads = dict(zip(trained, torch.autograd.grad(loss, trained.values(), allow_unused=True)))
    if setup.trainer.config.unit_norm:
        W_dec = leaves["W_dec"].detach()
        grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * W_dec).sum(1, keepdim=True) * W_dec
    return loss.detach(), penalty.detach(), {n: g for n, g in grads.items() if g is not None}


def adam_like(setup, leaves):
    """torch.optim.Adam with the learning rates that the units of the data ask for."""
    trainer = setup.trainer
    config, s = trainer.config, trainer.scale
    groups = []
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            biased = name in ("b_enc", "b_dec") or trainer.arch.in_data_units(name, config)
            by = trainer.output_scale if name == "b_dec" and trainer.sae.config.d_out else s
            groups.append(
                {
                    "params": [leaf],
                    "lr": config.lr / (by if biased else 1),
                    "eps": config.eps * (s if biased else 1),
                }
            )
    return torch.optim.Adam(groups, betas=config.betas)
