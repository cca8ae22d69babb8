"""delphi's latent cache, written from records: what its `LatentCache` writes and its `LatentDataset` reads.

    out/latents/{hookpoint}/config.json
    out/latents/{hookpoint}/{first}_{last}.safetensors     the latents first to last
    out/log/hookpoint_firing_counts.pt                     {hookpoint: tokens on which each latent is active, [F] int64}

A split has `tokens` [m, L] int64, `activations` [n] float16 and `locations` [n, 3] uint16 or uint32: context, position, and
latent - first, in this order. `out` is what delphi calls results/NAME; delphi_reading.py reads such a cache, and
delphi_explanations.py what delphi made of it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saefast.errors import check
from saefast.files import read_json, write_atomic, write_json
from saefast.formats.common import read_pickle
from saefast.interp.records.read import Records
from saefast.interp.records.select import Block

SMALLEST = 1e-5  # delphi leaves out what is not above it
LARGEST = 65504.0  # the largest float16
CONFIG, WRITER = "config.json", "saefast"
SPLIT = re.compile(r"(\d+)_(\d+)\.safetensors")
BASE_MODELS = ("model", "transformer", "gpt_neox")  # what delphi's AutoModel leaves out of a language model
TOKENS_AT_A_TIME = 2**20


class DelphiCache(NamedTuple):
    """What was written."""

    folder: Path  # out/latents/{hookpoint}
    n_entries: int
    n_small: int  # activations left out, at most 1e-5
    n_large: int  # activations beyond float16, written as 65504


def delphi_hookpoint(hook_name: str | None, given: str | None = None) -> str:
    """What delphi calls a module: its name without that of the base model, "layers.12" for "model.layers.12".

    Raises:
        InputError: there is none, or it cannot be the name of a folder.
    """
    first, _, rest = (hook_name or "").partition(".")
    name = given or (rest if first in BASE_MODELS and rest else hook_name or "")
    parts = name.split("/")
    ok = all(part and not part.startswith(".") and part.isprintable() for part in parts)
    check(ok, f'hookpoint: expected the name of a module, such as "layers.12", got {name!r}')
    return name


def export_delphi(
    records: Records,
    out: str | Path,
    *,
    hookpoint: str | None = None,
    n_splits: int = 5,
    model_name: str | None = None,
) -> DelphiCache:
    """Write all activations of all latents as delphi would have cached them.

    float16 keeps 11 bits of an activation (a relative error of at most 2^-11; 6e-8 in size below 6e-5). Tokens without a row
    have no entries. In memory is one block of the records' code at a time (about 60 bytes for each of its entries in the split,
    at most about 2^24), on disk 8 or 14 bytes for each entry and, in each split, 8 for each token.

    Args:
        out: results/NAME of delphi. An earlier export of this hookpoint is replaced; other things there are kept.
        hookpoint: what delphi calls the module; default: as `delphi_hookpoint` makes it of the recorded hook name.
        n_splits: files, each of about as many latents.
        model_name: from which delphi loads the tokenizer; default: the model that was recorded.

    Raises:
        InputError: a hookpoint that cannot be a folder, more splits than latents, or a cache there that is not ours.
    """
    sae, source = records.index["sae"], records.index["source"]
    hookpoint = delphi_hookpoint(sae.get("hook_name"), hookpoint)
    d_sae, contexts = records.d_sae, records.text.contexts
    check(0 < n_splits <= d_sae, f"n_splits: expected 1 to {d_sae}, the number of latents, got {n_splits}")
    folder = Path(out) / "latents" / hookpoint
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    n_entries = n_small = n_large = 0
    for first, end in split_bounds(d_sae, n_splits):
        kept = [_Piece(block, first, end) for block in records.blocks]
        path = folder / f"{first}_{end - 1}.safetensors"
        write_atomic(path, _Split(contexts, kept, end - first).write)
        n_entries += sum(piece.n for piece in kept)
        n_small += sum(piece.n_small for piece in kept)
        n_large += sum(piece.n_large for piece in kept)
    _write_counts(Path(out) / "log" / "hookpoint_firing_counts.pt", hookpoint, records)
    model = model_name or source.get("model") or sae.get("model_name") or ""
    notes = source.get("notes") or {}
    made: dict[str, Any] = {"dataset_repo": str(notes.get("text") or source.get("path") or "")}
    made |= {"dataset_split": "", "dataset_name": "", "dataset_column": "text", "batch_size": 1}
    made |= {"cache_ctx_len": contexts.shape[1], "n_tokens": contexts.size, "n_splits": n_splits}
    write_json(folder / CONFIG, made | {"model_name": str(model), "written_by": WRITER})
    return DelphiCache(folder, n_entries, n_small, n_large)


def split_bounds(d_sae: int, n_splits: int) -> list[tuple[int, int]]:
    """(first latent, end) of each split, as delphi computes them: in float32."""
    bounds = torch.linspace(0, d_sae, n_splits + 1, dtype=torch.float32, device="cpu").long().tolist()
    return list(pairwise(bounds))


def split_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(first latent, end, file) of the splits in a folder, in the order of the latents."""
    found = []
    for path in folder.glob("*.safetensors"):
        if parts := SPLIT.fullmatch(path.name):
            found.append((int(parts[1]), int(parts[2]) + 1, path))
    return sorted(found)


def _clear(folder: Path) -> None:
    """Take away an earlier export: config.json first, without which delphi does not read what a stop leaves."""
    old, config = split_files(folder), folder / CONFIG
    if config.exists():
        written_by = read_json(config).get("written_by")
        kept = "delphi may have made it: choose another folder, or delete it"
        check(not old or written_by == WRITER, f"{folder}: holds a cache that saefast did not write; {kept}")
    config.unlink(missing_ok=True)
    for _, _, path in old:
        path.unlink()


class _Piece:
    """The entries of the latents `first` to `end` - 1 in a block, less those that delphi leaves out."""

    def __init__(self, block: Block, first: int, end: int) -> None:
        self.block, self.bounds = block, block.offsets[first : end + 1]
        self.part = slice(int(self.bounds[0]), int(self.bounds[-1]))
        acts, kept = block.acts[self.part], self._kept()
        self.n = int(kept.sum())
        self.n_small, self.n_large = len(acts) - self.n, int((acts >= LARGEST + 16).sum())
        self.last_slot = int(block.slots[self.part][kept].max()) + block.first_slot if self.n else -1
        last = self.part.start + len(kept) - 1 - int(kept[::-1].argmax()) if self.n else -1
        self.last_latent = int(np.searchsorted(self.bounds, last, "right")) - 1 if self.n else -1

    def _kept(self) -> np.ndarray:
        return self.block.acts[self.part] > np.float32(SMALLEST)

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slots [n] int64, latents [n] from 0 on, acts [n] float16: by slot, and of a slot by latent."""
        kept = self._kept()
        latents = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))[kept]
        slots = self.block.slots[self.part][kept]
        order = torch.argsort(torch.from_numpy(slots), stable=True).numpy()
        acts = np.minimum(self.block.acts[self.part][kept], np.float32(LARGEST))[order].astype(np.float16)
        return slots[order].astype(np.int64) + self.block.first_slot, latents[order], acts


class _Split:
    """A safetensors file, written piece by piece: the same bytes as the library's own."""

    def __init__(self, contexts: np.ndarray, pieces: Sequence[_Piece], n_latents: int) -> None:
        self.contexts, self.pieces, length = contexts, pieces, contexts.shape[1]
        last_context = max((piece.last_slot for piece in pieces), default=-1) // length
        largest = max(last_context, max((piece.last_latent for piece in pieces), default=-1))
        # delphi does not look at the position, and writes one of 65,536 as 0
        self.wide = largest >= 2**16 or length > 2**16
        self.n = sum(piece.n for piece in pieces)

    def write(self, path: Path) -> None:
        n, width = self.n, 4 if self.wide else 2
        parts: list[tuple[str, str, list[int], int]] = [
            ("tokens", "I64", list(self.contexts.shape), 8 * self.contexts.size),
            ("activations", "F16", [n], 2 * n),
            ("locations", f"U{8 * width}", [n, 3], 3 * width * n),
        ]
        if self.wide:
            parts[1:] = parts[:0:-1]  # the widest numbers first, so that all are aligned
        header: dict[str, Any] = {}
        at = 0
        for name, dtype, shape, size in parts:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        places = {name: 8 + len(text) + value["data_offsets"][0] for name, value in header.items()}
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for data in self._arrays():
                for name, array in data.items():
                    file.seek(places[name])
                    file.write(array.data)
                    places[name] += array.nbytes

    def _arrays(self) -> Iterator[dict[str, np.ndarray]]:
        length = self.contexts.shape[1]
        step = max(1, TOKENS_AT_A_TIME // length)
        for first in range(0, len(self.contexts), step):
            yield {"tokens": self.contexts[first : first + step].astype(np.int64)}
        for piece in self.pieces:
            slots, latents, acts = piece.sorted()
            locations = np.empty((len(slots), 3), np.uint32 if self.wide else np.uint16)
            locations[:, 0], locations[:, 1], locations[:, 2] = slots // length, slots % length, latents
            yield {"activations": acts, "locations": locations}


def _write_counts(path: Path, hookpoint: str, records: Records) -> None:
    """delphi's log of results reads them; those of other hookpoints are kept."""
    counts = read_pickle(path) if path.exists() else {}
    check(isinstance(counts, dict), f"{path}: expected firing counts by hookpoint")
    counts[hookpoint] = torch.from_numpy(records.table(["count"])["count"].to_numpy().copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: torch.save(counts, temporary))
