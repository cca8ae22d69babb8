"""Where the SAEs are in a folder or a repository, and what something is that holds none: one line for each kind."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

# a folder with one of these files is an SAE; with `config.json` beside it where that is said
MARKS = {"cfg.json", "params.npz", "params.safetensors", "ae.pt", "autoencoder.pt", "sae.safetensors"}
MARKS |= {"sae_weights.safetensors", "sae_weights.pt", "hyperparams.json"}
# a file of this name is one
FILES = re.compile(r"layer_\d+\.safetensors|.*\.(pt|pth)")
# files of a trainer that hold no weights, or those of another folder
STATES = re.compile(r"(trainer|training|optimizer|scheduler|rng|lr_)\w*\.(pt|pth)")
LISTED, DEPTH, MOST = 20, 5, 20_000


def places(files: Iterable[str]) -> list[str]:
    """The folders and files, in natural order, that hold an SAE, of all files by their paths with "/". "" is the root."""
    folders: dict[str, set[str]] = {}
    for file in files:
        path = PurePosixPath(file)
        parent = "" if str(path.parent) == "." else str(path.parent)
        folders.setdefault(parent, set()).add(path.name)
    found = [folder for folder, names in folders.items() if names & MARKS]
    for folder, names in folders.items():
        above = {folder, *map(str, PurePosixPath(folder).parents)}
        if not above & set(found) and "." not in above & set(found) and not ("" in found):
            single = [name for name in names if FILES.fullmatch(name) and not STATES.fullmatch(name)]
            found += [f"{folder}/{name}" if folder else name for name in single]
    return sorted(found, key=_natural)


def listing(found: list[str]) -> str:
    """At most 20 of these names."""
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more


def inside(folder: Path) -> list[str]:
    """The `places` of a folder on disk, five levels deep."""
    files: list[str] = []
    for root, folders, names in os.walk(folder):
        at = Path(root).relative_to(folder)
        if len(at.parts) >= DEPTH or len(files) > MOST:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [(at / name).as_posix() for name in names]
    return places(files)


def what_is(path: Path) -> str:
    """What there is at `path`, which is no SAE, and what can be done."""
    if not path.is_dir():
        return _file(path)
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return "an empty folder"
    if "adapter_config.json" in names:
        return "an adapter of a language model (LoRA, of peft)"
    config = _json(path / "config.json")
    if "index.json" in names and "saefast-activations" in str(_json(path / "index.json").get("format")):
        return "activations, a shard folder of `saefast cache`: train on it, it holds no SAE"
    if any(name.startswith("W_enc_") for name in names) or "cross_layer_transcoder" in _text(
        path / "config.yaml"
    ):
        return "a cross-layer transcoder, which saefast does not compute"
    if "run_config.json" in names and "latents" in names:
        return "results of delphi (explanations of latents): the SAE is where its run_config.json says"
    if config.get("model_type") or config.get("architectures"):
        kind = config.get("model_type") or config.get("architectures")
        return f"a language model ({str(kind)[:40]}): it can be MODEL of `saefast cache`, it holds no SAE"
    found = [name for name in inside(path) if name]
    if found:
        return f"a folder of {len(found)} SAEs: name one of {listing(found)}"
    pieces = sorted(name for name in names if re.search(r"-\d+-of-\d+\.", name))
    if pieces:
        return f"weights in {len(pieces)} pieces ({pieces[0]}, ...): put them into one file first"
    if any(name.endswith((".safetensors", ".npy")) for name in names):
        return f"a folder of arrays ({listing(sorted(names))}) without the config of an SAE"
    return f"a folder of other files ({listing(sorted(names))})"


def _file(path: Path) -> str:
    begin = _begin(path)
    kinds = {
        b"\x1f\x8b": "an archive (gzip): unpack it first",
        b"(\xb5/\xfd": "an archive (zstd): unpack it first",
        b"7z\xbc\xaf": "an archive (7z): unpack it first",
        b"GGUF": "a language model in GGUF",
        b"\x93NUMPY": "an array of numpy, such as activations to train on",
        b"\x89HDF": "an HDF5 file",
        b"<!DO": "a web page, not the file that was to be downloaded",
        b"<htm": "a web page, not the file that was to be downloaded",
    }
    for mark, kind in kinds.items():
        if begin.startswith(mark):
            return kind
    if begin[257:262] == b"ustar":
        return "an archive (tar): unpack it first"
    if begin.startswith(b"PK\x03\x04") and path.suffix == ".zip":
        return "an archive (zip): unpack it first"
    if not begin:
        return "an empty file"
    if path.suffix in (".bin", ".ckpt", ".msgpack", ".onnx", ".h5"):
        return f"weights in a {path.suffix} file, as language models have them"
    if re.search(r"-\d+-of-\d+\.", path.name):
        return "one of several pieces: put them into one file first"
    return f"a {path.suffix or 'nameless'} file of another kind"


def _begin(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _begin(path).decode("utf-8", errors="replace")


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _natural(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
    ]
