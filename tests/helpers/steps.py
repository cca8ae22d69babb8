"""What `train_step` is called with, made by hand: a plan of a few options, and the numbers of a step."""

from dataclasses import fields

import torch

from saefast.config import SAEConfig, TrainConfig
from saefast.engine.numbers import Scheduled, numbers_of
from saefast.engine.plan import Plan

OF_SAE = {field.name for field in fields(SAEConfig)}
OF_PLAN = {field.name for field in fields(Plan)}


def plan_of(k, compute_dtype, d_in=24, d_sae=80, **options):
    """Options of `SAEConfig`, `TrainConfig` and `Plan`. AuxK is off unless auxk_alpha is given; k_aux is 1, epsilon 1e-8."""
    of_sae = {name: options.pop(name) for name in OF_SAE & options.keys()}
    of_plan = {name: options.pop(name) for name in OF_PLAN & options.keys()}
    unbounded = of_sae.get("activation") in ("relu", "jumprelu", "gated")
    sae = SAEConfig(d_in=d_in, d_sae=d_sae, k=None if unbounded else k, **of_sae)
    defaults = {
        "total_tokens": 10**6,
        "eps": 1e-8,
        "auxk_alpha": 0.0,
        "k_aux": 1,
        "dead_feature_threshold": 1,
    }
    return Plan(sae, TrainConfig(**(defaults | options)), k=k, compute_dtype=compute_dtype, **of_plan)


def numbers_at(plan, step, batch_size, dtype=torch.float64, device="cpu", lr=1e-3, **scheduled):
    """As the trainer makes them; scheduled: the fields of `Scheduled`."""
    listed = numbers_of(plan, Scheduled(lr=lr, **scheduled), step, batch_size)
    return torch.tensor(listed, dtype=dtype, device=device)
