"""Which options go with which architecture. An option that would have no effect is refused."""

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.errors import check

PENALTIES = {
    "relu": ("none", "l1", "lp"),
    "jumprelu": ("none", "l1", "tanh", "l0", "target_l0"),
    "gated": ("none", "l1"),
}
ONLY_OF = (  # an option, its default, and the only architecture that has it
    ("multi_topk", 0, "topk"),
    ("rescore", 0, "topk"),
    ("preact", "none", "jumprelu"),
    ("straight_through", "threshold", "jumprelu"),
    ("log_threshold", False, "jumprelu"),
    ("group_weights", (), "matryoshka"),
)


def check_compatible(sae: SAEConfig, config: TrainConfig) -> None:
    """Raise InputError where an option of training does not fit the SAE, or another option."""
    kind, optimizer = sae.activation, config.optimizer
    ok = sae.input_norm in ("none", "scale")
    wanted = "'none' or 'scale' to train (normalise the rows beforehand)"
    check(ok, f"input_norm: expected {wanted}, got {sae.input_norm!r}")
    ok = sae.scales is None or sae.d_out is not None or sae.scales[: sae.layers] == sae.scales[sae.layers :]
    check(ok, f"scales: expected the output's equal to the input's to train, got {sae.scales}")
    way = config.straight_through
    ok = kind != "jumprelu" or not sae.scale_by_norm or way in ("threshold", "positive")
    check(ok, f"scale_by_norm: expected False to train 'jumprelu' with straight_through {way!r}, got True")
    allowed = PENALTIES.get(kind, ("none",))
    ok = config.penalty in allowed
    check(ok, f"penalty: expected one of {list(allowed)} with activation {kind!r}, got {config.penalty!r}")
    for name, default, of in ONLY_OF:
        value = getattr(config, name)
        ok = value == default or kind == of
        check(ok, f"{name}: expected {default!r} with activation {kind!r}, got {value!r}")
    as_loss = config.auxk_scale == "loss" and not (config.auxk_ramp or config.multi_topk)
    ok = config.auxk_detached or (kind in ("topk", "batch_topk") and as_loss)
    wanted = "True except with a top k, auxk_scale 'loss', no auxk_ramp"
    check(ok, f"auxk_detached: expected {wanted}, got {kind!r}")
    n_groups, weights = len(sae.group_sizes), config.group_weights
    ok = not weights or len(weights) == n_groups
    check(ok, f"group_weights: expected {n_groups} numbers, one for each group, got {weights}")
    with_k = kind in ("topk", "batch_topk", "matryoshka")
    ok = config.k_start is None or (with_k and config.k_start <= sae.d_sae)
    check(ok, f"k_start: expected None, or at most d_sae with a top k, got {config.k_start} with {kind!r}")
    ok = not config.resample_steps or sae.d_out is None
    check(ok, f"resample_steps: expected () for a transcoder, got {config.resample_steps}")
    for name in ("param_dtype", "state_dtype"):
        value = getattr(config, name)
        ok = value == "fp32" or optimizer == "adam"
        check(ok, f"{name}: expected 'fp32' with optimizer {optimizer!r}, got {value!r}")
    ok = optimizer in ("adamw", "muon") or config.weight_decay == 0
    check(ok, f"weight_decay: expected 0 with optimizer {optimizer!r}, got {config.weight_decay}")
