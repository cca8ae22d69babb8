"""Llama Scope (OpenMOSS, 2024): `hyperparams.json`, `checkpoints/final.safetensors`. It is read, not written.

    pre = (f x) @ encoder.weight.T + encoder.bias, f = sqrt(d_model) / the mean norm of the data
    acts = pre where pre > f * jump_relu_threshold        x_hat = (acts @ decoder.weight.T + decoder.bias) / f

As SAELens 6.54 reads it (the factor of the threshold: its PR 483). Later files of the group: `llamascopium`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.errors import check, shown
from saefast.formats.common import (
    build,
    check_declared,
    choice,
    positive_number,
    read_config,
    read_safetensors,
)
from saefast.formats.contents import Contents, Origin

NAME, CONFIG, WEIGHTS = "llama_scope", "hyperparams.json", "checkpoints/final.safetensors"
UNKNOWN = ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder")


def find(path: Path) -> bool:
    return (path / CONFIG).exists() and not (path / "config.json").exists()


def read(path: Path) -> Contents:
    place = path / CONFIG
    config, found = read_config(place), read_safetensors(path / WEIGHTS)
    choice(config, "act_fn", ["jumprelu"], "jumprelu", place)
    for name in UNKNOWN:
        check(not config.get(name), f"{place}: {name}: expected false, got {shown(config.get(name))}")
    W_enc = found.take("encoder.weight", (None, None))
    d_sae, d_in = W_enc.shape
    check_declared(config, place, d_model=d_in, d_sae=d_sae)
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": found.take("encoder.bias", (d_sae,)),
        "W_dec": found.take("decoder.weight", (d_in, d_sae)).T.contiguous(),
        "b_dec": found.take("decoder.bias", (d_in,)),
    }
    found.rest()
    norms = config.get("dataset_average_activation_norm")
    check(
        isinstance(norms, dict),
        f"{place}: dataset_average_activation_norm: expected in and out, got {shown(norms)}",
    )
    assert isinstance(norms, dict)
    into, out = config.get("hook_point_in"), config.get("hook_point_out")
    scales = [math.sqrt(d_in) / positive_number(norms, name, place) for name in ("in", "out")]
    scales[1] = scales[1] if into != out else scales[0]
    threshold = scales[0] * positive_number(config, "jump_relu_threshold", place)
    tensors["threshold"] = torch.full((d_sae,), threshold, dtype=torch.float32, device="cpu")
    options: dict[str, Any] = {"activation": "jumprelu", "pre_bias": False}
    options |= {"input_norm": "scale", "scales": tuple(scales)}
    if into != out:
        options["d_out"] = d_in
    return build(options, tensors, Origin(NAME, config), place, {"hook_name": into})
