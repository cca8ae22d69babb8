"""SAELens (sae-lens 6, and its older folders): `cfg.json`, `sae_weights.safetensors`.

    sae_in = norm(x) - b_dec (if apply_b_dec_to_input)      pre = sae_in @ W_enc + b_enc, W_enc [d_in, d_sae]
    topk, batchtopk with rescale_acts_by_decoder_norm: pre * ||W_dec row|| is what is selected, and the activation
    x_hat = norm^-1(acts @ W_dec + b_dec)                   jumprelu: relu(pre) * (pre > threshold)

An activation of ours is not multiplied by the norm of the decoder row: with rescale_acts_by_decoder_norm SAELens' are
that much larger. "batchtopk" and "matryoshka_batchtopk" are what `save_model` and checkpoints of a training run hold;
exported, they are jumprelu.

A checkpoint of a run that is not finished has `activation_scaler.json` beside it, the factor by which its rows were
multiplied ("expected_average_only_in"). It is folded in as SAELens does at the end: W_enc * f, W_dec / f, b_dec / f.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

import saefast
from saefast.errors import check, shown
from saefast.files import write_json
from saefast.formats.common import (
    build,
    check_declared,
    choice,
    integer,
    origin_in,
    packed,
    positive_number,
    read_config,
    read_safetensors,
    wide,
    widest,
    write_tensors,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, CONFIG, WEIGHTS = "sae_lens", "cfg.json", "sae_weights.safetensors"
FUNCTIONS = ("relu", "topk")  # of the folders from before version 6
SCALER = "activation_scaler.json"
VERSION = "6.54.12"  # of the files that `write` makes; from 6.0 on they are read as they are
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
# their architecture: our activation
SAES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
SAES |= {"batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka"}
TRANSCODERS = {"transcoder": "relu", "skip_transcoder": "relu"}
TRANSCODERS |= {"jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu"}
OURS = SAES | TRANSCODERS
TRAINING = ("batchtopk", "matryoshka_batchtopk")  # no inference class has these names


def find(path: Path) -> bool:
    return (path / CONFIG).exists() and not (path / "sae.safetensors").exists()


def read(path: Path) -> Contents:
    place = path / CONFIG
    config = modern(read_config(place), place)
    kind = choice(config, "architecture", OURS, "standard", place)
    norm = config.get("normalize_activations", "none")
    if norm == "expected_average_only_in":  # of a training run; SAELens leaves it to the caller
        norm = "none"
    norm = choice({"normalize_activations": norm}, "normalize_activations", NORMS, "none", place)
    found = read_safetensors(path / WEIGHTS)
    tensors: dict[str, Tensor] = {"W_enc": found.take("W_enc", (None, None)).T.contiguous()}
    d_sae, d_in = tensors["W_enc"].shape
    options: dict[str, Any] = {"activation": OURS[kind], "input_norm": NORMS[norm]}
    options["pre_bias"] = bool(config.get("apply_b_dec_to_input", True))
    width = d_in
    if kind.endswith("transcoder"):
        width = integer(config, "d_out", place)
        options |= {"d_out": width, "skip": "skip" in kind, "pre_bias": False}
    check_declared(config, place, d_in=d_in, d_sae=d_sae)
    tensors["W_dec"], tensors["b_dec"] = found.take("W_dec", (d_sae, width)), found.take("b_dec", (width,))
    tensors["b_enc"] = found.take("b_gate" if kind == "gated" else "b_enc", (d_sae,))
    if "log_threshold" in found:  # checkpoints of before version 6.13
        tensors["threshold"] = wide(found.take("log_threshold", (d_sae,))).exp()
    elif options["activation"] == "jumprelu":
        tensors["threshold"] = found.take("threshold", (d_sae,))
    if kind == "gated":
        tensors["r_mag"], tensors["b_mag"] = found.take("r_mag", (d_sae,)), found.take("b_mag", (d_sae,))
    if options.get("skip"):
        tensors["W_skip"] = found.take("W_skip", (width, d_in))
    if kind in ("topk", *TRAINING):
        options |= {"k": integer(config, "k", place)}
        options["scale_by_norm"] = bool(config.get("rescale_acts_by_decoder_norm", False))
    if kind in TRAINING:
        tensors["threshold"] = found.take("topk_threshold", ())  # fp64
    if kind == "matryoshka_batchtopk":
        given = config.get("matryoshka_widths") or []
        ok = isinstance(given, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
        check(ok, f"{place}: matryoshka_widths: expected integers, got {shown(given)}")
        widths = list(given)
        options["group_sizes"] = tuple(widths if widths and widths[-1] == d_sae else [*widths, d_sae])
    scaling = found.rest("scaling_factor").get("scaling_factor")
    ones = scaling is None or bool((scaling == 1).all())
    check(ones, f"{found.path}: scaling_factor: expected none, or ones, got finetuned scales")
    metadata = config.get("metadata") or {}
    origin = Origin(NAME, config)
    if (path / SCALER).exists():
        by_norm = options.get("scale_by_norm") and kind in TRAINING
        tensors, was = _scaled(tensors, path / SCALER, by_norm), tensors
        if tensors is not was:
            names = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in was.items()}
            origin = Origin(NAME, config | {"normalize_activations": "none"}, dtypes=names)
    described = {key: metadata.get(key) for key in ("model_name", "hook_name")}
    return build(options, tensors, origin, place, described)


def _scaled(tensors: dict[str, Tensor], path: Path, by_norm: bool | None) -> dict[str, Tensor]:
    """The tensors with the factor of the file at `path`, if it has one. by_norm: their threshold is one of
    pre_acts * ||W_dec row||, so that it is divided too."""
    scaler = read_config(path)
    check(
        not scaler.get("has_whitening"),
        f"{path}: has_whitening: expected false (its final SAE has it folded in)",
    )
    if scaler.get("scaling_factor") is None:
        return tensors
    factor = positive_number(scaler, "scaling_factor", path)
    made = {name: wide(tensor) for name, tensor in tensors.items()}
    made |= {
        "W_enc": made["W_enc"] * factor,
        "W_dec": made["W_dec"] / factor,
        "b_dec": made["b_dec"] / factor,
    }
    return made | ({"threshold": made["threshold"] / factor} if by_norm else {})


def modern(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config of a folder from before version 6 with the names of today."""
    metadata = config.get("metadata") or {}
    check(isinstance(metadata, dict), f"{path}: metadata: expected an object, got {shown(metadata)}")
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version")
    if version is not None and not str(version).startswith(tuple("12345")):
        return config
    renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    # its version goes too: with it, what is written of this config would be taken for an older one again
    config = {renamed.get(key, key): value for key, value in config.items() if key != "sae_lens_version"}
    norm = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if norm is True else norm
    check(not config.get("finetuning_scaling_factor"), f"{path}: finetuning_scaling_factor: expected false")
    arguments = config.pop("activation_fn_kwargs", None) or {}
    check(
        isinstance(arguments, dict),
        f"{path}: activation_fn_kwargs: expected an object, got {shown(arguments)}",
    )
    function = choice(
        {"activation_fn": config.get("activation_fn") or "relu"}, "activation_fn", FUNCTIONS, "", path
    )
    if function == "topk":
        config |= {"architecture": "topk", "k": arguments.get("k")}
    names = ("model_name", "hook_name", "hook_head_index", "context_size", "prepend_bos", "dataset_path")
    described = {key: config.pop(key) for key in names if key in config}
    return config | {"metadata": described | {"sae_lens_version": VERSION}}


def write(sae: SAELike, path: Path) -> list[str]:
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    config = origin.config
    fold.need(sae.config.activation != "group_max", "activation 'group_max'")
    fold.unscaled()
    training = config.get("architecture") in TRAINING
    if not training and sae.config.activation in ("batch_topk", "matryoshka"):
        fold.unit_rows()
        fold.jumprelu()
    elif sae.config.activation == "jumprelu":
        fold.unit_rows()
    ours, tensors = fold.config, fold.written()
    if ours.d_out is not None:
        fold.need(ours.activation in ("relu", "jumprelu"), f"transcoder with activation {ours.activation!r}")
        kind = "skip_transcoder" if ours.skip else "transcoder"
        kind = f"jumprelu_{kind}" if ours.activation == "jumprelu" else kind
    else:
        ours_to_theirs = {ours: theirs for theirs, ours in SAES.items()}
        kind = config["architecture"] if training else ours_to_theirs[ours.activation]
    out = packed(tensors | {"W_enc": tensors["W_enc"].T})
    if kind == "gated":
        out["b_gate"] = out.pop("b_enc")
    if training:
        out["topk_threshold"] = out.pop("threshold")
    norm = {ours: theirs for theirs, ours in NORMS.items()}[ours.input_norm]
    if config.get("normalize_activations") == "expected_average_only_in":
        norm = "expected_average_only_in"
    config = {"device": "cpu", "reshape_activations": "none"} | config
    config |= {"d_in": ours.d_in, "d_sae": ours.d_sae, "architecture": kind}
    if not (fold.as_it_was and "dtype" in config):  # their loader brings every tensor to this dtype
        config["dtype"] = widest(out)
    config |= {"apply_b_dec_to_input": ours.pre_bias, "normalize_activations": norm}
    if kind in ("topk", *TRAINING):
        k = config.get("k", ours.k)  # SAELens' may be 32.0
        config |= {"k": k if k == ours.k else ours.k, "rescale_acts_by_decoder_norm": ours.scale_by_norm}
    if ours.d_out is not None:
        config["d_out"] = ours.d_out
    # without a version of theirs the folder would be read as one from before 6
    fresh = {"sae_lens_version": VERSION, "sae_lens_training_version": None, "hook_head_index": None}
    fresh |= {"saefast_version": saefast.__version__} | sae.metadata
    if "hook_name" in fresh and "hook_" not in str(
        fresh["hook_name"]
    ):  # a module of transformers, not of TransformerLens
        fresh |= {"model_class_name": "AutoModelForCausalLM"}
    config["metadata"] = config.get("metadata") or fresh
    write_tensors(path / WEIGHTS, out)
    write_json(path / CONFIG, config)
    return fold.notes
