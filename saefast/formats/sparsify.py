"""EleutherAI's sparsify (eai-sparsify 1): `cfg.json`, `sae.safetensors` in a folder for each hook point.

pre = relu(encoder.weight (x - b_dec) + encoder.bias), without b_dec when `transcode`
x_hat = sum of the k largest (or the largest of each of k groups) times W_dec rows + b_dec (+ W_skip x)
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.errors import check, shown
from saefast.files import write_json
from saefast.formats.common import (
    build,
    choice,
    integer,
    origin_in,
    packed,
    read_config,
    read_safetensors,
    write_tensors,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"
OURS = {"topk": "topk", "groupmax": "group_max"}


def find(path: Path) -> bool:
    return (path / CONFIG).exists() and (path / WEIGHTS).exists()


def read(path: Path) -> Contents:
    place = path / CONFIG
    config, found = read_config(place), read_safetensors(path / WEIGHTS)
    kind = choice(config, "activation", OURS, "topk", place)
    W_enc = found.take("encoder.weight", (None, None))  # its shape counts: num_latents may be 0 in the config
    d_sae, d_in = W_enc.shape
    same = config.get("d_in", d_in) == d_in
    check(same, f"{place}: d_in: expected {d_in}, the size of the tensors, got {shown(config.get('d_in'))}")
    latents = config.get("num_latents") or d_sae
    check(latents == d_sae, f"{place}: num_latents: expected {d_sae} or 0, got {shown(latents)}")
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": found.take("encoder.bias", (d_sae,)),
        "W_dec": found.take("W_dec", (d_sae, d_in)),
        "b_dec": found.take("b_dec", (d_in,)),
    }
    transcode, skip = bool(config.get("transcode")), bool(config.get("skip_connection"))
    check(transcode or not skip, f"{place}: skip_connection: expected with transcode only, got without")
    if skip:
        tensors["W_skip"] = found.take("W_skip", (d_in, d_in))
    found.rest()
    k = integer({"k": 32} | config, "k", place)
    options: dict[str, Any] = {"activation": OURS[kind], "k": k}
    if transcode:
        options |= {"pre_bias": False, "d_out": d_in, "skip": skip}
    return build(options, tensors, Origin(NAME, config), place, {"hook_name": path.name})


def write(sae: SAELike, path: Path) -> list[str]:
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    kind = sae.config.activation
    fold.need(kind in OURS.values(), f"activation {kind!r}")
    fold.need(sae.config.input_norm in ("none", "scale"), "normalisation of rows")
    fold.need(sae.config.width_out == sae.config.d_in, "output of another width than the input")
    fold.unscaled()
    fold.unit_rows()
    if fold.config.d_out is None:
        fold.centred(True)
    ours, tensors = fold.config, fold.written()
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    out = packed({names.get(name, name): tensor for name, tensor in tensors.items()})
    defaults = {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False}
    config = defaults | {"num_latents": ours.d_sae} | origin.config
    config |= {"activation": {v: k for k, v in OURS.items()}[kind], "k": ours.k, "d_in": ours.d_in}
    config |= {"transcode": ours.d_out is not None, "skip_connection": ours.skip}
    implied = config["num_latents"] or config["d_in"] * config["expansion_factor"]
    if implied != ours.d_sae:  # the library would allocate another size
        config["num_latents"] = ours.d_sae
    write_tensors(path / WEIGHTS, out)
    write_json(path / CONFIG, config)
    return fold.notes
