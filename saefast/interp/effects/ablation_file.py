"""ablations.parquet: the ablation effects of the shown windows, in the folder of the records.

A row for each window: latent int32; group, bin and rank as in examples.parquet; effects list<float32>, one for each token of
the window, null for the first of a context, which nothing predicts. Its metadata says what they were made from, and has a
digest of the columns: the checksums of Parquet's pages leave out what is around them.
"""

import json
from pathlib import Path
from typing import Any

import torch

from saefast.config.records import GROUPS
from saefast.errors import check, shown
from saefast.files import digest, write_atomic
from saefast.interp.records.tables import arrow, reading

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
    table = pa.table(columns, schema=pa.schema(list(fields.items())))
    table = table.replace_schema_metadata(
        {"saefast": json.dumps(made_from | {"digest": _digest(table, made_from)})}
    )
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
    table = ablations_table(folder, made_from)
    if table is None:
        return {}
    columns = [table[name].to_pylist() for name in ("latent", "group", "bin", "rank", "effects")]
    return {(row[0], row[1], row[2], row[3]): row[4] for row in zip(*columns, strict=True)}


def ablations_table(folder: Path, made_from: dict[str, Any] | None = None) -> Any:
    """The same as a pyarrow Table, in the order of the latents; None without a file."""
    path, pa = folder / ABLATIONS, arrow()
    if not path.exists():
        return None
    with reading(path):
        table = pa.parquet.read_table(path, page_checksum_verification=True)
    try:
        found = json.loads(table.schema.metadata[b"saefast"])
        is_whole = found.pop("digest") == _digest(table, found)
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        is_whole = False
    check(is_whole, f"{path}: corrupt or of an early version of saefast; delete it to make another")
    same = made_from is None or found == made_from
    got = f"{path}: expected ablations of {shown(made_from)}, got those of {shown(found)}"
    check(same, f"{got}; delete it to make others")
    return table


def _digest(table: Any, made_from: dict[str, Any]) -> str:
    """Of the columns, whatever chunks or dictionaries they are in, and of what they were made from."""
    pa = arrow()
    columns = [table[name].combine_chunks() for name in ("latent", "bin", "rank", "effects")]
    names = table["group"].combine_chunks()
    kinds = [pa.int32(), pa.int16(), pa.int16(), pa.list_(pa.float32())]
    good = [column.type for column in columns] == kinds and names.type == pa.dictionary(
        pa.int8(), pa.string()
    )
    if not good or any(column.null_count for column in (names, *columns)):
        raise ValueError("other columns")
    effects, named = columns[-1], names.cast(pa.string())
    group = pa.compute.index_in(named, value_set=pa.array(GROUPS)).to_numpy(zero_copy_only=False)
    arrays = [*(column.to_numpy() for column in columns[:3]), group, effects.value_lengths().to_numpy()]
    arrays.append(effects.flatten().to_numpy(zero_copy_only=False))  # NaN where there is none
    return digest(
        {str(i): torch.from_numpy(array.copy()) for i, array in enumerate(arrays)}, json.dumps(made_from)
    )
