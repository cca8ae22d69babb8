"""Which options go with which architecture, and with each other. An option that would have no effect is refused."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.errors import check

PENALTIES = {  # of the architectures without a top k, whose code may be kept as a matrix
    "relu": ("none", "l1", "lp"),
    "jumprelu": ("none", "l1", "tanh", "l0", "target_l0"),
    "gated": ("none", "l1"),
}
TOP_K = ("topk", "batch_topk", "matryoshka")
DEFAULTS = {field.name: field.default for config in (SAEConfig, TrainConfig) for field in fields(config)}
# Options, the option that decides whether they act, and whether they do, given the fields of both configs.
ACTS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("k", "activation", lambda c: c.activation not in PENALTIES),
    ("multi_topk rescore", "activation", lambda c: c.activation == "topk"),
    ("group_sizes group_weights", "activation", lambda c: c.activation == "matryoshka"),
    ("threshold_rate", "activation", lambda c: c.activation in ("batch_topk", "matryoshka")),
    (
        "init_threshold bandwidth straight_through log_threshold preact",
        "activation",
        lambda c: c.activation == "jumprelu",
    ),
    ("scale_by_norm", "activation", lambda c: c.activation in (*TOP_K, "jumprelu")),
    ("lr_extra", "activation", lambda c: c.activation in ("jumprelu", "gated") or c.skip),
    ("k_start", "activation", lambda c: c.activation in TOP_K),
    ("k_start", "k_anneal_fraction", lambda c: c.k_anneal_fraction * c.total_tokens >= c.batch_size),
    ("k_anneal_fraction", "k_start", lambda c: c.k_start is not None),
    ("multi_topk", "multi_topk_weight", lambda c: c.multi_topk_weight > 0),
    ("multi_topk_weight", "multi_topk", lambda c: c.multi_topk > 0),
    ("penalty", "activation", lambda c: c.penalty in PENALTIES.get(c.activation, ("none",))),
    ("penalty", "sparsity_coefficient", lambda c: c.sparsity_coefficient > 0),
    ("sparsity_coefficient sparsity_warmup_fraction", "penalty", lambda c: c.penalty != "none"),
    ("norm_weighted", "penalty", lambda c: c.penalty in ("l1", "lp", "tanh")),
    ("norm_weighted", "unit_norm", lambda c: not c.unit_norm or c.layers > 1),  # else all norms are 1
    ("tanh_scale", "penalty", lambda c: c.penalty == "tanh"),
    ("p_anneal_from", "p_end", lambda c: c.p_end != 1),
    ("preact", "preact_coefficient", lambda c: c.preact_coefficient > 0),
    ("preact_coefficient", "preact", lambda c: c.preact != "none"),
    (
        "k_aux auxk_scale auxk_ramp auxk_relu auxk_detached count_before_auxk",
        "auxk_alpha",
        lambda c: c.auxk_alpha > 0,
    ),
    ("resample_tokens", "resample_steps", lambda c: bool(c.resample_steps)),
    ("decay", "decay_fraction", lambda c: c.decay_fraction > 0),
    ("weight_decay", "optimizer", lambda c: c.optimizer in ("adamw", "muon")),
    ("betas eps grad_clip", "optimizer", lambda c: c.optimizer != "signum"),  # it sees signs only
    ("param_dtype state_dtype", "optimizer", lambda c: c.optimizer == "adam"),
    ("init_decoder_norm", "unit_norm", lambda c: not c.unit_norm),
    # a code kept as a matrix, and AuxK's pre-activations, are as wide as the dictionary; nothing else is
    ("micro_batch_size", "auxk_alpha", lambda c: c.activation in PENALTIES or c.auxk_alpha > 0),
)


def idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The options which are not at their default but have no effect, and why. values: the fields of both configs."""
    c = SimpleNamespace(**values)
    return {
        name: f"{decides} {values[decides]!r}"
        for names, decides, acts in ACTS
        if not acts(c)
        for name in names.split()
        if values[name] != DEFAULTS[name]
    }


def without_idle(sae: dict[str, Any], train: dict[str, Any], among: Collection[str]) -> dict[str, str]:
    """Set those of the options `among` that have no effect to their defaults, in place; returns them, and why."""
    left_out: dict[str, str] = {}
    while found := {name: why for name, why in idle(sae | train).items() if name in among}:
        left_out |= found
        for name in found:
            (sae if name in sae else train)[name] = DEFAULTS[name]
    return left_out


def check_acts(sae: SAEConfig, config: TrainConfig) -> None:
    """Raise InputError where an option has no effect."""
    values = vars(sae) | vars(config)
    for name, why in idle(values).items():
        check(False, f"{name}: expected {DEFAULTS[name]!r} with {why}, got {values[name]!r}")


def unreached(config: TrainConfig) -> list[str]:
    """What a run is too short for, one line each: not refused, for a run can be extended."""
    found, steps, least = [], config.resample_steps, config.dead_feature_threshold
    if steps and min(steps) > config.total_steps:
        found.append(
            f"resample_steps: the first of {steps} is beyond the {config.total_steps} steps of this run"
        )
    names = [
        "auxk_alpha",
        "k_aux",
        "auxk_scale",
        "auxk_ramp",
        "auxk_relu",
        "auxk_detached",
        "count_before_auxk",
    ]
    given = [name for name in names if getattr(config, name) != DEFAULTS[name]]
    if config.auxk_alpha and given and least >= config.total_tokens:
        found.append(
            f"{given[0]}: AuxK has no effect in this run of {config.total_tokens} tokens: a latent is dead after "
            f"dead_feature_threshold = {least} of them"
        )
    return found


def check_compatible(sae: SAEConfig, config: TrainConfig) -> None:
    """Raise InputError where an option of training does not fit the SAE, or another option."""
    kind = sae.activation
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
    as_loss = config.auxk_scale == "loss" and not (config.auxk_ramp or config.multi_topk)
    ok = config.auxk_detached or (kind in ("topk", "batch_topk") and as_loss)
    wanted = "True except with a top k, auxk_scale 'loss', no auxk_ramp"
    check(ok, f"auxk_detached: expected {wanted}, got {kind!r}")
    n_groups, weights = len(sae.group_sizes), config.group_weights
    ok = not weights or len(weights) == n_groups
    check(ok, f"group_weights: expected {n_groups} numbers, one for each group, got {weights}")
    ok = config.k_start is None or config.k_start <= sae.d_sae
    check(ok, f"k_start: expected at most d_sae = {sae.d_sae}, got {config.k_start}")
    ok = not config.resample_steps or sae.d_out is None
    check(ok, f"resample_steps: expected () for a transcoder, got {config.resample_steps}")
