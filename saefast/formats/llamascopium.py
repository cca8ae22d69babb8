"""llamascopium (OpenMOSS Language-Model-SAEs 2; earlier lm-saes): `config.json` and `sae_weights.safetensors` or `.pt`.

    pre = (f x) @ W_E + b_E        acts = g(pre * n) / n, n = ||W_D row|| with sparsity_include_decoder_norm, else 1
    x_hat = (acts @ W_D + b_D) / f'      g: ReLU, TopK, or x where x > exp(log_jumprelu_threshold)

f is sqrt(d_model) over: the mean norm of the data ("dataset-wise", in the file), the norm of the row ("token-wise"), or
f = 1 ("inference"). Their `forward` leaves f to the caller; an SAE here has it in. "batch-wise" and BatchTopK need
a batch, and a GLU encoder is another function: refused. Files of before version 2 (Llama Scope R1 Distill) have other
names, and the norms in config.json: they are read.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.errors import InputError, check
from saefast.files import write_json
from saefast.formats.common import (
    Tensors,
    build,
    check_declared,
    choice,
    integer,
    origin_in,
    packed,
    read_config,
    read_pickle,
    read_safetensors,
    wide,
    write_tensors,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, CONFIG, WEIGHTS = "llamascopium", "config.json", "sae_weights.safetensors"
STEMS = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
PLACES = tuple(
    f"{stem}.{suffix}" for stem in STEMS for suffix in ("safetensors", "pt")
)  # the first that exists
THRESHOLD, NORM = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."
OLDER = {"encoder.weight": "W_E", "encoder.bias": "b_E", "decoder.weight": "W_D", "decoder.bias": "b_D"}
OLDER |= {"log_jumprelu_threshold": THRESHOLD}
KINDS = ("relu", "topk", "jumprelu")


def find(path: Path) -> bool:
    return (path / CONFIG).exists() and any((path / place).exists() for place in PLACES)


def read(path: Path) -> Contents:
    place = path / CONFIG
    config = read_config(place)
    weights = next((path / p for p in PLACES if (path / p).exists()), path / WEIGHTS)
    if weights.suffix == ".pt":
        loaded = read_pickle(weights)
        found = Tensors(weights, loaded.get("sae", loaded) if isinstance(loaded, dict) else loaded)
    else:
        found = read_safetensors(weights)
    choice(config, "sae_type", ["sae"], "sae", place)
    if "encoder.weight" in found:
        _renamed(found, config)
    batch = config.get("act_fn") == "batchtopk"
    check(
        not batch,
        f"{place}: act_fn: expected one of {list(KINDS)} (batchtopk has no threshold), got 'batchtopk'",
    )
    kind = choice(config, "act_fn", KINDS, "relu", place)
    check(not config.get("use_glu_encoder"), f"{place}: use_glu_encoder: expected false, got true")
    W_enc = found.take("W_E", (None, None)).T.contiguous()
    d_sae, d_in = W_enc.shape
    check_declared(config, place, d_model=d_in)
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": found.take("b_E", (d_sae,)),
        "W_dec": found.take("W_D", (d_sae, d_in)),
    }
    biased = config.get("use_decoder_bias", True)
    tensors["b_dec"] = (
        found.take("b_D", (d_in,)) if biased else torch.zeros(d_in, dtype=torch.float32, device="cpu")
    )
    options: dict[str, Any] = {"activation": kind, "pre_bias": False}
    kept: dict[str, Tensor] = {}
    if kind != "relu":  # ReLU selects the same latents with and without the norms
        options["scale_by_norm"] = bool(config.get("sparsity_include_decoder_norm", True))
    if kind == "topk":
        options["k"] = integer({"top_k": 50} | config, "top_k", place)
    elif kind == "jumprelu":
        kept[THRESHOLD] = found.left.get(THRESHOLD, torch.zeros((), dtype=torch.float32, device="cpu"))
        tensors["threshold"] = wide(found.take(THRESHOLD, (d_sae,))).exp()
    kept |= found.rest(NORM)
    into, out = config.get("hook_point_in"), config.get("hook_point_out")
    if into != out:
        options["d_out"] = d_in
    norms = ["inference", "token-wise", "dataset-wise"]
    norm = choice(config, "norm_activation", norms, "dataset-wise", place)
    if norm == "token-wise":
        options["input_norm"] = "constant_norm"
    elif norm == "dataset-wise":
        scales = (_factor(kept, into, d_in, weights), _factor(kept, out, d_in, weights))
        options |= {"input_norm": "scale", "scales": scales}
    return build(options, tensors, Origin(NAME, config, kept), place, {"hook_name": into})


def _renamed(found: Tensors, config: dict[str, Any]) -> None:
    """Give the tensors of an older file the names of today."""
    for was, now in OLDER.items():
        tensor = found.left.pop(was, None)
        if tensor is not None:
            found.left[now] = tensor.T if now in ("W_E", "W_D") and isinstance(tensor, Tensor) else tensor
    norms = config.get("dataset_average_activation_norm")
    for side, value in norms.items() if isinstance(norms, dict) else ():
        if side in ("in", "out") and isinstance(value, float):
            found.left.setdefault(
                f"{NORM}{config.get(f'hook_point_{side}')}",
                torch.tensor(value, dtype=torch.float32, device="cpu"),
            )


def _factor(tensors: dict[str, Tensor], hook: Any, d_in: int, path: Path) -> float:
    """sqrt(d_in) over the mean norm of the data at this hook point."""
    norm = tensors.get(f"{NORM}{hook}")
    if norm is None or norm.numel() != 1 or not 0 < float(norm) < math.inf:
        raise InputError(f"{path}: {NORM}{hook}: expected a positive number (dataset-wise), got {norm}")
    return math.sqrt(d_in) / float(norm)


def write(sae: SAELike, path: Path) -> list[str]:
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    config, kind = origin.config, sae.config.activation
    fold.need(kind in (*KINDS, "batch_topk", "matryoshka"), f"activation {kind!r}")
    fold.need(sae.config.input_norm != "layer_norm", "layer norm")
    fold.need(sae.config.width_out == sae.config.d_in and not sae.config.skip, "such transcoder")
    as_it_was = sae.config.input_norm == "scale" and config.get("norm_activation") == "dataset-wise"
    if not as_it_was:
        fold.unscaled()
    fold.centred(False)
    if fold.config.activation not in KINDS:
        fold.jumprelu()
    ours = fold.config
    written = fold.written()
    tensors = {"W_E": written["W_enc"].T, "b_E": written["b_enc"]}
    tensors |= {"W_D": written["W_dec"], "b_D": written["b_dec"]}
    if not config.get("use_decoder_bias", True) and not tensors["b_D"].any():
        del tensors["b_D"]
    out = packed(tensors)
    if ours.activation == "jumprelu":
        threshold = fold.tensors["threshold"]
        was = origin.tensors.get(THRESHOLD)
        if was is not None and torch.equal(wide(was).exp().to(threshold.dtype), threshold):
            out[THRESHOLD] = was
        else:
            fold.notes.append("the threshold as its logarithm: rounded, and a threshold of 0 as 1e-38")
            out[THRESHOLD] = threshold.log().clamp_min(math.log(1e-38))
    hook = sae.metadata.get("hook_name") or "unknown"
    config = {"hook_point_in": hook, "hook_point_out": hook if ours.d_out is None else f"{hook}.out"} | config
    norms = {n: t for n, t in origin.tensors.items() if n.startswith(NORM)}
    hooks = dict.fromkeys((config["hook_point_in"], config["hook_point_out"]))
    out |= {
        f"{NORM}{hook}": norms.get(f"{NORM}{hook}", torch.ones((), dtype=torch.float32, device="cpu"))
        for hook in hooks
    }
    scaled = {"constant_norm": "token-wise", "scale": "dataset-wise"}
    config |= {"sae_type": "sae", "d_model": ours.d_in, "act_fn": ours.activation}
    config |= {"norm_activation": scaled.get(ours.input_norm, "inference")}
    config |= {"use_decoder_bias": "b_D" in out, "use_glu_encoder": False}
    if int(ours.d_in * config.get("expansion_factor", 0)) != ours.d_sae:
        ratio = ours.d_sae / ours.d_in
        exact = int(ours.d_in * ratio) == ours.d_sae
        config["expansion_factor"] = ratio if exact else math.nextafter(ratio, math.inf)
    if ours.activation != "relu":
        config["sparsity_include_decoder_norm"] = ours.scale_by_norm
    if ours.k is not None:
        config["top_k"] = ours.k
    write_tensors(path / WEIGHTS, out, {"version": "2.0.0b34"})
    write_json(path / CONFIG, config)
    return fold.notes
