"""The folder of records from its first file to its last: who made it, from what, and whether it is finished.

Whoever has a code writes it between `begin` and `finish`: the pass over a source (codes.py), or a reader of another tool's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saefast.config.records import RecordsConfig
from saefast.errors import InputError, check, shown
from saefast.files import write_json_checked
from saefast.interp.records import engine
from saefast.interp.records.codes import read_blocks, read_text
from saefast.interp.records.index_file import FORMAT, INDEX, VERSION, read_index
from saefast.interp.records.plan import Plan, check_disk
from saefast.interp.records.read import Records
from saefast.interp.records.select import Selected
from saefast.interp.records.tables import ROWS_PER_GROUP, write_tables


def index_of(
    folder: Path,
    sae: dict[str, Any],
    source: dict[str, Any],
    config: RecordsConfig,
    separators: Sequence[int],
    tokens: int | None,
) -> dict[str, Any]:
    """The index of the records in `folder`, finished or not, or a new one, which is not written yet.

    Raises:
        InputError: there are records of something else.
    """
    wanted: dict[str, Any] = {"format": FORMAT, "version": VERSION, "sae": sae}
    wanted |= {"source": source, "config": asdict(config)}
    wanted |= {"separators": sorted(separators), "tokens": tokens}
    wanted = json.loads(json.dumps(wanted))  # as it is read back: a tuple is a list there
    if not (folder / INDEX).exists():
        return wanted | {"complete": False, "context_length": None, "blocks": []}
    index = read_index(folder)
    for key, value in wanted.items():
        found = index.get(key)
        other = "choose another folder (--records), or delete it"
        got = f"records: {folder} holds records with {key} = {shown(found)}, asked for {shown(value)}"
        check(found == value, f"{got}; {other}")
    return index


def begin(folder: Path, index: dict[str, Any], needed: Plan) -> None:
    """Make the folder of new records, if the disk has room for them."""
    check_disk(folder, needed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_checked(folder / INDEX, index)


def finish(folder: Path, index: dict[str, Any]) -> Records:
    """Make the tables of records whose whole code is there."""
    config, d_sae = RecordsConfig(**index["config"]), index["sae"]["d_sae"]
    blocks, text = read_blocks(folder, index), read_text(folder, index)

    def selections() -> Iterator[tuple[int, Selected]]:
        for first in range(0, d_sae, ROWS_PER_GROUP):
            end = min(first + ROWS_PER_GROUP, d_sae)
            try:
                yield first, engine.select(blocks, first, end, text, config)
            except ValueError as error:
                raise InputError(f"{folder}: {error}") from None

    tables = write_tables(folder, selections(), blocks, text, config)
    write_json_checked(folder / INDEX, index | {"complete": True, "tables": tables})
    return Records(folder)
