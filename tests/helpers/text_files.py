"""The same documents in files of every kind that `saefast.activations.texts` reads."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from saefast import InputError
from saefast.activations.texts import Texts

DOCUMENTS = [
    "one",
    'two\nlines, "quoted"',
    "  é😀中文 \u2028 x",
    "tab\tand more",
    "long " * 5000,
    "[1] {2} text",
]
ROWS = [{"id": i, "text": text} for i, text in enumerate(DOCUMENTS)]


def compressed(data, ending):
    ways = {
        ".gz": lambda data: gzip.compress(data, mtime=0),
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        "": bytes,
    }
    return (ways | {".zst": zstandard.ZstdCompressor(write_checksum=True).compress})[ending](data)


def table(**columns):
    return pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS} | columns)


def separated(delimiter):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([["id", "text"], *([row["id"], row["text"]] for row in ROWS)])
    return stream.getvalue().encode()


def written(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def arrow_stream(rows, compression=None):
    def write(stream):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(stream, rows.schema, options=options) as writer:
            writer.write_table(rows, max_chunksize=4)

    return written(write)


LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
TEXTUAL = {  # the same documents in every kind of text
    "a.jsonl": LINES,
    "a.ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),  # with a mark, and blank lines
    "objects.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "strings.json": json.dumps(DOCUMENTS).encode(),
    "inside.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": LINES,
    "a.csv": separated(","),
    "a.tsv": b"\xef\xbb\xbf" + separated("\t"),
    "utf-16.csv": separated(",").decode().encode("utf-16"),
}
TABLES = {
    "a.parquet": written(lambda stream: pa.parquet.write_table(table(), stream, row_group_size=2)),
    "a.arrow": arrow_stream(table()),
    "compressed.arrow": arrow_stream(table(), "zstd"),
    "a.feather": written(lambda stream: pa.feather.write_feather(table(), stream)),
    "large.parquet": written(
        lambda stream: pa.parquet.write_table(table(text=pa.array(DOCUMENTS, pa.large_string())), stream)
    ),
    "dictionary.feather": written(
        lambda stream: pa.feather.write_feather(table(text=pa.array(DOCUMENTS).dictionary_encode()), stream)
    ),
}
CONTAINERS = {
    name + end: compressed(data, end) for name, data in TEXTUAL.items() for end in ("", ".gz", ".zst")
}
CONTAINERS |= {f"a.csv{end}": compressed(TEXTUAL["a.csv"], end) for end in (".bz2", ".xz")} | TABLES


def refused(path, field="text"):
    """The message with which it is refused."""
    with pytest.raises(InputError) as caught:
        list(Texts(path, field))
    message = str(caught.value)
    assert message.startswith("text: ") and "\n" not in message and len(message) < 500
    return message
