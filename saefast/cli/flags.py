"""The flags of `saefast train` and `saefast sweep`: every field of both configs, in the groups that --help shows.

A recipe gives its fields as the defaults of the flags, so that a flag wins over the recipe wherever it stands on the line
and whatever its value is.
"""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from tyro.conf import OmitArgPrefixes, arg

from saefast.config.sae import Activation
from saefast.config.train import SAEConfig, TrainConfig

# Beside the flags of the command itself (SOURCE, --out, --recipe, --resume, --device): what people use first.
FIRST = "d_sae k activation total_tokens batch_size lr penalty sparsity_coefficient backend seed"
GROUPS = {
    "architecture": "d_in d_out pre_bias skip layers group_sizes scale_by_norm input_norm scales",
    "loss and penalty": """loss norm_weighted sparsity_warmup_fraction tanh_scale target_l0 p_end p_anneal_from multi_topk
        multi_topk_weight group_weights k_start k_anneal_fraction""",
    "threshold": """init_threshold bandwidth straight_through log_threshold preact preact_coefficient
        threshold_rate""",
    "optimizer": """optimizer warmup_fraction decay_fraction decay betas eps weight_decay grad_clip unit_norm ema_decay
        lr_W_enc lr_b_enc lr_W_dec lr_b_dec lr_extra""",
    "dead latent": """dead_feature_threshold auxk_alpha k_aux auxk_scale auxk_ramp auxk_relu auxk_detached
        count_before_auxk resample_steps resample_tokens""",
    "data and start": """normalize_input buffer_tokens nonfinite init_b_dec init_encoder_scale init_decoder_norm""",
    "precision and memory": "compute_dtype param_dtype state_dtype rescore micro_batch_size cuda_graph",
    "log": "log_every checkpoint_every loggers",
}
SHOWN = {"total_tokens": "tokens"}  # a flag that has another name than its field


class Flag(NamedTuple):
    type: Any
    default: Any
    help: str


Auto = float | Literal["auto"] | None
AUTO = "auto: a search, in at most a tenth of the steps."
LISTS = {  # of a sweep: every combination of their values is trained
    "d_sae": Flag(tuple[int, ...], (), "Numbers of latents."),
    "activation": Flag(tuple[Activation, ...], ("topk",), "Architectures, see `saefast train --help`."),
    "k": Flag(
        tuple[int, ...], (), "Active latents per token, for the architectures that have one. Default: 32."
    ),
    "lr": Flag(tuple[float, ...], (), "Peak learning rates. Default: as `saefast train`."),
    "sparsity_coefficient": Flag(tuple[float, ...], (0.0,), "Weights of the penalty."),
    "seed": Flag(
        tuple[int, ...],
        (0,),
        "Seeds of the initial weights. The first one is also the seed of the shuffling, which all SAEs share.",
    ),
}


def documented(config: type) -> dict[str, str]:
    """What stands below each field of a config."""
    (body,) = (
        node.body for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)
    )
    found = {}
    for line, below in pairwise(body):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(below, ast.Expr)
        ):
            found[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def with_flags(
    command: type, defaults: Mapping[str, Any] | None = None, lists: Mapping[str, Flag] | None = None
) -> type:
    """The dataclass `command` with a field for every flag, those of a group in a dataclass of their own.

    Args:
        defaults: of a recipe, in place of those of the configs.
        lists: flags in place of those of the configs, which take a list.
    """
    defaults = defaults or {}
    flags: dict[str, Flag] = {}
    for config in (SAEConfig, TrainConfig):
        help_of = documented(config)
        flags |= {f.name: Flag(f.type, f.default, help_of[f.name]) for f in fields(config)}
    # d_in is that of the source
    flags["d_in"] = Flag(int | None, None, "Width of the input; default: that of SOURCE (less d_out).")
    flags["d_sae"] = Flag(int | None, None, f"{flags['d_sae'].help} Needed without --start.")
    flags["lr"] = flags["lr"]._replace(type=Auto, help=f"{flags['lr'].help} {AUTO}")
    kept = flags["param_dtype"]
    of_run = "Default: that of the run that goes on; 'split' on a GPU with products in bf16, which saves the same fp32 SAE; else 'fp32'."
    flags["param_dtype"] = Flag(kept.type | None, None, f"{kept.help} {of_run}")
    flags |= lists or {}
    for name, value in defaults.items():
        several = name in (lists or {}) and value is not None
        default = (value,) if several else () if name in (lists or {}) else value
        flags[name] = flags[name]._replace(default=default)

    def made(names: str) -> list[tuple[str, Any, Field[Any]]]:
        return [as_field(name, flags[name]) for name in names.split()]

    groups = [(key(title), group(title, made(names))) for title, names in GROUPS.items()]
    all_fields: list[Any] = [*made(FIRST), *groups]
    namespace = {"__doc__": command.__doc__}
    return make_dataclass(
        command.__name__, all_fields, bases=(command,), namespace=namespace, frozen=True, kw_only=True
    )


def as_field(name: str, flag: Flag) -> tuple[str, Any, Field[Any]]:
    shown = SHOWN.get(name)
    annotated = Annotated[flag.type, arg(name=shown, help=flag.help)]  # type: ignore[name-defined]
    return name, annotated, field() if flag.default is MISSING else field(default=flag.default)


def group(title: str, made: list[tuple[str, Any, Field[Any]]]) -> Any:
    flags = make_dataclass(key(title), made, frozen=True, kw_only=True, namespace={"__doc__": ""})
    return Annotated[flags, arg(name=title), OmitArgPrefixes]


def key(title: str) -> str:
    return title.replace(" ", "_")


def configs_of(command: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of SAEConfig and of TrainConfig as the flags of `command` have them."""
    values = dict(vars(command))
    for title in GROUPS:
        values |= vars(values[key(title)])
    of_sae, of_train = (
        {f.name: values[f.name] for f in fields(config)} for config in (SAEConfig, TrainConfig)
    )
    return of_sae, of_train
