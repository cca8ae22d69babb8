"""dictionary_learning (saprmarks): `ae.pt` and `config.json` of a trainer, every dict_class.

    AutoEncoder             relu(encoder(x - bias)), decoder(f) + bias        AutoEncoderNew  the same without `- bias`
    GatedAutoEncoder        (z + gate_bias > 0) * relu(exp(r_mag) z + mag_bias), z = encoder(x - decoder_bias)
    AutoEncoderTopK         k largest of relu(encoder(x - b_dec))
    BatchTopKSAE, MatryoshkaBatchTopKSAE   relu(encoder(x - b_dec)) above `threshold`
    JumpReluAutoEncoder     relu(pre) where pre > threshold, pre = x @ W_enc + b_enc

A threshold of -1 was never set: every positive activation passes. `AutoEncoder.from_pretrained` of theirs gives the
decoder unit rows when it has not; we keep what the file says. Also read: the file of `backup_steps`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.errors import check
from saefast.files import write_atomic, write_json
from saefast.formats.common import Tensors, before, build, declared, integer, read_config, read_pickle
from saefast.formats.folding import Folding
from saefast.sae import SAE, Origin

NAME, WEIGHTS, CONFIG = "dictionary_learning", "ae.pt", "config.json"
# dict_class: our activation, their names of our tensors, which of them are transposed
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
GATED = {
    "W_enc": "encoder.weight", "b_enc": "gate_bias", "W_dec": "decoder.weight", "b_dec": "decoder_bias",
    "r_mag": "r_mag", "b_mag": "mag_bias",
}  # fmt: skip
CLASSES: dict[str, tuple[str, dict[str, str], str]] = {
    "AutoEncoder": ("relu", LINEAR | {"b_dec": "bias"}, "W_dec"),
    "AutoEncoderNew": ("relu", LINEAR | {"b_dec": "decoder.bias"}, "W_dec"),
    "GatedAutoEncoder": ("gated", GATED, "W_dec"),
    "AutoEncoderTopK": ("topk", LINEAR | {"b_dec": "b_dec"}, "W_dec"),
    "BatchTopKSAE": ("batch_topk", LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, "W_dec"),
    "MatryoshkaBatchTopKSAE": ("matryoshka", PLAIN | {"threshold": "threshold"}, "W_enc"),
    "JumpReluAutoEncoder": ("jumprelu", PLAIN | {"threshold": "threshold"}, "W_enc"),
}
UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
TRAINERS = {
    "AutoEncoder": "StandardTrainer", "AutoEncoderNew": "StandardTrainerAprilUpdate", "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer", "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer", "JumpReluAutoEncoder": "JumpReluTrainer",
}  # fmt: skip


def find(path: Path) -> bool:
    """A trainer's folder, or a file in it or in its `checkpoints`."""
    if path.suffix == ".pt":
        return config_of(path).exists()
    return (path / WEIGHTS).exists()


def config_of(weights: Path) -> Path:
    folder = weights.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / CONFIG


def read(path: Path) -> SAE:
    weights = path if path.suffix == ".pt" else path / WEIGHTS
    place = config_of(weights)
    config = read_config(place)
    trainer = config.get("trainer")
    check(isinstance(trainer, dict), f"{place}: trainer: expected an object, got {type(trainer).__name__}")
    assert isinstance(trainer, dict)
    kind = trainer.get("dict_class")
    check(kind in CLASSES, f"{place}: dict_class: expected one of {list(CLASSES)}, got {kind!r}")
    assert isinstance(kind, str)
    activation, names, transposed = CLASSES[kind]
    loaded = read_pickle(weights)
    if isinstance(loaded, dict) and "ae" in loaded:  # of backup_steps
        loaded = loaded["ae"]
    found = Tensors(weights, loaded)
    W_enc = found.take(names["W_enc"], (None, None))
    W_enc = W_enc.T.contiguous() if transposed == "W_enc" else W_enc
    d_sae, d_in = W_enc.shape
    declared(trainer, place, activation_dim=d_in, dict_size=d_sae)
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
        check("group_sizes" in kept, f"{weights}: group_sizes: expected a tensor, found none")
        options["group_sizes"] = tuple(kept["group_sizes"].cumsum(0).tolist())
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    described = {"model_name": trainer.get("lm_name"), "hook_name": submodule, "layer": layer}
    return build(options, tensors, Origin(NAME, config, found.dtype, kept), place, described)


def write(sae: SAE, path: Path) -> list[str]:
    fold, (config, kept) = Folding(sae, NAME), before(sae, NAME)
    fold.need(sae.config.activation != "group_max", "activation 'group_max'")
    fold.need(sae.config.input_norm in ("none", "scale"), "normalisation of rows")
    fold.need(not sae.config.skip, "skip connection")
    fold.need(sae.config.width_out == sae.config.d_in, "output of another width than the input")
    fold.unscaled()
    fold.unit_rows()
    kinds = [kind for kind, (activation, _, _) in CLASSES.items() if activation == fold.config.activation]
    kind = kinds[0]
    if fold.config.activation == "relu" and not fold.config.pre_bias:
        kind = "AutoEncoderNew"
    fold.centred(kind not in UNCENTRED)
    _, names, transposed = CLASSES[kind]
    ours = fold.config
    dtype = getattr(torch, sae.origin.dtype) if kept or config else torch.float32  # type: ignore[union-attr]
    out = {
        theirs: (fold.tensors[name].T if name == transposed else fold.tensors[name]).to(dtype).contiguous()
        for name, theirs in names.items()
    }
    if ours.k is not None:
        out["k"] = torch.tensor(ours.k, dtype=torch.int32)
    if ours.activation == "topk":
        out["threshold"] = kept.get("threshold", torch.tensor(-1.0))
    if ours.activation == "matryoshka":
        out["group_sizes"] = torch.tensor(ours.group_sizes).diff(prepend=torch.zeros(1, dtype=torch.int64))
    fresh = {
        "trainer_class": TRAINERS[kind], "lm_name": sae.metadata.get("model_name", ""), "layer": sae.metadata.get("layer"),
        "submodule_name": sae.metadata.get("hook_name"), "wandb_name": TRAINERS[kind], "device": "cpu",
    }  # fmt: skip
    trainer = dict(config.get("trainer", fresh))
    trainer |= {"dict_class": kind, "activation_dim": ours.d_in, "dict_size": ours.d_sae}
    if ours.k is not None:
        trainer["k"] = ours.k
    write_atomic(path / WEIGHTS, lambda temporary: torch.save(out, temporary))
    write_json(path / CONFIG, {"buffer": {}} | config | {"trainer": trainer})
    return fold.notes
