"""The one pass: rows are encoded, and the code is written block by block, sorted by latent.

codes-00000.safetensors holds offsets [F + 1] int64, slots [N] int32 and acts [N] float32 of a `Block`; text-00000.safetensors
its contexts [m, L] int32 and encoded [m, L] uint8. 8 bytes for each active entry, 5 for each token, 8 F for each block.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saefast.activations.sources import Source
from saefast.backend import Backend, load_backend
from saefast.errors import InputError, check, line
from saefast.files import digest, load_tensors, save_tensors, write_json_checked
from saefast.interp.records import engine
from saefast.interp.records.batches import text_rows
from saefast.interp.records.index_file import INDEX
from saefast.interp.records.select import Block
from saefast.interp.records.text import Text
from saefast.sae import SAE
from saefast.sae.inference import encode

BLOCK_ENTRIES, BLOCK_TOKENS = 2**22, 2**26  # a block ends with the batch that reaches one of them
ENTRIES_PER_LATENT = 16  # or, of a large dictionary, that many of each on average: they are read in one piece


def block_entries(d_sae: int) -> int:
    """Entries with which a block of the code ends."""
    return max(BLOCK_ENTRIES, ENTRIES_PER_LATENT * d_sae)


class _Pending:
    """The code of the contexts of a block, in the order of its rows."""

    def __init__(self) -> None:
        self.acts: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.counts: list[Tensor] = []  # entries of each row
        self.slots: list[Tensor] = []
        self.contexts: list[Tensor] = []
        self.n_entries = self.n_contexts = self.n_batches = 0

    def add(self, acts: Tensor, indices: Tensor, contexts: Tensor, slots: Tensor) -> None:
        is_active = acts > 0
        if bool(is_active.all()):  # the usual code of top-k
            counts = torch.full((len(acts),), acts.shape[1], dtype=torch.int64, device=acts.device)
            acts, indices = acts.flatten(), indices.flatten()
        else:
            counts = is_active.sum(dim=1)
            acts, indices = acts[is_active], indices[is_active]
        self.acts.append(acts)
        self.indices.append(indices)
        self.counts.append(counts)
        self.slots.append((slots + self.n_contexts * contexts.shape[1]).to(acts.device, torch.int32))
        self.contexts.append(contexts.to("cpu", torch.int32))
        self.n_entries += len(acts)
        self.n_contexts += len(contexts)
        self.n_batches += 1

    def tensors(self, ops: Backend, d_sae: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the files of the code and of the text."""
        slots = torch.cat(self.slots)
        row_offsets = torch.cat([slots.new_zeros(1), torch.cat(self.counts).cumsum(0)]).to(torch.int32)
        parts = torch.cat(self.acts), torch.cat(self.indices), row_offsets
        code = dict(zip(("offsets", "slots", "acts"), sorted_code(ops, *parts, slots, d_sae), strict=True))
        contexts = torch.cat(self.contexts)
        encoded = torch.zeros(contexts.numel(), dtype=torch.uint8, device="cpu")
        encoded[slots.long().cpu()] = 1
        return code, {"contexts": contexts, "encoded": encoded.view(contexts.shape)}


def sorted_code(
    ops: Backend, acts: Tensor, indices: Tensor, row_offsets: Tensor, slots: Tensor, d_sae: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort a ragged code by latent, and the entries of a latent by row.

    Args:
        acts, indices, row_offsets: [N] positive, [N] int32, [B + 1] int32, as of `saefast.reference.group_by_latent`.
        slots: [B] int32, of the token of each row.

    Returns:
        offsets [F + 1] int64, and of each entry the slot, [N] int32, and the act, [N] float32.
    """
    if ops.NAME == "native" and acts.dtype == torch.float32:
        return engine.sorted_code(acts, indices, row_offsets, slots, d_sae)
    starts, pairs, tokens = ops.group_by_latent(acts, indices, d_sae, row_offsets)
    return starts.long(), slots[tokens.long()], acts[pairs.long()].float()


def write_codes(
    sae: SAE,
    source: Source,
    folder: Path,
    index: dict[str, Any],
    backend: str = "auto",
    tokens: int | None = None,
    progress: Callable[[int], object] = lambda n_rows: None,
) -> None:
    """Go on with the pass where `index` says that it stopped; the index is written after each block.

    Args:
        tokens: rows after which the pass ends, with the batch that reaches them.
        progress: called with the number of rows of each batch.

    Raises:
        InputError: see `text_rows`; another width; NaN or Inf in the rows; a block that is there is damaged.
    """
    blocks, ops = index["blocks"], load_backend(backend, sae.params.W_enc.device.type)
    check_files(folder, blocks)  # those of an earlier call
    with ThreadPoolExecutor(1) as pool:  # while one block is saved the next is gathered
        saved: Future[None] | None = None
        for block in _gathered(sae, source, ops, [dict(entry) for entry in blocks], tokens, progress):
            if saved is not None:
                saved.result()
            tensors = block.tensors(ops, sae.config.d_sae)
            saved = pool.submit(write_block, folder, index, *tensors, block.n_batches)
        if saved is not None:
            saved.result()
    check(len(blocks) > 0, "source: expected at least one row of activations, got none")


@torch.no_grad()
def _gathered(
    sae: SAE,
    source: Source,
    ops: Backend,
    done: list[dict[str, Any]],
    tokens: int | None,
    progress: Callable[[int], object],
) -> Iterator[_Pending]:
    """The code of one block after another, of the rows after those of the blocks that are done."""
    params, config = sae.params, sae.config
    pending, most = _Pending(), block_entries(config.d_sae)
    n_rows = sum(block["n_rows"] for block in done)
    progress(n_rows)
    if tokens is not None and n_rows >= tokens:
        return
    for batch in text_rows(source, sum(block["n_batches"] for block in done)):
        width = batch.x.shape[1]
        check(width == config.d_in, f"source: expected width d_in = {config.d_in} of the SAE, got {width}")
        x = batch.x.to(params.b_dec)
        if not bool(x.sum().isfinite()):  # one pass; finite numbers, too, may have a sum that is not
            bad = (~x.isfinite()).any(dim=1).nonzero()
            row = n_rows + int(bad[0]) if len(bad) else 0
            check(not len(bad), f"source: expected finite activations, got NaN or Inf in row {row}")
        acts, indices = encode(ops, params, sae.extra, config, x)
        pending.add(acts, indices, batch.contexts, batch.slots)
        n_rows += len(x)
        progress(len(x))
        if pending.n_entries >= most or pending.n_contexts * batch.contexts.shape[1] >= BLOCK_TOKENS:
            yield pending
            pending = _Pending()
        if tokens is not None and n_rows >= tokens:
            break
    if pending.n_batches:
        yield pending


def write_block(
    folder: Path, index: dict[str, Any], code: dict[str, Tensor], text: dict[str, Tensor], n_batches: int
) -> None:
    """Write the next block, and then its line in the index.

    Args:
        code: offsets, slots and acts; text: contexts and encoded, as above.
        n_batches: of the source, from which the pass goes on after the block.
    """
    number = len(index["blocks"])
    entry: dict[str, Any] = {"n_batches": n_batches, "n_contexts": len(text["contexts"])}
    entry |= {"n_rows": int(text["encoded"].sum()), "n_entries": len(code["acts"])}
    for name, tensors in (("codes", code), ("text", text)):
        path = folder / f"{name}-{number:05d}.safetensors"
        entry[name] = {"file": path.name, "sha256": save_tensors(path, tensors, {"block": number})}
        entry[name]["bytes"] = path.stat().st_size
    entry["codes"]["offsets"] = digest({"offsets": code["offsets"].cpu()})  # they are read whole each time
    index["context_length"] = text["contexts"].shape[1]
    index["blocks"].append(entry)
    write_json_checked(folder / INDEX, index)


def read_blocks(folder: Path, index: dict[str, Any]) -> list[Block]:
    """The code, memory-mapped: only what is used is read. What is beside the entries (headers, offsets) is checked;
    `check_files` looks at everything."""
    blocks, first_slot = [], 0
    for entry in index["blocks"]:
        path, size = folder / entry["codes"]["file"], entry["codes"]["bytes"]
        found = path.stat().st_size if path.exists() else "no file"
        check(found == size, f"{path}: expected {size} bytes, got {found}")
        try:
            with safe_open(path, framework="pt") as file:
                checksum = (file.metadata() or {}).get("saefast", "").split(" ")[0]
                offsets, slots, acts = (
                    file.get_tensor(name).numpy() for name in ("offsets", "slots", "acts")
                )
        except SafetensorError as error:
            raise InputError(f"{path}: corrupt or not written by saefast ({line(error)})") from None
        check(checksum == entry["codes"]["sha256"], f"{path}: not the code that {INDEX} lists")
        n, F = entry["n_entries"], index["sae"]["d_sae"]
        arrays = [(array.dtype, array.shape) for array in (offsets, slots, acts)]
        good = arrays == [(np.int64, (F + 1,)), (np.int32, (n,)), (np.float32, (n,))]
        good = good and offsets[0] == 0 and offsets[-1] == n and bool((offsets[1:] >= offsets[:-1]).all())
        check(good, f"{path}: corrupt: expected the code of {F} latents, {n} entries")
        known = entry["codes"].get("offsets"), digest({"offsets": torch.from_numpy(offsets)})
        check(known[0] in (None, known[1]), f"{path}: corrupt: not the offsets that {INDEX} lists")
        blocks.append(Block(first_slot, offsets, slots, acts))
        first_slot += entry["n_contexts"] * index["context_length"]
    return blocks


def check_files(folder: Path, blocks: list[dict[str, Any]]) -> None:
    """Read the files of these blocks whole and compare their checksums, at about 1 GB/s.

    Raises:
        InputError: a file is missing, or any bit of it is wrong; the message names it.
    """
    for name in ("codes", "text"):
        for entry in blocks:
            path = folder / entry[name]["file"]
            ok = load_tensors(path)[2] == entry[name]["sha256"]
            check(ok, f"{path}: not the one that {INDEX} lists")


def read_text(folder: Path, index: dict[str, Any]) -> Text:
    """All contexts, after their checksums were compared."""
    contexts, encoded = [], []
    for entry in index["blocks"]:
        path = folder / entry["text"]["file"]
        tensors, _, checksum = load_tensors(path)
        check(checksum == entry["text"]["sha256"], f"{path}: not the text that {INDEX} lists")
        contexts.append(tensors["contexts"].numpy())
        encoded.append(tensors["encoded"].numpy().astype(bool))
    return Text(np.concatenate(contexts), np.concatenate(encoded), index["separators"])
