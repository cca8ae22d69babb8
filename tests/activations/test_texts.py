"""Text that is not plain text: every container gives the documents of its plain original."""

import json

import pytest

from saefast import InputError
from saefast.activations.texts import Texts, read_texts
from tests.helpers.text_files import CONTAINERS, DOCUMENTS, TABLES, arrow_stream, compressed, refused, table


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_documents_of_its_plain_original(tmp_path, name):
    (tmp_path / name).write_bytes(CONTAINERS[name])
    texts = Texts(tmp_path / name)
    assert list(texts) == list(texts) == DOCUMENTS
    assert list(Texts(tmp_path)) == DOCUMENTS  # as the only file of a folder


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl.gz", "a.csv.zst"])
def test_a_wrong_suffix_does_not_matter_where_the_first_bytes_say_what_it_is(tmp_path, name):
    inner = "b.jsonl" if "jsonl" in name else "b.csv" if "csv" in name else "b.txt"
    (tmp_path / inner).write_bytes(CONTAINERS[name])
    assert list(Texts(tmp_path / inner)) == DOCUMENTS


@pytest.mark.parametrize("word", ["MZ", "ID3", "ORC", "GIF8", "RIFF", 'été  = {"a": 1}', "xxxxftyp"])
def test_a_text_that_begins_like_something_else_is_text(tmp_path, word):
    (tmp_path / "a.txt").write_text(word + " and so on")
    assert list(Texts(tmp_path / "a.txt")) == [word + " and so on"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_plain_text_in_every_encoding_with_a_mark(tmp_path, encoding, ending):
    text = "é 😀\r\nline\rline\n" + "中文 " * 400_000  # several chunks, cut inside of characters
    (tmp_path / f"a.txt{ending}").write_bytes(compressed(text.encode(encoding), ending))
    want = text.replace("\r\n", "\n").replace("\r", "\n")
    assert list(Texts(tmp_path / f"a.txt{ending}")) == [want]
    if ending != ".zst":  # 1 KiB of it holds all of this text
        assert max(len(piece) for piece, _ in Texts(tmp_path / f"a.txt{ending}").pieces()) <= 1 << 20


def test_texts_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in (
        ("b.txt", "text b"),
        ("a.md", "text a\n"),
        ("sub/c.py", "text c"),
        ("sub/empty.py", ""),
        ("d.jsonl", '{"text": "one", "id": 3}\n{"text": ""}\n{"text": "two\\nlines"}\n'),
        (".git/hidden.txt", "hidden"),
        ("ignored.bin", "\0"),
        ("dataset_info.json", "{}"),
    ):
        (tmp_path / name).write_text(text)
    assert list(read_texts(tmp_path / "b.txt")) == ["text b"]
    texts = Texts(str(tmp_path))
    assert list(texts) == list(texts) == ["text a\n", "text b", "one", "two\nlines", "text c"]


def save_to_disk(folder, parts):
    """As datasets 5.2 does it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(arrow_stream(part))
    (folder / "dataset_info.json").write_text('{"citation": "", "features": {}}')
    (folder / "cache-0123.arrow").write_bytes(arrow_stream(table()))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_dataset_that_hugging_face_has_saved_is_read_in_its_order(tmp_path):
    parts = [table()[4:], table()[:1], table()[1:4]]
    save_to_disk(tmp_path / "one", parts)
    assert list(Texts(tmp_path / "one")) == [*DOCUMENTS[4:], *DOCUMENTS[:4]]
    for split in ("train", "test"):
        save_to_disk(tmp_path / "dict" / split, parts)
    splits = tmp_path / "dict" / "dataset_dict.json"
    splits.write_text('{"splits": ["train", "test"]}')
    assert (
        f"holds 2 splits, expected one: give the folder of one of them: {tmp_path}/dict/train, "
        in refused(tmp_path / "dict")
    )
    splits.write_text('{"splits": ["train"]}')
    assert list(Texts(tmp_path / "dict")) == list(Texts(tmp_path / "one"))
    for state in ("[]", "{", '{"_data_files": [5]}', '{"_data_files": [{"filename": "../x"}]}'):
        (tmp_path / "one" / "state.json").write_text(state)
        with pytest.raises(InputError, match="state.json"):
            list(Texts(tmp_path / "one"))
