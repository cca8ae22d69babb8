"""Records from a latent cache of delphi, made by delphi on any SAE, or by `export_delphi`.

A cache holds the code of all tokens, so nothing is encoded again: the code is written as the pass of `record` writes it, block
by block, and the tables are made of it as there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from saefast.config.records import RecordsConfig
from saefast.errors import InputError, check, line
from saefast.files import file_checksum, json_checksum, read_json, refuse_pointer
from saefast.interp.exchange.delphi import CONFIG, split_files
from saefast.interp.records import codes, described
from saefast.interp.records.folder import begin, finish, index_of
from saefast.interp.records.plan import plan_of
from saefast.interp.records.read import Records
from saefast.interp.records.tables import arrow
from saefast.sae import SAE

PIECE = 2**20  # entries of a split that are read at a time
DTYPES = {"locations": ("U16", "U32", "I32", "I64"), "activations": ("F16", "F32"), "tokens": ("I64", "I32")}

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_delphi(
    cache: str | Path,
    folder: str | Path,
    config: RecordsConfig | None = None,
    *,
    sae: SAE | None = None,
    separators: Sequence[int] = (),
    progress: Callable[[int], object] = lambda n_contexts: None,
) -> Records:
    """Make records of a latent cache.

    Recorded are the activations above 0, as `record` does. A cache does not tell a token that was left out from one on which
    nothing is active, so every token counts as encoded.

    Args:
        cache: results/NAME/latents/HOOKPOINT of delphi: the files {first}_{last}.safetensors and, if it is there, config.json.
        folder: of the records, made if it does not exist. Those of the same cache and config that are there already are
            returned, or finished if they were interrupted.
        sae: the SAE whose latents they are, without which there are no effects of them.
        separators: see `saefast.interp.records.record`.
        progress: called with the number of contexts of each block, once all entries were checked.

    Raises:
        InputError: a split is missing, damaged, without tokens or with other ones than the first, has locations outside of
            the tokens or one of them twice, or NaN or Inf (what float16 cannot hold); or the SAE has another number of
            latents; or `folder` holds other records.
    """
    arrow()
    cache, folder = Path(cache).absolute(), Path(folder).absolute()
    about = read_json(cache / CONFIG) if (cache / CONFIG).exists() else {}
    check(isinstance(about, dict), f"{cache / CONFIG}: expected a JSON object")
    splits = _open(cache, about)
    contexts = splits[0].tokens
    n_contexts, length = contexts.get_shape()
    d_sae = splits[-1].end
    known = None if sae is None else sae.config.d_sae
    check(known in (None, d_sae), f"sae: expected d_sae = {d_sae} as in {cache}, got {known}")
    files = {split.path.name: file_checksum(split.path) for split in splits}
    hook, model = cache.name, about.get("model_name")
    of_sae = {"d_in": None, "d_sae": d_sae, "digest": json_checksum(files)}
    of_sae |= {"model_name": model, "hook_name": hook}
    source: dict[str, Any] = {"type": "delphi", "path": str(cache), "model": model, "hook": hook}
    source |= {"n_tokens": n_contexts * length, "notes": {"text": about.get("dataset_repo")}, "files": files}
    config = config or RecordsConfig()
    index = index_of(folder, of_sae if sae is None else described(sae), source, config, separators, None)
    if index["complete"]:
        return Records(folder)
    counts = np.zeros(n_contexts, np.int64)
    for split in splits:
        counts += split.counts(n_contexts, length)
    before = np.concatenate([[0], np.cumsum(counts)])  # entries before each context
    if not index["blocks"]:
        begin(folder, index, plan_of(n_contexts * length, int(before[-1]), d_sae, config))
    first = sum(block["n_contexts"] for block in index["blocks"])
    while first < n_contexts:
        end = int(np.searchsorted(before, before[first] + codes.block_entries(d_sae)))
        end = min(end, n_contexts, first + max(1, codes.BLOCK_TOKENS // length))
        code = _code(splits, first, end, length)
        tokens = torch.from_numpy(_tokens(splits, first, end))
        text = {"contexts": tokens, "encoded": torch.ones(tokens.shape, dtype=torch.uint8, device="cpu")}
        codes.write_block(folder, index, code, text, end - first)
        progress(end - first)
        first = end
    return finish(folder, index)


class _Split:
    """An open file of a cache."""

    def __init__(self, path: Path, first: int, end: int) -> None:
        self.path, self.first, self.end = path, first, end
        refuse_pointer(path)
        try:
            file = safe_open(path, framework="np")
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: expected a split of delphi's cache, got {line(error)}") from None
        no_tokens = "; a cache without them (save_tokens=False) does not say what the latents are active on"
        for name, dtypes in DTYPES.items():
            why = no_tokens if name == "tokens" else ""
            check(name in parts, f"{path}: expected locations, activations and tokens, found no {name}{why}")
            got = parts[name].get_dtype()
            check(got in dtypes, f"{path}: {name}: expected {' or '.join(dtypes)}, got {got}")
        self.locations, self.activations, self.tokens = (parts[name] for name in DTYPES)
        self.n = self.activations.get_shape()[0] if len(self.activations.get_shape()) == 1 else -1
        shapes = [self.locations.get_shape(), self.activations.get_shape()]
        check(
            shapes == [[self.n, 3], [self.n]],
            f"{path}: expected [n, 3] locations, [n] activations, got {shapes}",
        )
        shape = self.tokens.get_shape()
        check(len(shape) == 2 and 0 not in shape, f"{path}: tokens: expected contexts [m, L], got {shape}")
        self._contexts: list[tuple[int, int, int]] = []
        """First entry, first and last context of each piece."""

    def counts(self, n_contexts: int, length: int) -> np.ndarray:
        """Check all entries. Returns how many each context has, [m] int64."""
        counts = np.zeros(n_contexts, np.int64)
        for at in range(0, self.n, PIECE):
            context, position, latent, acts = self._piece(at)
            bounds = (n_contexts, length, self.end - self.first)
            for name, values, end in zip(
                ("context", "position", "latent"), (context, position, latent), bounds, strict=True
            ):
                bad = (values < 0) | (values >= end)
                where = f"{self.path}: entry {at + int(bad.argmax())}"
                got = int(values[bad.argmax()])
                check(not bad.any(), f"{where}: expected a {name} from 0 to {end - 1}, got {got}")
            bad = ~np.isfinite(acts)
            where = f"{self.path}: entry {at + int(bad.argmax())}"
            check(not bad.any(), f"{where}: expected a finite activation, got {acts[bad.argmax()]}")
            counts += np.bincount(context, minlength=n_contexts)
            self._contexts.append((at, int(context.min()), int(context.max())))
        return counts

    def entries(self, first: int, end: int, length: int) -> Entries:
        """Of the contexts first to end - 1, latent after latent: slots from first on [n] int32, latents [n], acts [n] float32."""
        found: list[Entries] = []
        for at, lowest, highest in self._contexts:
            if lowest < end and highest >= first:
                context, position, latent, acts = self._piece(at)
                is_in = (context >= first) & (context < end) & (acts > 0)
                slots = (context[is_in] - first) * length + position[is_in]
                found.append((slots.astype(np.int32), latent[is_in], acts[is_in].astype(np.float32)))
        empty = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32)
        slots, latents, acts = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
        if not bool((slots[1:] >= slots[:-1]).all()):  # delphi writes them so
            order = np.argsort(slots, kind="stable")
            slots, latents, acts = slots[order], latents[order], acts[order]
        order = torch.argsort(torch.from_numpy(latents), stable=True).numpy()
        slots, latents, acts = slots[order], latents[order], acts[order]
        twice = (slots[1:] == slots[:-1]) & (latents[1:] == latents[:-1])
        slot = int(slots[int(twice.argmax())]) if len(twice) else 0
        place = f"context {first + slot // length}, position {slot % length}"
        check(not twice.any(), f"{self.path}: expected each location once, got one twice in {place}")
        return slots, latents + self.first, acts

    def _piece(self, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        end = min(at + PIECE, self.n)
        context, position, latent = self.locations[at:end].astype(np.int64).T
        return context, position, latent, self.activations[at:end]


def _open(cache: Path, about: dict[str, Any]) -> list[_Split]:
    """The splits of a cache, which together have all latents."""
    files = split_files(cache)
    check(
        len(files) > 0,
        f"{cache}: expected a latent cache of delphi, {{first}}_{{last}}.safetensors, found none",
    )
    expected = 0
    for first, end, path in files:
        missing = f"{cache}: expected a split that begins with latent {expected}, the next is {path.name}"
        check(first == expected and end > first, missing)
        expected = end
    n_splits = about.get("n_splits", len(files))
    got = f"{cache}: expected {n_splits} splits as in {CONFIG}, found {len(files)}, of {expected} latents"
    check(len(files) == n_splits, got)
    return [_Split(path, first, end) for first, end, path in files]


def _tokens(splits: Sequence[_Split], first: int, end: int) -> np.ndarray:
    """[end - first, L] int32, the same in all splits."""
    tokens = splits[0].tokens[first:end]
    ok = bool((tokens >= 0).all() and (tokens < 2**31).all())
    check(
        ok, f"{splits[0].path}: tokens: expected ids from 0 to 2^31 - 1, got others from context {first} on"
    )
    for split in splits[1:]:
        same = split.tokens.get_shape() == splits[0].tokens.get_shape()
        same = same and np.array_equal(split.tokens[first:end], tokens)
        check(same, f"{split.path}: expected the tokens of {splits[0].path.name}, got others")
    return tokens.astype(np.int32)


def _code(splits: Sequence[_Split], first: int, end: int, length: int) -> dict[str, torch.Tensor]:
    """offsets, slots and acts of a block."""
    found = [split.entries(first, end, length) for split in splits]
    slots, latents, acts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    offsets = np.searchsorted(latents, np.arange(splits[-1].end + 1)).astype(np.int64)
    return {
        "offsets": torch.from_numpy(offsets),
        "slots": torch.from_numpy(slots),
        "acts": torch.from_numpy(acts),
    }
