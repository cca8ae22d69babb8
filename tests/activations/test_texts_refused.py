"""Text that is damaged, or is none: one line that names the file and says what is wrong."""

import gzip
import json
import os
import pickle
import random
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from saefast import InputError
from saefast.activations.texts import Texts, read_texts
from tests.helpers.text_files import CONTAINERS, DOCUMENTS, TABLES, arrow_stream, refused, table, written


@pytest.mark.parametrize(
    "name,holds,message",
    [
        ("a.txt", "a.jsonl", 'looks like .jsonl with a field "text": name it so'),
        ("a", "objects.json", 'looks like .json with a field "text"'),
        ("a.txt.gz", "a.csv.gz", 'looks like .csv with a field "text"'),
        ("a.text", "a.tsv", 'looks like .tsv with a field "text"'),
        ("a.parquet", "a.jsonl", "is named .parquet, but it is none"),
        ("a.jsonl", "objects.json", "line 1: expected a JSON object"),
        ("a.json", "a.csv", "expected JSON"),
        ("a.csv", "strings.json", 'expected one column "text"'),
    ],
)
def test_text_of_another_kind_than_its_name_says_is_refused(tmp_path, name, holds, message):
    (tmp_path / name).write_bytes(CONTAINERS[holds])
    assert message in refused(tmp_path / name)


def zipped(name):
    return written(lambda stream: zipfile.ZipFile(stream, "w").writestr(name, "text"))


@pytest.mark.parametrize(
    "data,what",
    [
        (zipped("word/document.xml"), "a zip archive"),
        (b"name.txt".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (pickle.dumps(["text"]), "a Python pickle"),
        (written(lambda stream: np.save(stream, np.zeros(3))), "a NumPy array"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"x":{"dtype":"F32"', "a safetensors file"),
        (b"SQLite format 3\0\x10\0", "an SQLite database"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"MZ\x90\0\x03", "a program of Windows"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of git-lfs"),
        (gzip.compress(b"PAR1" + bytes(600), mtime=0), "parquet inside of gzip"),
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "gzip inside of gzip"),
        (b"\x01\x02\0\x03" * 99, "not plain text, it has zero bytes"),
        ("no mark".encode("utf-16-le"), "not plain text, it has zero bytes"),
        ("caf\xe9 in Latin-1".encode("latin-1"), "byte 3 is 0xe9, which is not UTF-8"),
        (b"\xef\xbb\xbf" + b"a" * (2 << 20) + b"\xff", f"byte {3 + (2 << 20)} is 0xff, which is not UTF-8"),
        (b"a" * ((1 << 20) - 1) + "é".encode()[:1], f"byte {(1 << 20) - 1} is 0xc3, which is not UTF-8"),
        (b"\xff\xfea\0\0\xd8b\0", "byte 4 is 0x00, which is not UTF-16-LE"),
    ],
)
def test_what_is_no_text_is_named_by_its_first_bytes(tmp_path, data, what):
    for name in ("a.txt", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(data)
        assert what in refused(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "objects.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.feather"]
)
def test_another_field_is_read_and_one_that_is_not_there_lists_those_that_are(tmp_path, name):
    rows = table().rename_columns(["id", "body"])
    changed = CONTAINERS[name].replace(b'"text":', b'"body":').replace(b"id,text", b"id,body")
    changed = changed.replace(b"id\ttext", b"id\tbody")
    if name in TABLES:
        write = {"a.parquet": pa.parquet.write_table, "a.feather": pa.feather.write_feather}.get(name)
        changed = written(lambda stream: write(rows, stream)) if write else arrow_stream(rows)
    (tmp_path / name).write_bytes(changed)
    assert list(Texts(tmp_path / name, "body")) == DOCUMENTS
    message = refused(tmp_path / name)
    assert '"text"' in message and "id, body" in message and "text_field" in message


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"body": "x"}',
        '["text"]',
        '"text"',
        '{"text": 5}',
        '{"text": null}',
        "[" * 9999,
        "9" * 9999,
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "good"}) + "\n" + line + "\n")
    stream = read_texts(tmp_path / "x.jsonl")
    assert next(stream) == "good"
    what = 'expected a JSON object with a field "text" '
    with pytest.raises(
        InputError, match=f'^text: .*x.jsonl line 2(: {what}|, field "text": expected a string)'
    ):
        next(stream)


@pytest.mark.parametrize(
    "name,data,message",
    [
        ("a.json", '[{"text": "a"}, {"text": "b"', "expected JSON"),
        ("a.json", '[{"text": "a"}] [', "got '[' after its end"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "after an element"),
        ("a.json", '[{"text": "a"}, {"body": "b"}]', 'element 2: expected a JSON object with a field "text"'),
        ("a.json", '[{"text": "a"}, 12', "element 2: expected a JSON object with a field"),
        ("a.json", "[" * 99_999, "nested too deeply"),
        ("a.json", '{"a": [], "b": []}', 'element 1: expected a JSON object with a field "text"'),
        ("a.json", '["half of \\ud83d"]', "half a surrogate pair, 0xd83d at character 8"),
        ("a.jsonl", '{"text": "\\udc00"}', "half a surrogate pair, 0xdc00 at character 0"),
        ("a.csv", "id,text\n1,a\n2\n", "line 3: expected 2 columns, as in its first line, got 1"),
        ("a.csv", "id,text\n1,a,b\n", "line 2: expected 2 columns, as in its first line, got 3"),
        ("a.csv", 'id,text\n1,"a\n2,b\n', "damaged CSV"),
        ("a.csv", "text,text\na,b\n", 'expected one column "text"'),
        ("a.csv", "id,text\n", "expected some text"),
    ],
)
def test_damaged_json_and_csv_are_named_with_their_place(tmp_path, name, data, message):
    (tmp_path / name).write_text(data)
    assert message in refused(tmp_path / name)


@pytest.mark.parametrize(
    "column,message",
    [
        (pa.array([1] * 6), 'expected strings in the column "text" (text_field), got int64'),
        (pa.array([b"a"] * 6), "got binary"),
        (pa.array([["a"]] * 6), "got list"),
        (pa.array(["a", None, "b", "c", "d", "e"]), "row 1: expected a string, got null"),
    ],
)
def test_a_column_that_holds_no_strings_is_refused(tmp_path, column, message):
    pa.parquet.write_table(table(text=column), tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(arrow_stream(table(text=column)))
    assert message in refused(tmp_path / "a.parquet") and message in refused(tmp_path / "a.arrow")


@pytest.mark.parametrize("name", [*(f"a.csv{end}" for end in (".gz", ".bz2", ".xz", ".zst")), *TABLES])
def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path, name):
    whole = CONTAINERS[name]
    for cut in (len(whole) - 1, len(whole) * 2 // 3, len(whole) // 2, 50):
        (tmp_path / name).write_bytes(whole[:cut])
        assert f"{name}: damaged" in refused(tmp_path / name)
    if name not in TABLES:
        (tmp_path / name).write_bytes(whole + whole)  # two streams, one after another
        assert "id" not in list(Texts(tmp_path / name))[:5]
        (tmp_path / name).write_bytes(whole + b"garbage after the end")
        assert f"{name}: damaged" in refused(tmp_path / name)


def test_an_arrow_stream_that_ends_between_two_batches_is_damaged(tmp_path):
    whole = arrow_stream(table())
    end = whole.rindex(b"\xff\xff\xff\xff\0\0\0\0")
    for data in (whole[:end], whole + whole):
        (tmp_path / "a.arrow").write_bytes(data)
        assert "damaged arrow stream (it does not end where the stream ends)" in refused(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    "package,name,kind",
    [("pyarrow", "a.parquet", "a table"), ("zstandard", "a.csv.zst", "compressed with zstd")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, name, kind):
    (tmp_path / name).write_bytes(CONTAINERS[name])
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(tmp_path / name)
    assert kind in message and "`pip install saefast[text]`" in message


def test_missing_and_empty_texts_and_pipes_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("empty.txt", "empty.jsonl", "empty.json", "empty.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "blanks.json").write_text('["", " ", "\\n"]')
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("none.txt", "expected a file, a folder or a .jsonl with a text field, found nothing at "),
        ("folder", "expected *.txt, *.md, *.py, *.jsonl or others of docs/usage.md in "),
        ("pipe", "expected a file, "),
        *((name, "expected some text, ") for name in ("empty.txt", "empty.jsonl", "empty.json", "empty.csv")),
        *((name, "expected some text, ") for name in ("blank.txt", "blanks.json")),
    ):
        assert refused(tmp_path / name).startswith(f"text: {message}")


def damaged(data, random):
    data = bytearray(data)
    way, place = random.randrange(4), random.randrange(len(data))
    if way == 0:
        return bytes(data[:place])
    if way == 1:
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == 2:
        data[place:place] = random.randbytes(random.randrange(1, 40))
    else:
        del data[place : place + random.randrange(1, 40)]
    return bytes(data)


FUZZED = ["a.jsonl", "objects.json", "a.csv", "a.jsonl.gz", "a.csv.xz", "a.csv.bz2", "a.jsonl.zst", *TABLES]


@pytest.mark.parametrize("name", FUZZED)
def test_a_damaged_file_gives_documents_or_one_line(tmp_path, name):
    chance, refusals = random.Random(name), 0
    for _ in range(30):
        (tmp_path / name).write_bytes(damaged(CONTAINERS[name], chance))
        try:
            got = list(Texts(tmp_path / name))
            is_checked = name.endswith((".gz", ".xz", ".bz2", ".zst"))
            assert got == DOCUMENTS if is_checked else all(isinstance(text, str) for text in got)
        except InputError as error:
            refusals += 1
            assert str(error).startswith("text: ") and "\n" not in str(error) and len(str(error)) < 500
    assert refusals > 5
