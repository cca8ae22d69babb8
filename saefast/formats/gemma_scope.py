"""Gemma Scope 1, `params.npz`, and 2, `params.safetensors` with `config.json`: JumpReLU.

    pre = x @ W_enc + b_enc      acts = relu(pre) * (pre > threshold)      x_hat = acts @ W_dec + b_dec

Nothing is subtracted or normalised. 2 has transcoders: another d_out, and `affine_skip_connection` [d_in, d_out]. The
embedding SAEs of 1 (in a folder "embedding", as on the Hub) are read as SAELens does it: W_enc / sqrt(d_in),
W_dec * sqrt(d_in), b_dec as it is.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.errors import check
from saefast.files import write_atomic, write_json
from saefast.formats.common import (
    build,
    choice,
    origin_in,
    packed,
    read_config,
    read_npz,
    read_safetensors,
    wide,
    write_tensors,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, FIRST, SECOND, CONFIG = "gemma_scope", "params.npz", "params.safetensors", "config.json"
EMBEDDING = "embedding"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def find(path: Path) -> bool:
    return path.name in (FIRST, SECOND) or (path / FIRST).exists() or (path / SECOND).exists()


def read(path: Path) -> Contents:
    if path.is_dir():
        path = path / (FIRST if (path / FIRST).exists() else SECOND)
    second = path.name == SECOND
    found = read_safetensors(path) if second else read_npz(path)
    theirs = {name: name for name in NAMES}
    lower = {name: name.lower() for name in NAMES}
    names = lower if "w_enc" in found else theirs
    W_enc = found.take(names["W_enc"], (None, None)).T.contiguous()
    d_sae, d_in = W_enc.shape
    W_dec = found.take(names["W_dec"], (d_sae, None))
    tensors: dict[str, Tensor] = {"W_enc": W_enc, "W_dec": W_dec}
    tensors |= {n: found.take(names[n], (d_sae,)) for n in ("b_enc", "threshold")}
    tensors["b_dec"] = found.take(names["b_dec"], (W_dec.shape[1],))
    config: dict[str, Any] = {}
    place = path.with_name(CONFIG)
    if second and place.exists():
        config = read_config(place)
        choice(config, "architecture", ["jump_relu"], "jump_relu", place)
    into, out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    skip = "affine_skip_connection" in found
    options: dict[str, Any] = {"activation": "jumprelu", "pre_bias": False}
    if skip or W_dec.shape[1] != d_in or into != out:
        options |= {"d_out": W_dec.shape[1], "skip": skip}
    if skip:
        shape = (d_in, W_dec.shape[1])
        tensors["W_skip"] = found.take("affine_skip_connection", shape).T.contiguous()
    scaling = found.rest("scaling_factor").get("scaling_factor")
    check(scaling is None or bool((scaling == 1).all()), f"{path}: scaling_factor: expected ones")
    if not second and EMBEDDING in path.parts:
        root = math.sqrt(d_in)
        tensors |= {"W_enc": wide(tensors["W_enc"]) / root, "W_dec": wide(tensors["W_dec"]) * root}
    kept = {"version": 2 if second else 1, "lower": names is lower, "config": config}
    described = {"model_name": config.get("model_name"), "hook_name": into}
    return build(options, tensors, Origin(NAME, kept), path, described)


def write(sae: SAELike, path: Path) -> list[str]:
    """Version 1 is written if it can hold the SAE and the SAE does not come from a file of version 2."""
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    ok = EMBEDDING not in path.parts
    check(ok, f"path: expected no folder {EMBEDDING!r} (what is in one is read with a scale), got {path}")
    fold.need(sae.config.input_norm in ("none", "scale"), "normalisation of rows")
    fold.unscaled()
    fold.unit_rows()
    fold.jumprelu()
    fold.centred(False)
    ours = fold.config
    written = fold.written()
    out = {name: written[name] for name in NAMES}
    out["W_enc"] = out["W_enc"].T
    if "W_skip" in written:
        out["affine_skip_connection"] = written["W_skip"].T
    out, kept = packed(out), origin.config
    if kept.get("version", 1) == 1 and ours.d_out is None:
        names = {name: name.lower() if kept.get("lower") else name for name in out}
        arrays: dict[str, Any] = {}
        for name, tensor in out.items():  # numpy has no bf16 and no fp8
            held = tensor.dtype in (torch.float64, torch.float32, torch.float16)
            arrays[names[name]] = (tensor if held else tensor.float()).numpy()

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # given a path it would add .npz
                np.savez(file, **arrays)

        write_atomic(path / FIRST, save)
        return fold.notes
    hook = sae.metadata.get("hook_name")
    config = {"model_name": sae.metadata.get("model_name"), "hf_hook_point_in": hook}
    config |= {"hf_hook_point_out": hook if ours.d_out is None else None, "width": ours.d_sae}
    config |= kept.get("config", {}) | {"architecture": "jump_relu", "affine_connection": ours.skip}
    write_tensors(path / SECOND, {name.lower(): tensor for name, tensor in out.items()})
    write_json(path / CONFIG, config)
    return fold.notes
