"""Transcoders for circuit-tracer (a file `layer_{i}.safetensors` for each layer, the config in YAML beside it). Read, not written.

    acts = g(W_enc x + b_enc), W_enc [d_sae, d_in]      x_hat = acts @ W_dec + b_dec (+ W_skip x)

g: the k largest (activation: topk and k in that config), x where x > activation_function.threshold if there is one, else
ReLU. Read in commit 4bb8c0e. Cross-layer transcoders have files W_enc_{i} and W_dec_{i} and are another thing.
"""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from saefast.formats.common import build, choice, integer, read_safetensors
from saefast.formats.contents import Contents, Origin

NAME, CONFIG = "circuit_tracer", "config.yaml"
FILES = re.compile(r"layer_(\d+)\.safetensors")
THRESHOLD = "activation_function.threshold"
NEEDED = {"W_enc", "b_enc", "W_dec", "b_dec"}


def find(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.is_file() or path.name.startswith("params"):
        return False
    if FILES.fullmatch(path.name):
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()) >= NEEDED and path.name != "sae.safetensors"
    except (SafetensorError, OSError):
        return False


def settings(path: Path) -> dict[str, str]:
    """The entries of `CONFIG` at the top level that are one word: the file has lists too, which are not used here."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    return {
        key: value.strip("'\"") for key, value in re.findall(r"^(\w+):[ \t]+([^\s#]+)", text, re.MULTILINE)
    }


def read(path: Path) -> Contents:
    found, config = read_safetensors(path), settings(path.parent / CONFIG)
    place = path.parent / CONFIG
    W_enc = found.take("W_enc", (None, None))
    d_sae, d_in = W_enc.shape
    W_dec = found.take("W_dec", (d_sae, None))
    d_out = W_dec.shape[1]
    tensors: dict[str, Tensor] = {"W_enc": W_enc, "W_dec": W_dec}
    tensors |= {"b_enc": found.take("b_enc", (d_sae,)), "b_dec": found.take("b_dec", (d_out,))}
    kind = config.get("activation", "jumprelu" if THRESHOLD in found else "relu")
    known = ("relu", "topk", "jumprelu", "jump_relu")
    kind = choice({"activation": kind}, "activation", known, "", place)
    options: dict[str, Any] = {"activation": kind.replace("_", ""), "d_out": d_out, "pre_bias": False}
    if kind == "topk":
        k = config.get("k", "")
        options["k"] = integer(
            {"k": int(k) if k.isascii() and k.isdigit() and len(k) < 10 else k}, "k", place
        )
    elif kind != "relu":
        tensors["threshold"] = found.take(THRESHOLD, (d_sae,))
    if "W_skip" in found:
        options["skip"] = True
        tensors["W_skip"] = found.take("W_skip", (d_out, d_in))
    found.rest()
    layer = FILES.fullmatch(path.name)
    hook = config.get("feature_input_hook") and layer and f"blocks.{layer[1]}.{config['feature_input_hook']}"
    described = {"model_name": config.get("model_name"), "hook_name": hook}
    return build(options, tensors, Origin(NAME, dict(config)), path, described)
