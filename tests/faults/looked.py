"""Records, what is beside them, and pages: a piece of work that is killed or fails, and what is read of what it left."""

import re
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

from saefast import SAE, InputError, SAEConfig
from saefast.activations.shards import ShardSource
from saefast.interp.effects import ABLATIONS, Effects, alignment, neighbours, read_ablations
from saefast.interp.effects.ablation_file import write_ablations
from saefast.interp.look import write_site
from saefast.interp.records import Records, batches, codes, record
from tests.helpers.look_records import Tokens
from tests.helpers.small_records import CONFIG, shards

M, L, WIDTH, LATENTS = 12, 16, 8, 24


def source(place: Path) -> ShardSource:
    """Activations with their text, written once."""
    folder = place / "acts"
    if (folder / "done").exists():
        return ShardSource(folder)
    generator = torch.Generator().manual_seed(2)
    contexts = torch.randint(4, 60, (M, L), generator=generator, dtype=torch.int32)
    shards(folder, torch.randn(M * L, WIDTH, generator=generator), contexts, 2)
    (folder / "done").touch()
    return ShardSource(folder)


def an_sae() -> SAE:
    return SAE(SAEConfig(d_in=WIDTH, d_sae=LATENTS, k=3))


def recorded(out: Path) -> Records:
    """In five blocks."""
    with mock.patch.object(codes, "block_entries", lambda d_sae: 100), mock.patch.object(batches, "ROWS", 20):
        return record(an_sae(), source(out.parent), out / "records", CONFIG)


def described(out: Path) -> Records:
    """Records with effects and ablations, which are made once."""
    records, sae = recorded(out), an_sae()
    if Effects.load(records.folder) == Effects():
        Effects(decoder=neighbours(sae, n=3), alignment=alignment(sae, 3)).save(records.folder)
    if not (records.folder / ABLATIONS).exists():
        rows = records.examples_table().select(["latent", "group", "bin", "rank", "acts"]).to_pylist()
        rows = [row | {"effects": [None, *row.pop("acts")]} for row in rows]
        write_ablations(records.folder, rows, {"sae": "of this test"})
    return records


def looked(out: Path) -> None:
    """As `saefast look`: what is there already is not made again, the pages are."""
    records = described(out)
    vocabulary = Tokens([f" t{i}".encode() for i in range(60)])
    write_site(records, out / "look", vocabulary, Effects.load(records.folder), latents_per_file=5)


def read(folder: Path) -> dict[str, object]:
    """Everything that readers take from a folder of records."""
    records = Records(folder)
    records.check()
    found: dict[str, object] = {"index": records.index, "text": records.text.contexts.tolist()}
    found |= {"encoded": records.text.encoded.tolist(), "latents": records.table().to_pylist()}
    found["code"] = [[array.tolist() for array in records.entries(i)] for i in range(records.d_sae)]
    found["examples"] = [repr(records.latent(i)) for i in range(records.d_sae)]
    effects = Effects.load(folder)
    found["effects"] = [tensor.tolist() for table in effects for tensor in table or ()]
    found["ablations"] = repr(read_ablations(folder))
    return found


def is_whole_or_says_so(site: Path) -> bool:
    """Of the folder of a site: its page says that it is not complete, or all files of data are of its build."""
    if not (site / "index.html").exists():
        return True
    page = (site / "index.html").read_text()
    build = re.search(r'data-build="(\w+)"', page)
    if build is None:
        return "This site is not complete" in page
    names = {path.stem for path in (site / "data").iterdir()}
    whole = all(build[1].encode() in path.read_bytes() for path in (site / "data").iterdir())
    return whole and {"head", "vocabulary", "latents-0", "latents-4", "search-0"} <= names


def look_between(out: Path) -> None:
    """Between a kill and the next start: records are whole or refused in one line, pages are whole or say so."""
    if (out / "records").exists():
        with suppress(InputError):
            read(out / "records")
    assert is_whole_or_says_so(out / "look")
