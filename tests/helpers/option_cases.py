"""Runs in which an option has another value than in others: for tests of options that do nothing."""

from dataclasses import fields
from typing import get_args

import torch

import saefast
from saefast.config.sae import WITH_K as TOP_K
from saefast.config.sae import Activation
from saefast.config.train import SAEConfig, TrainConfig

ARCHITECTURES = get_args(Activation)
D_IN, D_SAE = 8, 64
BASE = {
    "total_tokens": 32 * 8,
    "batch_size": 32,
    "lr": 1e-2,
    "buffer_tokens": 64,
    "dead_feature_threshold": 64,
    "k_aux": 60,
    "init_encoder_scale": 0.5,
}
PENALTY = {"penalty": "l1", "sparsity_coefficient": 0.05}
# Fields of SAEConfig, then of TrainConfig: a value other than that of the run it is compared with.
VALUES = {
    "d_in": 9,
    "d_sae": 48,
    "activation": "relu",
    "k": 4,
    "pre_bias": False,
    "skip": True,
    "group_sizes": (16, 64),
    "scale_by_norm": True,
    "input_norm": "layer_norm",
    "scales": (2.0, 2.0),
    "init_threshold": 0.3,
    "total_tokens": 32 * 7,
    "batch_size": 24,
    "lr": 2e-2,
    "warmup_fraction": 0.5,
    "decay_fraction": 0.5,
    "decay": "cosine",
    "lr_W_enc": 0.5,
    "lr_b_enc": 0.5,
    "lr_W_dec": 0.5,
    "lr_b_dec": 0.5,
    "lr_extra": 0.5,
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "ema_decay": 0.5,
    "loss": "mse",
    "unit_norm": False,
    "penalty": "tanh",
    "sparsity_coefficient": 0.1,
    "sparsity_warmup_fraction": 0.5,
    "norm_weighted": True,
    "tanh_scale": 2.0,
    "target_l0": 3.0,
    "p_end": 0.5,
    "p_anneal_from": 0.5,
    "bandwidth": 0.5,
    "straight_through": "all",
    "log_threshold": True,
    "preact": "all",
    "preact_coefficient": 0.1,
    "k_start": 8,
    "k_anneal_fraction": 0.5,
    "multi_topk": 2,
    "multi_topk_weight": 0.5,
    "group_weights": (1.0, 2.0, 1.0, 1.0, 1.0),
    "threshold_rate": 0.9,
    "betas": (0.5, 0.9),
    "eps": 1e-3,
    "grad_clip": 1e-3,
    "auxk_alpha": 0.5,
    "k_aux": 1,
    "auxk_scale": "loss",
    "auxk_ramp": True,
    "auxk_relu": False,
    "auxk_detached": False,
    "count_before_auxk": True,
    "dead_feature_threshold": 96,
    "resample_steps": (3, 5),
    "resample_tokens": 8,
    "init_b_dec": "none",
    "init_encoder_scale": 0.25,
    "init_decoder_norm": 0.5,
    "normalize_input": False,
    "buffer_tokens": 128,
    "seed": 1,
    "compute_dtype": "bf16",
    "param_dtype": "bf16",
    "state_dtype": "int8",
    "rescore": 4,
}
# Fields that change no number of a run, and what they act on; the tests below say how.
OTHERS = {
    "d_out": "the shape of the rows: a transcoder",
    "layers": "the norm of the rows of a crosscoder",
    "micro_batch_size": "memory",
    "nonfinite": "rows with NaN",
    "backend": "speed",
    "cuda_graph": "speed, on a GPU alone (tests/engine/test_gpu.py)",
    "log_every": "metrics.jsonl",
    "checkpoint_every": "checkpoint.safetensors",
    "loggers": "where metrics go",
}


def rows(n=32 * 8, d_in=D_IN):
    """The second half is opposite to the first and larger, so that latents that were dead are active again."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.rand(n, 20, generator=generator) * (torch.rand(n, 20, generator=generator) < 0.2)
    x = codes @ torch.randn(20, d_in, generator=generator)
    x[n // 2 :] *= -3
    return x + 0.5


def trainer_of(activation, options):
    """The run of BASE, with these options of both configs."""
    k = {"k": 2} if activation in TOP_K else {}
    options = {"d_in": D_IN, "d_sae": D_SAE, "activation": activation} | k | BASE | options
    if options.get("auxk_alpha") == 0:
        del options["k_aux"]
    of_sae = {f.name for f in fields(SAEConfig)}
    shape = {name: value for name, value in options.items() if name in of_sae}
    sae = saefast.SAE(SAEConfig(**shape), options.get("seed", 0))
    if activation not in TOP_K:
        sae.b_enc.data[: D_SAE // 2] = -2.0  # these are active in the second half of the rows alone
    return saefast.Trainer(sae, TrainConfig(**{name: options[name] for name in options.keys() - of_sae}))
