"""dictionary_learning (saprmarks): `ae.pt` and `config.json` of a trainer, every dict_class.

    AutoEncoder             relu(encoder(x - bias)), decoder(f) + bias        AutoEncoderNew  the same without `- bias`
    GatedAutoEncoder        (z + gate_bias > 0) * relu(exp(r_mag) z + mag_bias), z = encoder(x - decoder_bias)
    AutoEncoderTopK         k largest of relu(encoder(x - b_dec))
    BatchTopKSAE, MatryoshkaBatchTopKSAE   relu(encoder(x - b_dec)) above `threshold`
    JumpReluAutoEncoder     relu(pre) where pre > threshold, pre = x @ W_enc + b_enc

A threshold of -1 was never set: every positive activation passes. Their `AutoEncoder.from_pretrained` gives the decoder
unit rows where it has none; we keep what the file says. The file of `backup_steps` is read too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.errors import check, shown
from saefast.files import write_atomic, write_json
from saefast.formats.common import (
    Tensors,
    build,
    check_declared,
    choice,
    config_beside,
    integer,
    origin_in,
    packed,
    read_config,
    read_pickle,
)
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import Folding

NAME, WEIGHTS, CONFIG = "dictionary_learning", "ae.pt", "config.json"
# their names of our tensors
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
GATE = {"b_enc": "gate_bias", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}
THRESHOLD = {"threshold": "threshold"}
# dict_class: its trainer, our activation, their names of our tensors, which of the tensors is transposed
CLASSES: dict[str, tuple[str, str, dict[str, str], str]] = {
    "AutoEncoder": ("StandardTrainer", "relu", LINEAR | {"b_dec": "bias"}, "W_dec"),
    "AutoEncoderNew": ("StandardTrainerAprilUpdate", "relu", LINEAR | {"b_dec": "decoder.bias"}, "W_dec"),
    "GatedAutoEncoder": ("GatedSAETrainer", "gated", LINEAR | GATE, "W_dec"),
    "AutoEncoderTopK": ("TopKTrainer", "topk", LINEAR | {"b_dec": "b_dec"}, "W_dec"),
    "BatchTopKSAE": ("BatchTopKTrainer", "batch_topk", LINEAR | {"b_dec": "b_dec"} | THRESHOLD, "W_dec"),
    "MatryoshkaBatchTopKSAE": ("MatryoshkaBatchTopKTrainer", "matryoshka", PLAIN | THRESHOLD, "W_enc"),
    "JumpReluAutoEncoder": ("JumpReluTrainer", "jumprelu", PLAIN | THRESHOLD, "W_enc"),
}
UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")  # they do not subtract b_dec from the input


def find(path: Path) -> bool:
    """A trainer's folder, or a file in it or in its `checkpoints`."""
    if path.suffix == ".pt":
        return config_beside(path).exists()
    return (path / WEIGHTS).exists()


def read(path: Path) -> Contents:
    weights = path if path.suffix == ".pt" else path / WEIGHTS
    place = config_beside(weights)
    config = read_config(place)
    trainer = config.get("trainer")
    check(isinstance(trainer, dict), f"{place}: trainer: expected an object, got {type(trainer).__name__}")
    assert isinstance(trainer, dict)
    kind = choice(trainer, "dict_class", CLASSES, "none", place)
    _, activation, names, transposed = CLASSES[kind]
    loaded = read_pickle(weights)
    if isinstance(loaded, dict) and "ae" in loaded:  # of backup_steps
        loaded = loaded["ae"]
    found = Tensors(weights, loaded)
    W_enc = found.take(names["W_enc"], (None, None))
    W_enc = W_enc.T.contiguous() if transposed == "W_enc" else W_enc
    d_sae, d_in = W_enc.shape
    check_declared(trainer, place, activation_dim=d_in, dict_size=d_sae)
    W_dec = found.take(names["W_dec"], (d_in, d_sae) if transposed == "W_dec" else (d_sae, d_in))
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "W_dec": W_dec.T.contiguous() if transposed == "W_dec" else W_dec,
    }
    for name in names.keys() - {"W_enc", "W_dec"}:
        scalar = name == "threshold" and activation != "jumprelu"
        tensors[name] = found.take(names[name], () if scalar else (d_in if name == "b_dec" else d_sae,))
    options: dict[str, Any] = {"activation": activation, "pre_bias": kind not in UNCENTRED}
    kept = found.rest("k", "group_sizes", *(["threshold"] if activation == "topk" else []))
    if activation in ("topk", "batch_topk", "matryoshka"):
        check("k" in kept, f"{weights}: k: expected a tensor, found none")
        options["k"] = integer({"k": kept["k"].item() if kept["k"].numel() == 1 else None}, "k", weights)
    if activation == "matryoshka":
        sizes = kept.get("group_sizes")
        ok = sizes is not None and sizes.ndim == 1 and sizes.dtype in (torch.int32, torch.int64)
        check(ok, f"{weights}: group_sizes: expected a tensor of integers, got {shown(sizes)}")
        options["group_sizes"] = tuple(kept["group_sizes"].cumsum(0).tolist())
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    described = {"model_name": trainer.get("lm_name"), "hook_name": submodule, "layer": layer}
    return build(options, tensors, Origin(NAME, config, kept), place, described)


def write(sae: SAELike, path: Path) -> list[str]:
    fold, origin = Folding(sae, NAME), origin_in(sae, NAME)
    fold.need(sae.config.activation != "group_max", "activation 'group_max'")
    fold.need(sae.config.input_norm in ("none", "scale"), "normalisation of rows")
    fold.need(not sae.config.skip, "skip connection")
    fold.need(sae.config.width_out == sae.config.d_in, "output of another width than the input")
    fold.unscaled()
    fold.unit_rows()
    kind = next(name for name, (_, found, _, _) in CLASSES.items() if found == fold.config.activation)
    if fold.config.activation == "relu" and not fold.config.pre_bias:
        kind = "AutoEncoderNew"
    fold.centred(kind not in UNCENTRED)
    trainer_class, _, names, transposed = CLASSES[kind]
    ours = fold.config
    tensors = fold.written()
    tensors |= {transposed: tensors[transposed].T}
    out = packed({theirs: tensors[name] for name, theirs in names.items()})
    if ours.k is not None:
        out["k"] = torch.tensor(ours.k, dtype=torch.int32, device="cpu")
    if ours.activation == "topk":
        out["threshold"] = origin.tensors.get(
            "threshold", torch.tensor(-1.0, dtype=torch.float32, device="cpu")
        )
    if ours.activation == "matryoshka":
        out["group_sizes"] = torch.tensor(ours.group_sizes, dtype=torch.int64, device="cpu").diff(
            prepend=torch.zeros(1, dtype=torch.int64, device="cpu")
        )
    fresh = {"trainer_class": trainer_class, "lm_name": sae.metadata.get("model_name", "")}
    fresh |= {"layer": sae.metadata.get("layer"), "submodule_name": sae.metadata.get("hook_name")}
    fresh |= {"wandb_name": trainer_class, "device": "cpu"}
    trainer = dict(origin.config.get("trainer", fresh))
    trainer |= {"dict_class": kind, "activation_dim": ours.d_in, "dict_size": ours.d_sae}
    if ours.k is not None:
        trainer["k"] = ours.k
    write_atomic(path / WEIGHTS, lambda temporary: torch.save(out, temporary))
    write_json(path / CONFIG, {"buffer": {}} | origin.config | {"trainer": trainer})
    return fold.notes
