"""index.json of a folder of records: what was recorded from what, and the files with their checksums."""

from pathlib import Path
from typing import Any

from saefast.config.records import RecordsConfig
from saefast.errors import InputError, check
from saefast.files import read_json, read_json_checked

INDEX = "index.json"
FORMAT, VERSION = "saefast-records", 1


def read_index(folder: Path) -> dict[str, Any]:
    """The index of records, complete or not.

    Raises:
        InputError: there is none, or it is damaged.
    """
    index = read_json_checked(folder / INDEX)
    ok = index.get("format") == FORMAT and index.get("version") == VERSION
    check(ok, f"{folder / INDEX}: expected the index of {FORMAT}, version {VERSION}")
    check(_well_formed(index), f"{folder / INDEX}: corrupt: an entry is not of the kind that saefast writes")
    return index


def is_records(folder: Path) -> bool:
    """Whether these are records, whole or not: a shard folder has an index.json, too."""
    try:
        return bool(read_json(folder / INDEX).get("format") == FORMAT)
    except (InputError, AttributeError):
        return bool(list(folder.glob("codes-*.safetensors")))


def _well_formed(index: dict[str, Any]) -> bool:
    try:
        RecordsConfig(**index["config"])
        sae, tables, length = index["sae"], index.get("tables", {}), index["context_length"]
        blocks, tokens = index["blocks"], index["tokens"]
        d_in, d_sae = sae["d_in"], sae["d_sae"]
        good = type(d_sae) is int and d_sae > 0 and isinstance(sae["digest"], str)
        good = good and (d_in is None or (type(d_in) is int and d_in > 0))  # None: another tool's code
        good = good and isinstance(index["source"], dict)
        good = good and type(index["complete"]) is bool and (tokens is None or type(tokens) is int)
        good = good and isinstance(index["separators"], list) and isinstance(blocks, list)
        good = good and all(type(token) is int for token in index["separators"])
        good = good and all(isinstance(value, str) for value in tables.values())
        good = good and (type(length) is int and length > 0 if blocks else not index["complete"])
        return good and all(map(_is_block, blocks))
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_block(block: dict[str, Any]) -> bool:
    numbers = [block[name] for name in ("n_batches", "n_contexts", "n_rows", "n_entries")]
    files = [block["codes"], block["text"]]
    good = all(type(n) is int and n >= 0 for n in [*numbers, *(file["bytes"] for file in files)])
    good = good and all(isinstance(file["sha256"], str) for file in files)
    return good and all(
        isinstance(file["file"], str) and file["file"] == Path(file["file"]).name for file in files
    )
