"""What changes over a run, as functions of the config and the step, counted from 1."""

import math

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.numbers import Scheduled

K_STEPS = 32  # on a GPU each k is a graph of its own


def peak_lr(config: TrainConfig, d_sae: int) -> float:
    """By default what goes with the optimizer. Adam's: 2e-4 / sqrt(d_sae / 2^14) (Gao et al. 2024, arXiv 2406.04093); the
    others are sparsify's (1.3.3): adamw the same, signum 5e-3 / sqrt(d_sae / 2^14), muon 2e-3."""
    if config.lr is not None:
        return config.lr
    if config.optimizer == "muon":
        return 2e-3
    return (5e-3 if config.optimizer == "signum" else 2e-4) / math.sqrt(d_sae / 2**14)


def lr_at(config: TrainConfig, step: int, d_sae: int) -> float:
    """Learning rate of `step`: linear warm-up, constant, linear or cosine decay towards 0."""
    n = config.total_steps
    warmup, decay = config.warmup_fraction * n, config.decay_fraction * n
    rise = step / warmup if warmup else 1.0
    fall = max(0.0, min(1.0, (n + 1 - step) / decay if decay else 1.0))
    if config.decay == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    return peak_lr(config, d_sae) * min(rise, fall)


def sparsity_at(config: TrainConfig, step: int) -> float:
    """Weight of the penalty: from 0 in the first step linearly to sparsity_coefficient."""
    warmup = config.sparsity_warmup_fraction * config.total_steps
    return config.sparsity_coefficient * (min(1.0, (step - 1) / warmup) if warmup else 1.0)


def exponent_at(config: TrainConfig, step: int) -> float:
    """p of the penalty "lp"."""
    first = config.p_anneal_from * config.total_steps
    share = (step - first) / max(1.0, config.total_steps - first)
    return 1 + (config.p_end - 1) * max(0.0, min(1.0, share))


def k_at(config: TrainConfig, sae: SAEConfig, step: int) -> int:
    """k of `step`: k_start to k, in at most K_STEPS equal steps."""
    length = config.k_anneal_fraction * config.total_steps
    if config.k_start is None or not length or step > length:
        return sae.top_k
    share = math.floor(K_STEPS * (step - 1) / length) / K_STEPS
    return round(config.k_start + (sae.top_k - config.k_start) * share)


def scheduled_at(
    config: TrainConfig, sae: SAEConfig, step: int, input_scale: float, output_scale: float
) -> Scheduled:
    return Scheduled(
        lr=lr_at(config, step, sae.d_sae),
        sparsity=sparsity_at(config, step),
        exponent=exponent_at(config, step),
        next_exponent=exponent_at(config, step + 1),
        input_scale=input_scale,
        output_scale=output_scale if sae.d_out else None,
    )
