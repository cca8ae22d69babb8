"""What changes over a run, as functions of the config and the step, counted from 1."""

import math

import torch

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.architectures import DENSE
from saefast.engine.plan import GPU_DENSITY, Hyper, Plan
from saefast.engine.state import State

K_STEPS = 32  # on a GPU each k is a graph of its own


def peak_lr(config: TrainConfig, d_sae: int) -> float:
    return config.lr if config.lr is not None else 2e-4 / math.sqrt(d_sae / 2**14)


def lr_at(config: TrainConfig, step: int, d_sae: int) -> float:
    """Learning rate of `step`: linear warm-up, constant, linear or cosine decay towards 0."""
    n = config.total_steps
    warmup, decay = config.warmup_fraction * n, config.decay_fraction * n
    rise = step / warmup if warmup else 1.0
    fall = max(0.0, min(1.0, (n + 1 - step) / decay if decay else 1.0))
    if config.decay == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    return peak_lr(config, d_sae) * max(0.0, min(1.0, rise, fall))


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


def hyper_at(
    config: TrainConfig, sae: SAEConfig, step: int, input_scale: float, output_scale: float
) -> Hyper:
    return Hyper(
        lr_at(config, step, sae.d_sae), config.betas, config.eps, input_scale, sparsity_at(config, step),
        output_scale if sae.d_out else None,
        config.lr_W_enc, config.lr_b_enc, config.lr_W_dec, config.lr_b_dec, config.lr_extra,
        exponent_at(config, step), exponent_at(config, step + 1), config.bandwidth, config.preact_coefficient,
    )  # fmt: skip


def plan_at(
    config: TrainConfig,
    sae: SAEConfig,
    state: State,
    compute_dtype: torch.dtype,
    batch_size: int,
    on_gpu: bool,
) -> Plan:
    """Of the step after `state.step`."""
    room = math.ceil(2 * GPU_DENSITY[1] * sae.d_sae) * batch_size  # above that density no list is made
    return Plan(
        k=k_at(config, sae, state.step + 1),
        compute_dtype=compute_dtype,
        activation=sae.activation,
        dense=state.dense,
        micro_batch_size=config.micro_batch_size or 0,
        rescore=config.rescore,
        grad_clip=config.grad_clip,
        auxk_alpha=config.auxk_alpha,
        k_aux=config.k_aux or max(1, sae.d_in // 2),
        auxk_scale=config.auxk_scale,
        auxk_ramp=config.auxk_ramp,
        auxk_relu=config.auxk_relu,
        auxk_detached=config.auxk_detached,
        count_before_auxk=config.count_before_auxk,
        dead_feature_threshold=config.dead_feature_threshold,
        dead_capacity=state.dead_capacity,
        code_capacity=room if on_gpu and sae.activation in DENSE else None,
        loss=config.loss,
        pre_bias=sae.pre_bias,
        unit_norm=config.unit_norm,
        skip=sae.skip,
        layers=sae.layers,
        penalty=config.penalty,
        norm_weighted=config.norm_weighted,
        tanh_scale=config.tanh_scale,
        target_l0=config.target_l0 or 1.0,
        straight_through=config.straight_through,
        log_threshold=config.log_threshold,
        preact=config.preact,
        scale_by_norm=sae.scale_by_norm,
        threshold_rate=config.threshold_rate,
        group_sizes=sae.group_sizes,
        group_weights=config.group_weights,
        multi_topk=config.multi_topk,
        multi_topk_weight=config.multi_topk_weight,
    )
