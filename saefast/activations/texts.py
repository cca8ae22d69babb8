"""Documents of files and folders: plain text, JSON, CSV, Parquet, Arrow, also compressed; see docs/usage.md.

What a file is is seen from its first bytes. Its name only says which of the kinds of text it is: .json, .jsonl, .csv, .tsv,
or plain text. A file of plain text is one document and comes in pieces, so that a large one is never in memory as a whole.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saefast.activations.containers import opened
from saefast.activations.json_values import JsonValues
from saefast.activations.tables import column, saved_dataset
from saefast.errors import InputError, check

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
LINES, TABLES = (".jsonl", ".ndjson"), (".parquet", ".arrow", ".feather")
WITH_FIELDS = (*LINES, ".json", ".csv", ".tsv", *TABLES)
TEXT_FILES = (".txt", ".md", ".py", *WITH_FIELDS)  # what is read of a folder
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # after utf-32, which begins so

Pieces = Iterator[tuple[str, bool]]
"""Text, and whether its document ends with it."""


class Texts:
    """Re-iterable of the documents in `path`: a file, a folder of them (in the order of their names), or a dataset that
    Hugging Face has saved. Documents without any text (only spaces and line ends) are left out.

    Args:
        field: the field of JSON objects, or the column of tables, that holds the text.

    Raises:
        InputError: while it is read: nothing there, no text in it, not a kind of file that is read, damaged, not UTF-8,
            or without the field; the message names the file, and the line or row.
    """

    def __init__(self, path: str | Path, field: str = "text") -> None:
        self.path, self.field = Path(path), field

    def __iter__(self) -> Iterator[str]:
        parts = []
        for text, ends in self.pieces():
            parts.append(text)
            if ends:
                yield "".join(parts)
                parts = []

    def pieces(self) -> Pieces:
        """The same in pieces: a file of plain text of at most 1 MiB (34 from .zst) at a time, other documents as a whole."""
        empty, files = True, _files(self.path)
        if self.field != "text":
            has_fields = any(suffix(file) in WITH_FIELDS or opened(file)[0] != "text" for file in files)
            check(has_fields, f"text_field: {self.path} is plain text, which has no field {self.field!r}")
        for file in files:
            for piece in _without_blank(_pieces(file, self.field)):
                empty = False
                yield piece
        check(not empty, f"text: expected some text, {self.path} is empty")


def read_texts(path: str | Path, field: str = "text") -> Iterator[str]:
    """The documents in `path`, once; see `Texts`."""
    return iter(Texts(path, field))


def bytes_of(path: Path) -> int:
    """Of the files of which `Texts(path)` reads."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    expected = "text: expected a file, a folder or a .jsonl with a text field"
    check(path.exists(), f"{expected}, found nothing at {path}")
    if not path.is_dir():
        check(path.is_file(), f"text: expected a file, {path} is none (a pipe cannot be read a second time)")
        return [path]
    saved = saved_dataset(path)
    if saved is not None:
        return saved
    files = sorted(f for f in path.rglob("*") if _is_text_file(f.relative_to(path)) and f.is_file())
    is_some = bool(files)
    check(
        is_some, f"text: expected *.txt, *.md, *.py, *.jsonl or others of docs/usage.md in {path}, found none"
    )
    return files


def _is_text_file(path: Path) -> bool:
    """Whether a file of a folder is read. Hidden ones, metadata and the caches of `datasets` are not."""
    is_hidden = any(part.startswith(".") for part in path.parts)
    is_cache = path.suffix == ".arrow" and path.name.startswith("cache-")
    return suffix(path) in TEXT_FILES and not (is_hidden or is_cache or path.name in METADATA)


def suffix(path: Path) -> str:
    """The end of the name, without that of a compression."""
    name = path.name.lower()
    return Path(name.removesuffix(Path(name).suffix) if name.endswith(COMPRESSED) else name).suffix


def _without_blank(pieces: Pieces) -> Pieces:
    """Without documents of nothing but spaces and line ends. Those at the beginning of another document stay."""
    blank: list[tuple[str, bool]] | None = []  # the pieces of a document so far, None after one with text
    for text, ends in pieces:
        if blank is not None:
            blank.append((text, ends))
            if text.strip():
                yield from blank
                blank = None
        else:
            yield text, ends
        if ends:
            blank = []


def _pieces(path: Path, field: str) -> Pieces:
    kind, chunks = opened(path)
    if kind != "text":
        for row, value in enumerate(column(path, kind, field)):
            yield checked(value, f"text: {path} row {row}"), True
        return
    name = suffix(path)
    is_text = name not in TABLES
    check(is_text, f"text: {path} is named {name}, but it is none, nor a compressed one")
    if name in LINES:
        yield from _of_lines(path, _decoded(path, chunks), field)
    elif name == ".json":
        yield from _of_json(path, _decoded(path, chunks), field)
    elif name in (".csv", ".tsv"):
        separator = "," if name == ".csv" else "\t"
        yield from _of_csv(path, _decoded(path, chunks, as_it_is=True), field, separator)
    else:
        yield from _plain(path, _decoded(path, chunks), field)


def _decoded(path: Path, chunks: Iterator[bytes], as_it_is: bool = False) -> Iterator[str]:
    r"""Characters of bytes in UTF-8, or in what a byte-order mark says. Line ends become \n unless `as_it_is`."""
    position, decoder = 0, None
    ends: Callable[..., str] = io.IncrementalNewlineDecoder(None, translate=True).decode
    for chunk in _and_end(chunks):
        if decoder is None:
            mark = next((mark for mark in MARKS if chunk.startswith(mark)), b"")
            encoding, position = MARKS.get(mark, "utf-8"), len(mark)
            decoder, chunk = codecs.getincrementaldecoder(encoding)(), chunk[len(mark) :]
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            where = position - held + error.start
            what = f"byte {where} is 0x{error.object[error.start]:02x}, which is not {encoding.upper()}"
            raise InputError(f"text: {path}: {what}; `iconv -f latin1 -t utf-8` converts Latin-1") from None
        position += len(chunk)
        zeros = "it has zero bytes: it is binary, or UTF-16 without a byte-order mark"
        check("\0" not in text, f"text: {path} is not plain text, {zeros}")
        yield text if as_it_is else ends(text, final=not chunk)


def _and_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks that are not empty, and an empty one at the end."""
    yield from (chunk for chunk in chunks if chunk)
    yield b""


def _plain(path: Path, texts: Iterator[str], field: str) -> Pieces:
    """One document. What is JSON or CSV under another name would be read with its quotes and brackets: it is refused."""
    last = next(texts, "")
    other = _other_kind(last.lstrip(), field) if suffix(path) in ("", ".txt", ".text") else None
    check(
        other is None,
        f'text: {path} looks like {other} with a field "{field}": name it so, to have it read so',
    )
    for text in texts:
        yield last, False
        last = text
    yield last, True


def _other_kind(head: str, field: str) -> str | None:
    """ ".json", ".jsonl", ".csv" or ".tsv" if this is how such a file with the field begins."""
    if head.startswith(("{", "[")):
        is_array = head.startswith("[")
        try:
            value, _ = json.JSONDecoder().raw_decode(head[1:].lstrip() if is_array else head)
        except (ValueError, RecursionError):
            return None
        is_ours = isinstance(value, dict) and isinstance(value.get(field), str)
        return (".json" if is_array else ".jsonl") if is_ours else None
    first = head.partition("\n")[0]
    for separator, name in ((",", ".csv"), ("\t", ".tsv")):
        names = [entry.strip('"') for entry in first.split(separator)]
        if len(names) > 1 and field in names:
            return name
    return None


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """Lines with their ends. A line is put together once, however long it is."""
    parts: list[str] = []
    for text in texts:
        first, *others = text.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts) + "\n"
            parts = [line]
    if last := "".join(parts):
        yield last


def _of_lines(path: Path, texts: Iterator[str], field: str) -> Pieces:
    for number, line in enumerate(_lines(texts), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = line[:40]
        yield text_of(value, field, f"text: {path} line {number}"), True


def _of_json(path: Path, texts: Iterator[str], field: str) -> Pieces:
    """An array of objects or of strings, an object with the field or with one such array, or several objects."""
    for number, value in enumerate(JsonValues(path, texts).documents(field), 1):
        where = f"text: {path} element {number}"
        yield checked(value, where) if isinstance(value, str) else text_of(value, field, where), True


def _of_csv(path: Path, texts: Iterator[str], field: str, separator: str) -> Pieces:
    """Rows after a line with the names of the columns, with quotes as in RFC 4180."""
    csv.field_size_limit(
        max(csv.field_size_limit(), 2**31 - 1)
    )  # documents are longer than its 131,072 characters
    reader = csv.reader(_lines(texts), delimiter=separator, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if names is None:
                names = row
                shown = ", ".join(name[:40] for name in names[:20])
                is_there = names.count(field) == 1
                check(is_there, f'text: {path}: expected one column "{field}" (text_field), it has {shown}')
                continue
            fits, where = len(row) == len(names), f"text: {path} line {reader.line_num}"
            check(fits, f"{where}: expected {len(names)} columns, as in its first line, got {len(row)}")
            yield checked(row[names.index(field)], where), True
    except csv.Error as error:
        raise InputError(f"text: {path} line {reader.line_num}: damaged CSV ({error})") from None


def text_of(value: Any, field: str, where: str, kind: str = "a JSON object") -> str:
    """The text in `field` of an object."""
    if isinstance(value, Mapping):
        got = "one with " + (", ".join(str(name)[:40] for name in list(value)[:20]) or "nothing")
    else:
        got = repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
    is_there = isinstance(value, Mapping) and field in value
    check(is_there, f'{where}: expected {kind} with a field "{field}" (text_field), got {got}')
    return checked(value[field], f'{where}, field "{field}"')


def checked(text: Any, where: str) -> str:
    """`text`, if it is a string that a tokenizer takes."""
    got = "null" if text is None else type(text).__name__
    check(isinstance(text, str), f"{where}: expected a string, got {got}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"0x{ord(text[error.start]):x} at character {error.start}"
        raise InputError(f"{where}: expected text, got half a surrogate pair, {half}") from None
    return text
