"""A SAE of llamascopium and its recipe in our options, and why the engine cannot train it where it cannot."""

import math
from typing import Any

import torch

from saefast.adapters.linked import COMPUTE_DTYPES, Linked
from saefast.config.train import SAEConfig, TrainConfig

NAMES = {
    "W_enc": "W_E.T",
    "b_enc": "b_E",
    "W_dec": "W_D",
    "b_dec": "b_D",
    "threshold": "activation_function.log_jumprelu_threshold",
}
KINDS = {"topk": "topk", "batchtopk": "batch_topk", "relu": "relu", "jumprelu": "jumprelu"}
WITH_K = ("topk", "batchtopk")
PENALTIES = {"relu": {"power": "l1"}, "jumprelu": {"tanh": "tanh"}}  # by act_fn and sparsity_loss_type


def unsupported(sae: Any, cfg: Any) -> str | None:
    """Why the stock code must train this: what the engine does not have. None: it has all."""
    own, kind, sparsity = sae.cfg, sae.cfg.act_fn.lower(), cfg.sparsity_loss_type
    known = sparsity is None or (sparsity in PENALTIES.get(kind, ()) and (sparsity != "power" or cfg.p == 1))
    hooked = any(point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values())
    aux_without_k = bool(cfg.auxk_coefficient) and kind not in WITH_K
    found = (
        (type(sae).__name__ != "SparseAutoEncoder", f"sae is a {type(sae).__name__}"),
        (sae.device_mesh is not None, "device_mesh is set"),
        (own.dtype != torch.float32, f"dtype is {own.dtype}"),
        (getattr(own, "use_glu_encoder", False), "use_glu_encoder is True"),
        (kind not in KINDS, f"act_fn is {own.act_fn!r}"),
        (not all(p.requires_grad for p in sae.parameters()), "a parameter does not require a gradient"),
        (hooked, "there is a hook on the SAE"),
        (not known, f"sparsity_loss_type is {sparsity!r} (p = {cfg.p}) with act_fn {own.act_fn!r}"),
        (aux_without_k, f"auxk_coefficient is set, act_fn is {own.act_fn!r}"),
        (cfg.optimizer_class != "adam", f"optimizer_class is {cfg.optimizer_class!r}"),
        (cfg.clip_grad_norm > 0, "clip_grad_norm is set"),
        (cfg.log_frequency == 1 and not cfg.skip_metrics_calculation, "log_frequency is 1"),
    )
    return next((reason for holds, reason in found if holds), None)


def link(sae: Any, cfg: Any, optimizer: torch.optim.Adam, graph: bool) -> Linked:
    """The engine on a `SparseAutoEncoder` and its optimizer, with the recipe of its `TrainerConfig`.

    Theirs: pre = x @ W_E + b_E, x_hat = acts @ W_D + b_D, the loss a mean over tokens of squared errors. Rows of
    W_D have any norm; with sparsity_include_decoder_norm pre * ||W_D row|| is what is chosen, or compared.

    graph: the shapes of batches are all the same, so that a step may be a CUDA graph.
    """
    own, kind, device = sae.cfg, sae.cfg.act_fn.lower(), sae.W_E.device
    activation: Any = KINDS[kind]
    architecture = SAEConfig(
        d_in=own.d_model,
        d_sae=own.d_sae,
        activation=activation,
        k=own.top_k if kind in WITH_K else None,
        d_out=None if own.hook_point_in == own.hook_point_out else own.d_model,
        pre_bias=False,
        scale_by_norm=kind != "relu" and own.sparsity_include_decoder_norm,  # which ReLU does not see
    )
    amp = cfg.amp_dtype or torch.get_autocast_dtype(device.type)
    compute_dtype: Any = COMPUTE_DTYPES[amp] if device.type == "cuda" else "fp32"
    group = optimizer.param_groups[0]
    recipe = TrainConfig(
        total_tokens=1,
        loss="mse",
        normalize_input=False,
        unit_norm=False,
        betas=group["betas"],
        eps=group["eps"],
        lr_b_dec=1.0 if own.use_decoder_bias else 0.0,
        compute_dtype=compute_dtype,
        cuda_graph=graph,
        **({"auxk_alpha": 0.0} | _losses(own, kind, cfg)),
    )
    return Linked(sae, NAMES, architecture, recipe, optimizer)


def _losses(own: Any, kind: str, cfg: Any) -> dict[str, Any]:
    """Penalties and AuxK."""
    options: dict[str, Any] = {}
    if cfg.sparsity_loss_type is not None:
        options |= {"penalty": PENALTIES[kind][cfg.sparsity_loss_type], "norm_weighted": True}
        options |= {"tanh_scale": cfg.tanh_stretch_coefficient}
    if kind == "jumprelu":
        options |= {"straight_through": "positive", "log_threshold": True, "lr_extra": cfg.jumprelu_lr_factor}
        options |= {"bandwidth": own.jumprelu_threshold_window}
        if cfg.lp_coefficient:
            options |= {"preact": "all", "preact_coefficient": cfg.lp_coefficient}
    elif cfg.auxk_coefficient:
        options |= {"auxk_alpha": cfg.auxk_coefficient, "k_aux": cfg.k_aux, "auxk_scale": "loss"}
        options |= {"auxk_detached": False, "count_before_auxk": True}
        options |= {"dead_feature_threshold": max(1, math.ceil(cfg.dead_threshold))}
    return options
