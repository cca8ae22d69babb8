"""SAEs of other projects: their files are read, and written back.

A module here reads one format and, but for a few, writes it. `find` tells from the files whether a path holds that format,
`read` returns the `Contents`, and `write` writes an SAE into a folder that does not exist yet and returns what it had to fold. An SAE
computes the same before and after. What a format cannot express is refused, with the reason. Nothing in a file is
executed: pickles are opened with `weights_only=True`, and the sizes that a file declares are compared with what it holds
before anything is allocated.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from saefast.errors import InputError, check, line
from saefast.files import refuse_pointer
from saefast.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    llamascopium,
    openai,
    released,
    sae_lens,
    sparsify,
)
from saefast.formats import saefast as own_format
from saefast.formats.contents import Contents, Origin, SAELike
from saefast.formats.folding import folded
from saefast.formats.hub import download
from saefast.formats.places import what_is

__all__ = ["FORMATS", "Contents", "Origin", "detect", "folded", "load", "save"]
FORMATS: dict[str, ModuleType] = {
    "saefast": own_format,
    "sae_lens": sae_lens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "openai": openai,
    "gemma_scope": gemma_scope,
    "llamascopium": llamascopium,
    "llama_scope": llama_scope,
    "circuit_tracer": circuit_tracer,
    "released": released,
}
# files that are half of an SAE: their folder is meant
OF_FOLDERS = (
    own_format.WEIGHTS,
    sae_lens.WEIGHTS,
    sae_lens.CONFIG,
    own_format.CONFIG,
    dictionary_learning.WEIGHTS,
)
WRITTEN = [name for name, module in FORMATS.items() if hasattr(module, "write")]


def load(path: str | Path, format: str | None = None) -> Contents:
    """What the file or folder at `path` holds, on the CPU: config, tensors by name, metadata and origin.

    `SAE.from_pretrained` makes an SAE of it; its documentation says what `path` and `format` may be, and what is raised.
    """
    place = Path(path)
    if not place.exists():
        place = download(str(path))
    if place.is_file() and place.name in OF_FOLDERS:
        place = place.parent
    module = _module(detect(place) if format is None else format)
    try:
        contents: Contents = module.read(place)
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{place}: unexpected contents ({type(error).__name__}: {line(error)})") from error
    return contents


def save(sae: SAELike, path: str | Path, format: str) -> list[str]:
    """Write `sae`, a `saefast.SAE` or `Contents`, in the files of another project: all of them or none.

    Args:
        path: a folder that does not exist yet or is empty.
        format: one of `WRITTEN`.

    Returns:
        A line for each thing that had to be folded: the SAE computes the same with other numbers in the file.

    Raises:
        InputError: an unknown format, one that cannot express this SAE, or something is at `path` already.
        OSError: it cannot be written.
    """
    module, folder = _module(format, WRITTEN), Path(path)
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
        InputError: there is no SAE, or it is not clear in which format.
    """
    refuse_pointer(path)
    found = [name for name, module in FORMATS.items() if module.find(path)]
    if not found and own_format.half(path):
        return "saefast"  # the reader says which of the two files is missing
    if not found:
        raise InputError(f"path: expected an SAE, one of {list(FORMATS)}, {path} is {what_is(path)}")
    check(len(found) == 1, f"path: {path} may be any of {found}: name the format")
    return found[0]


def _module(format: str, known: Iterable[str] = FORMATS) -> ModuleType:
    if format not in known:
        raise InputError(f"format: expected one of {list(known)}, got {format!r}")
    return FORMATS[format]
