"""SAEs of other projects: read into an `SAE`, written back in their own files.

A module here reads and writes one format. `find` tells by its files whether it is one, `read` gives the SAE, `write`
writes it into a folder that does not exist yet, and says what it had to fold. What an SAE computes is the same before
and after; what a format cannot express is refused with the reason. Nothing is executed: pickles are opened with
`weights_only=True`, sizes that a file declares are compared with what it holds before anything is allocated.
"""

import os
import shutil
from pathlib import Path
from types import ModuleType

from saefast.errors import InputError, check
from saefast.formats import (
    dictionary_learning,
    gemma_scope,
    llamascopium,
    openai,
    sae_lens,
    saefast,
    sparsify,
)
from saefast.formats.folding import folded
from saefast.formats.hub import download
from saefast.sae import SAE

__all__ = ["FORMATS", "detect", "folded", "load", "save"]
FORMATS: dict[str, ModuleType] = {
    "saefast": saefast,
    "sae_lens": sae_lens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "openai": openai,
    "gemma_scope": gemma_scope,
    "llamascopium": llamascopium,
}


def load(path: str | Path, format: str | None = None) -> SAE:
    """The SAE at `path`, on the CPU; see `SAE.from_pretrained`."""
    place = Path(path)
    if not place.exists():
        place = download(str(path))
    module = _module(detect(place) if format is None else format)
    sae: SAE = module.read(place)
    return sae


def save(sae: SAE, path: str | Path, format: str) -> list[str]:
    """Write `sae` in another project's files, all of them or none.

    Args:
        path: a folder that does not exist yet or is empty.

    Returns:
        What had to be folded, a line each: the SAE computes the same, with other numbers in the file.

    Raises:
        InputError: the format cannot express this SAE; something is at `path`.
        OSError: it cannot be written.
    """
    module, folder = _module(format), Path(path)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(free, f"path: expected a new folder, {folder} exists and nothing is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    made = temporary / folder.name  # a format may read its folder's name
    try:
        made.mkdir(parents=True)
        notes: list[str] = module.write(sae, made)
        os.replace(made, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return notes


def detect(path: Path) -> str:
    """The name of the format of a folder or file.

    Raises:
        InputError: none, or it is not clear which.
    """
    found = [name for name, module in FORMATS.items() if module.find(path)]
    if not found and ((path / saefast.CONFIG).exists() or (path / saefast.WEIGHTS).exists()):
        return "saefast"  # half of it: its reader says what is missing
    check(bool(found), f"path: expected an SAE, one of {list(FORMATS)}, found none of their files in {path}")
    check(len(found) == 1, f"path: {path} may be any of {found}: name the format")
    return found[0]


def _module(format: str) -> ModuleType:
    if format not in FORMATS:
        raise InputError(f"format: expected one of {list(FORMATS)}, got {format!r}")
    return FORMATS[format]
