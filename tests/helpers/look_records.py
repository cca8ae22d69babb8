"""Records without a model: a text of chosen tokens and a random sparse code, in the files that `record` writes."""

from pathlib import Path

import numpy as np
import torch

from saefast.files import save_tensors, write_json_checked
from saefast.interp.records import Records, RecordsConfig
from saefast.interp.records.codes import write_block
from saefast.interp.records.folder import begin, finish, index_of
from saefast.interp.records.index_file import INDEX
from saefast.interp.records.plan import plan_of
from saefast.interp.records.select import Block
from saefast.interp.records.tables import EXAMPLES, LATENTS, arrow

SMALL = RecordsConfig(n_top=6, per_interval=2, per_quantile=2, n_random=3, n_inactive=3, before=8, after=5)


class Tokens:
    """What the site needs of a `Vocabulary`."""

    def __init__(self, raw: list[bytes], special: tuple[int, ...] = ()) -> None:
        self.raw, self.special = raw, set(special)

    def __len__(self) -> int:
        return len(self.raw)


def make(
    folder: Path,
    vocabulary: Tokens,
    *,
    contexts: np.ndarray | None = None,
    d_sae: int = 40,
    k: int = 4,
    config: RecordsConfig = SMALL,
    seed: int = 0,
) -> Records:
    """12 contexts of 24 random tokens, k latents active on each but for every ninth token; the last two latents are dead."""
    rng = np.random.default_rng(seed)
    if contexts is None:
        contexts = rng.integers(0, len(vocabulary), (12, 24)).astype(np.int32)
    n = contexts.size
    encoded = (np.arange(n) % 9 != 0).reshape(contexts.shape)
    slots = np.repeat(np.arange(n)[encoded.ravel()], k)
    owners = np.concatenate([rng.permutation(d_sae - 2)[:k] for _ in range(len(slots) // k)])
    acts = (np.round(rng.gamma(2.0, 3.0, len(slots)) * 8) / 8 + 0.125).astype(np.float32)  # with ties
    order = np.lexsort((slots, owners))
    offsets = np.searchsorted(owners[order], np.arange(d_sae + 1))
    block = Block(0, offsets.astype(np.int64), slots[order].astype(np.int32), acts[order])
    sae = {"d_in": 8, "d_sae": d_sae, "digest": str(seed), "model_name": "a model", "hook_name": "a place"}
    return write(folder, block, contexts, encoded, sae, {"type": "test", "n_tokens": n}, config)


def write(
    folder: Path,
    block: Block,
    contexts: np.ndarray,
    encoded: np.ndarray,
    sae: dict,
    source: dict,
    config: RecordsConfig,
) -> Records:
    """Records of this code, as `record` writes them."""
    index = index_of(folder, sae, source, config, [], None)
    begin(folder, index, plan_of(contexts.size, len(block.acts), sae["d_sae"], config))
    code = {name: torch.from_numpy(getattr(block, name)) for name in ("offsets", "slots", "acts")}
    text = {"contexts": torch.from_numpy(contexts), "encoded": torch.from_numpy(encoded.astype(np.uint8))}
    write_block(folder, index, code, text, 1)
    return finish(folder, index)


def many(folder: Path, vocabulary: Tokens, d_sae: int) -> Records:
    """Records of d_sae latents, each with as many examples as `RecordsConfig` asks for: those of 512, again and again."""
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, len(vocabulary), (400, 128)).astype(np.int32)
    records = make(folder, vocabulary, contexts=contexts, d_sae=512, k=8, config=RecordsConfig())
    index = dict(records.index) | {"sae": records.index["sae"] | {"d_sae": d_sae}}
    pa = arrow()
    for name in (LATENTS, EXAMPLES):
        table = pa.parquet.read_table(folder / name)
        place = table.column_names.index("latent")
        with pa.parquet.ParquetWriter(folder / f"new-{name}", table.schema) as writer:
            for first in range(0, d_sae, 512):
                part = table.filter(pa.compute.less(table["latent"], d_sae - first))
                own = pa.array(part["latent"].to_numpy() + np.int32(first))
                writer.write_table(part.set_column(place, "latent", own), len(part))
        (folder / f"new-{name}").rename(folder / name)
    codes = folder / "codes-00000.safetensors"
    block = records.blocks[0]
    offsets = np.full(d_sae + 1, block.offsets[-1])
    offsets[:513] = block.offsets
    tensors = {"offsets": offsets, "slots": np.array(block.slots), "acts": np.array(block.acts)}
    made = save_tensors(codes, {key: torch.from_numpy(value) for key, value in tensors.items()}, {"block": 0})
    of_codes = {"file": codes.name, "bytes": codes.stat().st_size, "sha256": made}
    index["blocks"][0]["codes"] = of_codes
    del index["tables"]  # others than those that were made
    write_json_checked(folder / INDEX, index)
    return Records(folder)
