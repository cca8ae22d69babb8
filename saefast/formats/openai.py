"""openai/sparse_autoencoder: one file of `torch.save` with the state of its `Autoencoder`.

    latents = act(encoder.weight (x - pre_bias) + latent_bias)      recons = decoder.weight latents + pre_bias

With activation "TopK" rows go through a layer norm (and back), with "ReLU" they do not. Tied models have
`decoder.linear.weight`, which is the encoder's. The public ones are `.pt` files named by layer.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.files import write_atomic
from saefast.formats import released
from saefast.formats.common import (
    Tensors,
    build,
    choice,
    config_beside,
    integer,
    origin_in,
    packed,
    read_pickle,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, WEIGHTS = "openai", "autoencoder.pt"
KINDS = ("TopK", "ReLU")
MORE = ("activation.k", "activation.postact_fn")  # their state has these twice
STATS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def find(path: Path) -> bool:
    """A .pt file that has no config beside it, or a folder that `write` made."""
    if path.suffix in (".pt", ".pth"):
        return path.is_file() and not config_beside(path).exists() and not released.find(path)
    return (path / WEIGHTS).exists()


def read(path: Path) -> Contents:
    path = path / WEIGHTS if path.is_dir() else path
    found = Tensors(path, read_pickle(path))
    if released.layout(found.left):  # under another name than the published one
        return released.of(found, path)
    kind = choice({"activation": found.left.pop("activation", "ReLU")}, "activation", KINDS, "ReLU", path)
    state: Any = found.left.pop("activation_state_dict", {})
    W_enc = found.take("encoder.weight", (None, None))
    d_sae, d_in = W_enc.shape
    tied = "decoder.linear.weight" in found
    if tied:
        W_dec = found.take("decoder.linear.weight", (d_sae, d_in))
    else:
        W_dec = found.take("decoder.weight", (d_in, d_sae)).T
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": found.take("latent_bias", (d_sae,)),
        "W_dec": W_dec.contiguous(),
        "b_dec": found.take("pre_bias", (d_in,)),
    }
    options: dict[str, Any] = {"activation": "relu"}
    if kind == "TopK":
        after = state.get("postact_fn", "ReLU") if isinstance(state, dict) else None
        choice({"postact_fn": after}, "postact_fn", ("ReLU",), "ReLU", path)
        options = {"activation": "topk", "k": integer(state, "k", path), "input_norm": "layer_norm"}
    more = {name: found.left.pop(name) for name in MORE if name in found}
    origin = Origin(NAME, {"tied": tied, "more": more}, found.rest(*STATS))
    return build(options, tensors, origin, path, {})


def write(sae: SAELike, path: Path) -> list[str]:
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    kind = sae.config.activation
    fold.need(kind in ("topk", "relu"), f"activation {kind!r}")
    fold.need(sae.config.d_out is None, "transcoders")
    fold.unscaled()
    fold.unit_rows()
    wanted = "layer_norm" if kind == "topk" else "none"
    fold.need(fold.config.input_norm == wanted, f"{kind!r} with other rows than {wanted!r}")
    fold.centred(True)
    ours = fold.config
    written = fold.written()
    W_enc, W_dec = written["W_enc"], written["W_dec"]
    tensors = {"pre_bias": written["b_dec"], "encoder.weight": W_enc, "latent_bias": written["b_enc"]}
    tied = origin.config.get("tied", False) and torch.equal(W_enc, W_dec)
    tensors |= {"decoder.linear.weight": W_dec} if tied else {"decoder.weight": W_dec.T}
    fresh = {
        "stats_last_nonzero": torch.zeros(ours.d_sae, dtype=torch.int64, device="cpu"),
        "latents_activation_frequency": torch.ones(ours.d_sae, dtype=torch.float32, device="cpu"),
        "latents_mean_square": torch.zeros(ours.d_sae, dtype=torch.float32, device="cpu"),
    }
    out: dict[str, Any] = packed(tensors) | fresh | origin.tensors
    out["activation"] = "TopK" if kind == "topk" else "ReLU"
    out["activation_state_dict"] = {"k": ours.k, "postact_fn": "ReLU"} if kind == "topk" else {}
    out |= origin.config.get("more", {})
    write_atomic(path / WEIGHTS, lambda temporary: torch.save(out, temporary))
    return fold.notes
