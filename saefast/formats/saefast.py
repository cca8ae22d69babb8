"""Our own folder: `sae.safetensors` and `config.json`; what came from a file of another project, `origin.safetensors`.

Every bit is under a checksum: config.json holds one of itself and those of the other files. Older folders have
none there; their config.json is compared with the copy of it in the header of sae.safetensors.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.errors import InputError, check
from saefast.files import load_tensors, read_json, read_json_checked, save_tensors, write_json_checked
from saefast.formats.common import shown
from saefast.formats.contents import Contents, Origin, SAELike, as_read, shapes_of

NAME, WEIGHTS, CONFIG, ORIGIN = "saefast", "sae.safetensors", "config.json", "origin.safetensors"
UNFINISHED = "a run that is not finished has none: go on with --resume, or `saefast export-checkpoint`"
EXACT = "exact:"  # before the names of those tensors of the origin


def find(path: Path) -> bool:
    """A run that is not finished counts: its reader says so."""
    return (path / "run.json").exists() or ((path / CONFIG).exists() and (path / WEIGHTS).exists())


def half(path: Path) -> bool:
    """Whether one of the two files is there, and it is ours."""
    if (path / WEIGHTS).exists() or not (path / CONFIG).exists():
        return (path / WEIGHTS).exists()
    try:
        fields = read_json(path / CONFIG)
    except InputError:
        return True
    return isinstance(fields, dict) and "d_sae" in fields


def read(path: Path) -> Contents:
    weights = path / WEIGHTS
    if not (path / CONFIG).exists() and (path / "run.json").exists():
        raise InputError(f"{path / CONFIG}: expected a file, found none ({UNFINISHED})")
    fields = read_json_checked(path / CONFIG)
    files, metadata = fields.pop("files", None), fields.pop("metadata", {})
    ok = isinstance(metadata, dict) and isinstance(files, dict | None)
    check(ok, f"{path / CONFIG}: metadata, files: expected objects, got {shown(metadata)} and {shown(files)}")
    try:
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        config = SAEConfig(**options)
    except (TypeError, OverflowError) as error:
        raise InputError(f"{path / CONFIG}: expected the fields of SAEConfig, got {error}") from None
    if not weights.exists():
        raise InputError(f"{weights}: expected a file, found none ({UNFINISHED})")
    tensors, meta, checksum = load_tensors(weights)
    expected = shapes_of(config)
    for name, shape in expected.items():
        found = list(tensors[name].shape) if name in tensors else None
        check(found == shape, f"{weights}: {name}: expected shape {shape}, got {found}")
    others = ", ".join(sorted(tensors.keys() - expected.keys()))
    check(not others, f"{weights}: expected the tensors of an SAE only, got also {others}")
    ours = files.get(WEIGHTS) == checksum if files is not None else meta == fields
    check(ours, f"{path / CONFIG}: corrupt, or of another {WEIGHTS} than the one beside it")
    origin = _origin(path, files, list(expected))
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    if origin is None and set(dtypes.values()) != {"float32"}:
        origin = Origin(NAME, {}, dtypes=dtypes)
    wide = torch.float64 if tensors["W_enc"].dtype == torch.float64 else torch.float32
    return Contents(config, {n: tensor.to(wide) for n, tensor in tensors.items()}, dict(metadata), origin)


def _origin(path: Path, files: dict[str, Any] | None, names: list[str]) -> Origin | None:
    place = path / ORIGIN
    if files is not None and (ORIGIN in files) != place.exists():
        wanted, got = ("a file", "none") if ORIGIN in files else ("no such file", "one")
        raise InputError(f"{place}: expected {wanted} beside this {CONFIG}, found {got}")
    if not place.exists():
        return None
    kept, meta, checksum = load_tensors(place)
    ours = files is None or files[ORIGIN] == checksum
    check(ours, f"{place}: of another SAE than the {CONFIG} beside it")
    try:
        dtypes = meta["dtypes"] if "dtypes" in meta else dict.fromkeys(names, meta["dtype"])  # older: one
        exact = {name.removeprefix(EXACT): t for name, t in kept.items() if name.startswith(EXACT)}
        rest = {name: tensor for name, tensor in kept.items() if not name.startswith(EXACT)}
        return Origin(meta["format"], meta["config"], rest, dtypes, exact)
    except (KeyError, TypeError) as error:
        raise InputError(f"{place}: expected what `SAE.save_pretrained` writes, got {shown(error)}") from None


def write(sae: SAELike, path: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
    """tensors: written in place of those of `sae`, see `SAE.save_pretrained`."""
    path.mkdir(parents=True, exist_ok=True)
    config, origin = asdict(sae.config), sae.origin
    tensors = tensors or sae.tensors
    if origin is not None and origin.format == NAME:  # read from a folder of ours, in other dtypes than fp32
        tensors, origin = as_read(tensors, origin)[0], None
    files = {WEIGHTS: save_tensors(path / WEIGHTS, tensors, config)}
    if origin is not None:
        meta = {"format": origin.format, "config": origin.config, "dtypes": origin.dtypes}
        exact = {f"{EXACT}{name}": tensor for name, tensor in origin.exact.items()}
        files[ORIGIN] = save_tensors(path / ORIGIN, origin.tensors | exact, meta)
    described = {"metadata": json.loads(json.dumps(sae.metadata))} if sae.metadata else {}
    write_json_checked(path / CONFIG, config | described | {"files": files})
    if origin is None:
        (path / ORIGIN).unlink(missing_ok=True)  # of the SAE that was here before
    return []
