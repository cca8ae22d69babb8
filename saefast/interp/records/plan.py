"""What a pass will take, said before it begins."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from saefast.activations.sources import Source
from saefast.backend import load_backend
from saefast.config.records import RecordsConfig
from saefast.errors import check
from saefast.interp.records.batches import text_rows
from saefast.interp.records.codes import block_entries
from saefast.sae import SAE
from saefast.sae.inference import encode

ENTRY_BYTES, TOKEN_BYTES, LATENT_BYTES, EXAMPLE_BYTES = 8, 5, 64, 28
"""On disk: of an active entry; of a token; of the statistics of a latent; of an example with what is active in its window, as
Parquet packs them (17 measured on the demo)."""
PENDING_BYTES = (
    36  # in memory, of an entry of the block that is gathered: as it came, in one piece, sorted, saved
)
LOADED_BYTES = 6  # in memory, of a token while the tables are made


class Plan(NamedTuple):
    """Bytes, estimated; of a source whose length nobody knows, code and text are 0 but for one block."""

    rows: int
    code: int  # on disk
    text: int  # on disk
    tables: int  # on disk
    memory: int  # at the peak, beside the SAE and a batch of the encoder

    @property
    def disk(self) -> int:
        return self.code + self.text + self.tables

    def __str__(self) -> str:
        code, text, tables, memory = (size / 1e9 for size in (self.code, self.text, self.tables, self.memory))
        return (
            f"records of {self.rows:,} tokens: {self.disk / 1e9:.2f} GB of disk (code {code:.2f}, text {text:.2f}, "
            f"tables {tables:.2f}), {memory:.2f} GB of memory beside the encoder's"
        )


def plan(sae: SAE, source: Source, config: RecordsConfig, tokens: int | None = None) -> Plan:
    """What `record` of these takes. Without a k one batch is encoded to see how many latents are active."""
    n_tokens = source.describe().get("n_tokens")
    known = [n for n in (n_tokens, tokens) if n is not None]
    rows = min(known, default=0)
    active = float(sae.config.k or 0)
    if not active:
        batch = next(text_rows(source))
        with torch.no_grad():
            x, ops = batch.x.to(sae.params.b_dec), load_backend("auto", sae.params.b_dec.device.type)
            acts, _ = encode(ops, sae.params, sae.extra, sae.config, x)
        active = float((acts > 0).sum()) / max(1, len(x))
    return plan_of(rows, int(rows * active), sae.config.d_sae, config)


def plan_of(rows: int, entries: int, d_sae: int, config: RecordsConfig) -> Plan:
    """What the records of so many tokens and active entries take; 0 rows: nobody knows how many."""
    of_block = block_entries(d_sae)
    n_blocks = entries // of_block + 1
    n_examples = min(d_sae * len(config.places), entries + d_sae * config.n_inactive) if rows else 0
    n_examples = n_examples or d_sae * len(config.places)
    return Plan(
        rows,
        ENTRY_BYTES * entries + 8 * (d_sae + 1) * n_blocks,
        TOKEN_BYTES * rows,
        (LATENT_BYTES + 8 * config.n_bins) * d_sae + EXAMPLE_BYTES * n_examples,
        max(PENDING_BYTES * min(entries or of_block, 2 * of_block), LOADED_BYTES * rows) + 8 * d_sae,
    )


def check_disk(folder: Path, needed: Plan) -> None:
    """Raise InputError if the disk of `folder`, which need not be there, has less free than that."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    what = f"records: {folder} needs {needed.disk / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free"
    check(free > needed.disk, what)
