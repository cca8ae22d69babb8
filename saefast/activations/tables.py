"""One column of text of Parquet and Arrow files, and of datasets that Hugging Face has saved; read with pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saefast.activations.containers import damage
from saefast.errors import InputError, check
from saefast.files import read_json

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow
ROWS = 1000  # values that are Python objects at the same time


def column(path: Path, kind: str, field: str) -> Iterator[Any]:
    """The values of the column `field`, one by one, of a "parquet" file, an "arrow file" or an "arrow stream".

    Of Parquet one row group is in memory, of Arrow one record batch.

    Raises:
        InputError: there is no such column of strings, the file is damaged, or pyarrow is missing.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f"text: {path} is a table ({kind}): `pip install saefast[text]`") from None
    with damage(path, kind, pa.ArrowException):
        for batch in _batches(path, kind, field):
            batch.validate(full=True)  # offsets that point elsewhere would crash, or give others' bytes
            for start in range(0, len(batch), ROWS):
                yield from batch.slice(start, ROWS).to_pylist()


def _batches(path: Path, kind: str, field: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_column(path, file.schema_arrow, field)
            for batch in file.iter_batches(ROWS, columns=[field], use_threads=False):
                yield batch.column(0)
        return
    with pa.memory_map(str(path)) as file:
        if kind == "arrow file":
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(file)
            batches = iter(reader)
        place = _check_column(path, reader.schema, field)
        for batch in batches:
            yield batch.column(place)
        # pyarrow takes the end of a file that was cut between two batches for the end of the stream
        if kind == "arrow stream" and (file.tell() != file.size() or not _ends_with(file, END_OF_STREAM)):
            raise EOFError("it does not end where the stream ends")


def _ends_with(file: Any, mark: bytes) -> bool:
    file.seek(file.size() - len(mark))
    return bool(file.read(len(mark)) == mark)


def _check_column(path: Path, schema: Any, field: str) -> int:
    """The number of the column `field`, which must be there once and hold strings."""
    import pyarrow as pa

    names, place = ", ".join(schema.names[:20]) or "none", schema.get_field_index(field)
    check(place >= 0, f'text: {path}: expected a column "{field}" (text_field), it has {names}')
    held = schema.field(place).type
    of_text = held.value_type if pa.types.is_dictionary(held) else held
    is_text = any(of_text.equals(kind) for kind in (pa.string(), pa.large_string(), pa.string_view()))
    check(is_text, f'text: {path}: expected strings in the column "{field}" (text_field), got {held}')
    return place


def saved_dataset(folder: Path) -> list[Path] | None:
    """The files of a dataset in `folder`, in their order, if `datasets` has saved it with `save_to_disk`.

    Raises:
        InputError: it holds several splits (which one is meant is said in the path), or its state.json is damaged.
    """
    if (folder / "dataset_dict.json").exists():
        splits = _entry(folder / "dataset_dict.json", "splits", str)
        one = f"text: {folder} holds {len(splits)} splits, expected one: give the folder of one of them"
        check(len(splits) == 1, f"{one}: {', '.join(str(folder / split) for split in splits)}")
        return saved_dataset(folder / splits[0])
    if not (folder / "state.json").exists() or not (folder / "dataset_info.json").exists():
        return None
    state = folder / "state.json"
    files = [entry.get("filename") for entry in _entry(state, "_data_files", dict)]
    for name in files:
        is_here = isinstance(name, str) and name == Path(name).name and (folder / name).is_file()
        check(is_here, f"text: {state} names the file {name!r}, which is not there")
    has_indices = bool(read_json(state).get("_indices_data_files"))
    check(not has_indices, f"text: {state} has indices of rows: save it again with a newer `datasets`")
    return [folder / str(name) for name in files]


def _entry(path: Path, key: str, kind: type) -> list[Any]:
    found = read_json(path)
    entries = found.get(key) if isinstance(found, dict) else None
    is_list = isinstance(entries, list) and all(isinstance(entry, kind) for entry in entries)
    check(is_list, f'text: {path}: expected a list "{key}", as `save_to_disk` of datasets writes it')
    return entries or []
