"""Our own folder: `sae.safetensors` and `config.json`; what came from a file of another project, `origin.safetensors`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.errors import InputError, check
from saefast.files import load_tensors, read_json, save_tensors, write_json
from saefast.formats.contents import Contents, Origin, SAELike, shapes_of

WEIGHTS, CONFIG, ORIGIN = "sae.safetensors", "config.json", "origin.safetensors"


def find(path: Path) -> bool:
    """A run that is not finished counts: its reader says so."""
    return (path / "run.json").exists() or ((path / CONFIG).exists() and (path / WEIGHTS).exists())


def read(path: Path) -> Contents:
    try:
        fields: Any = read_json(path / CONFIG)
        if not isinstance(fields, dict):
            raise TypeError(f"{type(fields).__name__}")
        metadata: dict[str, Any] = fields.pop("metadata", {})
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        config = SAEConfig(**options)
    except TypeError as error:
        raise InputError(f"{path / CONFIG}: expected the fields of SAEConfig, got {error}") from None
    weights = path / WEIGHTS
    if not weights.exists():
        raise InputError(f"{weights}: expected a file, found none (a run that is not finished has none)")
    tensors, _, _ = load_tensors(weights)
    expected = shapes_of(config)
    for name, shape in expected.items():
        found = list(tensors[name].shape) if name in tensors else None
        check(found == shape, f"{weights}: {name}: expected shape {shape}, got {found}")
    others = ", ".join(sorted(tensors.keys() - expected.keys()))
    check(not others, f"{weights}: expected the tensors of an SAE only, got also {others}")
    tensors = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    origin = None
    if (path / ORIGIN).exists():
        kept, meta, _ = load_tensors(path / ORIGIN)
        origin = Origin(meta["format"], meta["config"], meta["dtype"], kept)
    return Contents(config, tensors, dict(metadata), origin)


def write(sae: SAELike, path: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
    """tensors: written in place of those of `sae`, see `SAE.save_pretrained`."""
    path.mkdir(parents=True, exist_ok=True)
    config = asdict(sae.config)
    write_json(path / CONFIG, config | ({"metadata": sae.metadata} if sae.metadata else {}))
    save_tensors(path / WEIGHTS, tensors or sae.tensors, config)
    if sae.origin is not None:
        meta = {"format": sae.origin.format, "config": sae.origin.config, "dtype": sae.origin.dtype}
        save_tensors(path / ORIGIN, sae.origin.tensors, meta)
    return []
