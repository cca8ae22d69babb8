"""The two files of text: from packages (small ones, made here) and from the user's own documents."""

import json
import random
import string
import sys
from functools import partial

import pytest

from saefast import InputError
from saefast.study.downloads import Package
from saefast.study.text import pool, prepare, sources
from saefast.study.text.archives import read
from saefast.study.text.overlap import PASSAGE
from tests.helpers.archives import wheel

prepare_module = sys.modules["saefast.study.text.prepare"]  # the package has a function of that name
KINDS = ("code", "dna", "legal", "prose")


def words(count: int, seed: object) -> str:
    rng = random.Random(str(seed))
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A package with 60 texts of each of four kinds; every third one of "legal" has a paragraph in common with others."""
    clause = words(50, "clause")
    members = {}
    for kind in KINDS:
        for i in range(60):
            extra = clause if kind == "legal" and i % 3 == 0 else ""
            members[f"{kind}/{i:02}.txt"] = words(60 + i, f"{kind} {i}") + "\n" + extra
    (tmp_path / "archives").mkdir()
    archive = wheel(tmp_path / "archives", members)
    package = Package("pypi", "pack", "1", "", "free")
    absent = Package("debian", "gone", "", "", "free")
    found = [sources.Source(kind, "pack", partial(read, pattern=f"{kind}/*.txt")) for kind in KINDS]
    monkeypatch.setattr(pool, "SOURCES", (*found, sources.Source("arabic", "gone", read)))
    monkeypatch.setattr(pool, "STDLIB", None)
    monkeypatch.setattr(pool, "fetch", lambda packages, cache, log: {"pack": archive})
    monkeypatch.setattr(pool, "SCALES", pool.SCALES)
    monkeypatch.setitem(pool.SCALES, "ci", pool.Scale((package, absent), 60_000, 50_000))
    monkeypatch.setattr(sources, "MOST", 0.5)
    monkeypatch.setattr(sources, "RARE", (0.02, 0.4))


def rows(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def passages(texts):
    found = set()
    for text in texts:
        signs = "".join(text.lower().split())
        found |= {signs[i : i + PASSAGE] for i in range(len(signs) - PASSAGE + 1)}
    return found


def test_no_held_out_document_shares_a_passage_with_the_others_and_every_kind_is_there(packages, tmp_path):
    folder = prepare(tmp_path / "text", "ci")
    train, heldout = rows(folder / "train.jsonl"), rows(folder / "heldout.jsonl")
    assert {row["kind"] for row in train} == {row["kind"] for row in heldout} == set(KINDS)
    assert not passages(row["text"] for row in train) & passages(row["text"] for row in heldout)
    assert all(row.keys() == {"text", "kind", "source"} and row["source"] == "pack.whl" for row in train)
    bytes_of = {
        name: sum(len(row["text"].encode()) for row in part) for name, part in (("t", train), ("h", heldout))
    }
    assert bytes_of["t"] == pytest.approx(60_000, rel=0.1) and bytes_of["h"] == pytest.approx(6_700, rel=0.2)


def test_any_beginning_of_a_file_is_a_balanced_mix(packages, tmp_path):
    folder = prepare(tmp_path / "text", "ci")
    train = rows(folder / "train.jsonl")
    whole = {kind: sum(len(row["text"]) for row in train if row["kind"] == kind) for kind in KINDS}
    for end in range(20, len(train), 20):
        for kind in KINDS:
            given = sum(len(row["text"]) for row in train[:end] if row["kind"] == kind)
            expected = whole[kind] * end / len(train)
            assert given == pytest.approx(expected, rel=0.35, abs=1_500)


def test_the_report_says_what_is_there_and_what_is_not(packages, tmp_path, capsys):
    folder = prepare(tmp_path / "text", "ci")
    report = json.loads((folder / "corpus.json").read_text("utf-8"))
    train = [row for row in rows(folder / "train.jsonl") if row["kind"] == "dna"]
    size = sum(len(row["text"]) for row in train)
    assert report["kinds"]["dna"]["train"]["documents"] == len(train)
    assert report["kinds"]["dna"]["train"]["bytes"] == size
    assert report["kinds"]["dna"]["sources"][0]["licence"] == "free"
    assert report["skipped"] == ["gone"] and "arabic" in report["absent"] and "dna" not in report["absent"]
    assert "there is no text of the kind arabic" in capsys.readouterr().out


def test_the_same_arguments_give_the_same_files_and_use_what_is_there(packages, tmp_path, monkeypatch):
    first, second = prepare(tmp_path / "a", "ci"), prepare(tmp_path / "b", "ci")
    assert sorted(path.name for path in first.iterdir()) == ["corpus.json", "heldout.jsonl", "train.jsonl"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert (prepare(tmp_path / "c", "ci", seed=1) / "train.jsonl").read_bytes() != (
        first / "train.jsonl"
    ).read_bytes()
    monkeypatch.setattr(pool, "fetch", None)
    assert prepare(tmp_path / "a", "ci") == first  # nothing is read again
    with pytest.raises(InputError, match="holds the text of another call, with seed 0"):
        prepare(tmp_path / "a", "ci", seed=1)


def test_a_context_with_little_text_is_said(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module, "RARE", (0.3, 0.4))
    report = json.loads((prepare(tmp_path / "text", "ci") / "corpus.json").read_text("utf-8"))
    share = report["kinds"]["dna"]["train"]["share"]
    assert report["scarce"] == ["dna", "legal"] and share < 0.3
    assert f"only {share:.2%} of the text is of the kind dna" in capsys.readouterr().out


def test_too_little_text_is_said_with_what_is_missing(packages, tmp_path):
    with pytest.raises(
        InputError, match=r"needs 0\.8 MB of text to train on, got 0\.\d MB; not to be had: gone"
    ):
        prepare(tmp_path / "text", "ci", size=1e6)
    assert not (tmp_path / "text").exists()


def test_an_interrupted_build_leaves_nothing_and_is_done_anew(packages, tmp_path, monkeypatch):
    folder = tmp_path / "text"
    with monkeypatch.context() as broken:
        broken.setattr(json, "dumps", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(folder, "ci")
    assert list(folder.iterdir()) == []
    (prepare(folder, "ci") / "train.jsonl").unlink()  # as if it had been killed between two files
    assert len(rows(prepare(folder, "ci") / "train.jsonl")) > 50


def test_the_largest_scale_is_bound_by_the_rarest_context(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(pool.SCALES, "gpu", pool.SCALES["ci"]._replace(size=None, least=0))
    monkeypatch.setattr(sources, "RARE", (0.25, 0.3))
    folder = prepare(tmp_path / "text", "gpu")
    found = json.loads((folder / "corpus.json").read_text("utf-8"))["kinds"]
    share = {kind: found[kind]["train"]["share"] for kind in KINDS}
    assert min(share["dna"], share["legal"]) > 0.23 and max(share["dna"], share["legal"]) < 0.32


def test_own_documents_are_taken_as_they_are_with_their_kinds(tmp_path):
    mine = [{"text": words(40, i), "kind": f"k{i % 2}"} for i in range(300)] + [
        {"text": " "},
        {"text": "short"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in mine) + "\n\n")
    folder = prepare(tmp_path / "text", "ci", text=tmp_path / "mine.jsonl", size=60_000)
    train, heldout = rows(folder / "train.jsonl"), rows(folder / "heldout.jsonl")
    assert {row["kind"] for row in train + heldout} <= {"k0", "k1", "text"}
    texts = {row["text"] for row in mine}
    assert all(row["text"] in texts for row in train + heldout) and len(heldout) > 20
    plain = tmp_path / "plain"
    plain.mkdir()
    for i in range(40):
        (plain / f"{i}.txt").write_text(words(300, i))
    rows_of_plain = rows(prepare(tmp_path / "other", "ci", text=plain, size=50_000) / "train.jsonl")
    assert {(row["kind"], row["source"]) for row in rows_of_plain} == {("text", "plain")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', r'mine.jsonl line 2: expected an object with a "text", got \{'),
        ("{", "line 2: expected JSON"),
        ('{"text": "a", "kind": 1}', "line 2: kind: expected a string, got 1"),
    ],
)
def test_own_documents_that_are_damaged(tmp_path, line, message):
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "text", "ci", text=tmp_path / "mine.jsonl")


def test_a_scale_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"scale: expected one of \['ci', 'laptop', 'gpu'\], got 'huge'"):
        prepare(tmp_path, "huge")


def test_every_package_is_read_and_every_source_has_a_package_and_a_share():
    named = {package.name for package in pool.SCALES["gpu"].packages}
    assert {source.package for source in sources.SOURCES} - {""} == named
    assert {source.kind for source in sources.SOURCES} == sources.SHARES.keys()
    assert sum(sources.SHARES.values()) == pytest.approx(1)
    assert all(package.registry == "pypi" for package in pool.SCALES["ci"].packages)
    assert all(
        len(package.sha256) == 64 for package in pool.SCALES["gpu"].packages if package.registry != "debian"
    )
