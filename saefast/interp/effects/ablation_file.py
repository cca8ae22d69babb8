"""ablations.parquet: the ablation effects of the shown windows, in the folder of the records.

A row for each window: latent int32; group, bin and rank as in examples.parquet; effects list<float32>, one for each token of
the window, null for the first of a context, which nothing predicts.
"""

import json
from pathlib import Path
from typing import Any

from saefast.config.records import GROUPS
from saefast.errors import InputError, check, line
from saefast.files import write_atomic
from saefast.interp.records.tables import arrow

ABLATIONS = "ablations.parquet"


def write_ablations(folder: Path, rows: list[dict[str, Any]], made_from: dict[str, Any]) -> None:
    """All of them, in the order of latent, group, bin and rank; in one step. `made_from` is in the file's metadata."""
    pa = arrow()
    rows = sorted(rows, key=lambda row: (row["latent"], GROUPS.index(row["group"]), row["bin"], row["rank"]))
    fields = {
        "latent": pa.int32(),
        "group": pa.dictionary(pa.int8(), pa.string()),
        "bin": pa.int16(),
        "rank": pa.int16(),
        "effects": pa.list_(pa.float32()),
    }
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in fields}
    columns["group"] = pa.DictionaryArray.from_arrays(
        pa.array([GROUPS.index(group) for group in columns["group"]], pa.int8()), list(GROUPS)
    )
    schema = pa.schema(list(fields.items()), metadata={"saefast": json.dumps(made_from)})
    table = pa.table(columns, schema=schema)
    options = {"compression": "zstd", "write_page_checksum": True}
    write_atomic(folder / ABLATIONS, lambda path: pa.parquet.write_table(table, path, **options))


def read_ablations(
    folder: Path, made_from: dict[str, Any] | None = None
) -> dict[tuple[int, str, int, int], list[float | None]]:
    """(latent, group, bin, rank) -> the effects of the tokens of that window; without a file, none.

    Args:
        made_from: what the file must have been made from; None: anything.

    Raises:
        InputError: the file is damaged, or made from something else.
    """
    path = folder / ABLATIONS
    if not path.exists():
        return {}
    pa = arrow()
    try:
        table = pa.parquet.read_table(path, page_checksum_verification=True)
        found = json.loads(table.schema.metadata[b"saefast"])
        columns = [table[name].to_pylist() for name in ("latent", "group", "bin", "rank", "effects")]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({line(error)})") from None
    same = made_from is None or found == made_from
    check(same, f"{path}: expected ablations of {made_from}, got those of {found}; delete it to make others")
    return {(row[0], row[1], row[2], row[3]): row[4] for row in zip(*columns, strict=True)}
