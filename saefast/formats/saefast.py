"""Our own folder: `sae.safetensors` and `config.json`; what came from a file of another project, `origin.safetensors`.

Every bit is under a checksum. The header of sae.safetensors, which is under that file's own, holds a copy of config.json
and the checksum of origin.safetensors, so that neither can change or come from another SAE. config.json has one of itself
besides, for its reader to notice first. Older folders have the copy only, and without the metadata.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.errors import InputError, check, shown
from saefast.files import load_tensors, read_json, read_json_checked, save_tensors, write_json_checked
from saefast.formats.contents import Contents, Origin, SAELike, as_read, shapes_of

NAME, WEIGHTS, CONFIG, ORIGIN = "saefast", "sae.safetensors", "config.json", "origin.safetensors"
UNFINISHED = "a run that is not finished has none: go on with --resume, or `saefast export-checkpoint {}`"
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
        raise InputError(f"{path / CONFIG}: expected a file, found none ({UNFINISHED.format(path)})")
    fields = read_json_checked(path / CONFIG)
    metadata = fields.pop("metadata", {})
    ok = isinstance(metadata, dict)
    check(ok, f"{path / CONFIG}: metadata: expected an object, got {shown(metadata)}")
    try:
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        config = SAEConfig(**options)
    except (TypeError, OverflowError) as error:
        raise InputError(f"{path / CONFIG}: expected the fields of SAEConfig, got {error}") from None
    if not weights.exists():
        raise InputError(f"{weights}: expected a file, found none ({UNFINISHED.format(path)})")
    tensors, meta, _ = load_tensors(weights)
    expected = shapes_of(config)
    for name, shape in expected.items():
        found = list(tensors[name].shape) if name in tensors else None
        check(found == shape, f"{weights}: {name}: expected shape {shape}, got {found}")
    others = ", ".join(sorted(tensors.keys() - expected.keys()))
    check(not others, f"{weights}: expected the tensors of an SAE only, got also {others}")
    copy = {key: value for key, value in meta.items() if key != "origin"}
    same = copy == fields | ({"metadata": metadata} if "metadata" in meta else {})
    check(same, f"{path / CONFIG}: corrupt, or of another {WEIGHTS} than the one beside it")
    origin = _origin(path, meta.get("origin"), "origin" in meta, list(expected))
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    if origin is None and set(dtypes.values()) != {"float32"}:
        origin = Origin(NAME, {}, dtypes=dtypes)
    wide = torch.float64 if tensors["W_enc"].dtype == torch.float64 else torch.float32
    return Contents(config, {n: tensor.to(wide) for n, tensor in tensors.items()}, dict(metadata), origin)


def _origin(path: Path, expected: str | None, known: bool, names: list[str]) -> Origin | None:
    """expected: the checksum of its file, None if there is no such file; known: whether that was recorded."""
    place = path / ORIGIN
    if known and (expected is not None) != place.exists():
        wanted, got = ("a file", "none") if expected else ("no such file", "one")
        raise InputError(f"{place}: expected {wanted} beside this {WEIGHTS}, found {got}")
    if not place.exists():
        return None
    kept, meta, checksum = load_tensors(place)
    check(not known or checksum == expected, f"{place}: of another SAE than the {WEIGHTS} beside it")
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
    checksum = None
    if origin is not None:
        described = {"format": origin.format, "config": origin.config, "dtypes": origin.dtypes}
        exact = {f"{EXACT}{name}": tensor for name, tensor in origin.exact.items()}
        checksum = save_tensors(path / ORIGIN, origin.tensors | exact, described)
    metadata: dict[str, Any] = json.loads(json.dumps(sae.metadata))  # as it will be read
    save_tensors(path / WEIGHTS, tensors, config | {"metadata": metadata, "origin": checksum})
    write_json_checked(path / CONFIG, config | ({"metadata": metadata} if metadata else {}))
    if origin is None:
        (path / ORIGIN).unlink(missing_ok=True)  # of the SAE that was here before
    return []
