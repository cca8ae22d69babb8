"""A step of `saefast.train.optimizers` with the gradients of the engine, in place of the fused Adam."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from saefast.config.train import TrainConfig
from saefast.engine.backward import in_data_units
from saefast.engine.plan import Plan
from saefast.engine.state import State
from saefast.reference import Grads, Params, normalize_rows_
from saefast.storage import Matrix
from saefast.train.optimizers import Optimizer


def make_optimizer(
    config: TrainConfig,
    trained: Mapping[str, Tensor | Matrix],
    plan: Plan,
    input_scale: float,
    output_scale: float,
) -> Optimizer:
    """trained: every parameter by name. Those in the units of the data get their learning rate over the scale."""
    params = {name: p.weight if isinstance(p, Matrix) else p for name, p in trained.items()}
    lr_of = {}
    for name in params:
        lr_of[name] = getattr(config, f"lr_{name}", config.lr_extra)
        if name in ("b_enc", "b_dec") or in_data_units(name, plan):
            lr_of[name] /= output_scale if name == "b_dec" else input_scale
    assert config.optimizer != "adam"
    return Optimizer(config.optimizer, params, lr_of, config.betas, config.eps, config.weight_decay)


def step_with(
    optimizer: Optimizer, state: State, config: TrainConfig, grads: Grads, extra_grads: dict[str, Tensor],
    factor: Tensor, lr: float,
) -> None:  # fmt: skip
    """One step with `factor` times the gradients, then unit norm and thresholds >= 0. A factor of NaN changes nothing.

    Waits for the device, and overwrites the gradients.
    """
    if not math.isfinite(factor):
        return
    found = dict(zip(Params._fields, grads, strict=True)) | extra_grads
    clipped = {name: grad.to(torch.float32).mul_(factor) for name, grad in found.items()}
    optimizer.step(clipped, lr)
    if config.unit_norm:
        normalize_rows_(state.weights.dec.weight)
    if "threshold" in extra_grads and not config.log_threshold:
        state.extra["threshold"].value.clamp_min_(0)
    step, state.step = state.step, int(state.counter)  # `refresh` sets the counter from the step
    state.refresh()
    state.step = step
