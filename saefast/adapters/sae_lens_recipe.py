"""What a training SAE of SAELens and its trainer are in our options, or why our engine cannot train it as they do."""

from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    JumpReLUTrainingSAE,
    MatryoshkaBatchTopKTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
)
from sae_lens.saes.sae import mse_loss

from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError, check, one_of

MAX_GRAD_NORM = 1.0  # a constant of SAELens
ACTIVATIONS = {
    TopKTrainingSAE: "topk",
    BatchTopKTrainingSAE: "batch_topk",
    MatryoshkaBatchTopKTrainingSAE: "matryoshka",
    JumpReLUTrainingSAE: "jumprelu",
    StandardTrainingSAE: "relu",
}
NORMALIZED_OUTSIDE = "none", "expected_average_only_in", "covariance_whitening"  # before the step


def recipe(sae: Any, cfg: Any, optimizer: Any) -> tuple[SAEConfig, TrainConfig]:
    """Of a SAELens training SAE, `SAETrainerConfig` and torch Adam.

    Raises:
        InputError: the engine cannot do the same; names the option.
    """
    kind = ACTIVATIONS.get(type(sae))  # no subclass: it may change any part of the step
    if kind is None:
        known = [cls.__name__ for cls in ACTIVATIONS]
        raise InputError(f"architecture: expected a SAE of {known}, got {type(sae).__name__}")
    _check_module(sae, cfg)
    group = _adam_options(optimizer)
    shape, options = _options(sae, kind)
    config = TrainConfig(
        total_tokens=cfg.total_training_samples,
        batch_size=cfg.train_batch_size_samples,
        loss="mse",
        unit_norm=False,
        normalize_input=False,
        betas=group["betas"],
        eps=group["eps"],
        grad_clip=MAX_GRAD_NORM,
        # a latent is dead after more than that many batches without firing; counted in tokens of full batches
        dead_feature_threshold=(int(cfg.dead_feature_window) + 1) * cfg.train_batch_size_samples,
        backend="auto" if sae.dtype == torch.float32 else "reference",
        compute_dtype="bf16" if cfg.autocast else "auto" if sae.dtype == torch.float64 else "fp32",
        **options,
    )
    pre_bias = bool(sae.cfg.apply_b_dec_to_input)
    return SAEConfig(sae.cfg.d_in, sae.cfg.d_sae, kind, pre_bias=pre_bias, **shape), config  # type: ignore[arg-type]


def _options(sae: Any, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of SAEConfig and TrainConfig that depend on the architecture."""
    cfg = sae.cfg
    if kind == "relu":
        check(cfg.lp_norm == 1, f"lp_norm: expected 1, got {cfg.lp_norm}")
        return {}, {"penalty": "l1", "norm_weighted": True, "auxk_alpha": 0.0}
    if kind == "jumprelu":
        mode, preact = cfg.jumprelu_sparsity_loss_mode, cfg.pre_act_loss_coefficient
        penalty = {"step": "l0", "tanh": "tanh"}.get(mode)  # "quadratic" is of each token, ours of the batch
        check(
            penalty is not None,
            f"jumprelu_sparsity_loss_mode: expected 'step' or 'tanh', got {mode!r}",
        )
        return {}, {
            "penalty": penalty,
            "norm_weighted": penalty == "tanh",
            "tanh_scale": cfg.jumprelu_tanh_scale,
            "bandwidth": sae.bandwidth,
            "straight_through": "all" if cfg.jumprelu_ste_to_input else "threshold",
            "preact": "none" if preact is None else "dead",
            "preact_coefficient": preact or 0.0,
            "auxk_alpha": 0.0,
        }
    shape: dict[str, Any] = {"k": int(cfg.k), "scale_by_norm": bool(cfg.rescale_acts_by_decoder_norm)}
    options = {
        "auxk_alpha": cfg.aux_loss_coefficient,
        "auxk_scale": "loss",
        "auxk_ramp": True,
        "auxk_relu": False,
        "k_aux": cfg.d_in // 2,
    }
    if kind == "matryoshka":
        own = cfg.use_matryoshka_aux_loss
        check(not own, f"use_matryoshka_aux_loss: expected False, got {own}")
        shape["group_sizes"] = tuple(cfg.matryoshka_widths)
    return shape, options


def _check_module(sae: Any, cfg: Any) -> None:
    """What the class and the options of the architecture do not show."""
    one_of(sae.cfg, "normalize_activations", NORMALIZED_OUTSIDE)
    check(not sae.hook_z_reshaping_mode, "hook_z_reshaping_mode: expected False in training, got True")
    kind, dtype = torch.device(sae.device).type, sae.dtype
    check(kind in ("cpu", "cuda"), f"device: expected 'cpu' or 'cuda', got {str(sae.device)!r}")
    dtypes = [torch.float32] + [torch.float64] * (kind == "cpu")
    check(dtype in dtypes, f"dtype: expected one of {dtypes} on {kind}, got {dtype}")
    check(kind == "cuda" or not cfg.autocast, "autocast: expected False on a CPU, got True")
    check(sae.mse_loss_fn is mse_loss, "mse_loss_fn: expected that of SAELens, got another")
    # a method set on the instance hides that of the class; torch.compile does the same and changes nothing
    own = [name for name in vars(sae) if callable(getattr(type(sae), name, None))]
    hidden = [name for name in own if not hasattr(vars(sae)[name], "_torchdynamo_orig_callable")]
    check(not hidden, f"sae: expected the methods of its class, got its own {', '.join(hidden)}")
    frozen = [name for name, param in sae.named_parameters() if not param.requires_grad]
    check(not frozen, f"requires_grad: expected True, got False for {', '.join(frozen)}")


def _adam_options(optimizer: Any) -> dict[str, Any]:
    is_adam = type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1
    check(is_adam, f"optimizer: expected Adam with one group, got {type(optimizer).__name__}")
    group: dict[str, Any] = optimizer.param_groups[0]
    for name in ("weight_decay", "amsgrad", "maximize"):
        check(not group[name], f"optimizer: {name}: expected {type(group[name])()}, got {group[name]}")
    return group


def unusual(sae: Any, sae_in: torch.Tensor) -> str | None:
    """Why this step has to be that of SAELens, where that can change from step to step; else None."""
    if sae_in.ndim != 2:
        return f"sae_in: expected a batch [B, d_in], got {list(sae_in.shape)}"
    if torch.promote_types(sae_in.dtype, sae.dtype) != sae.dtype:
        return f"sae_in: expected at most {sae.dtype} as the SAE, got {sae_in.dtype}"
    k = getattr(sae.activation_fn, "k", None)
    if k is not None and not float(k).is_integer():
        return f"k: expected an integer, got {k}"
    hooked = [name for name, hook in sae.hook_dict.items() if hook._forward_hooks or hook._backward_hooks]
    return f"hooks: expected none on the SAE, got some at {', '.join(hooked)}" if hooked else None
