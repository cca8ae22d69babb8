"""README.md and docs/ say what is there; `test_pointers.py` looks up what they name. .ci/run runs the commands of README.md and
docs/usage.md."""

import re
from pathlib import Path

import pytest

from benchmarks.report import __main__ as report

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_figures_are_those_of_the_results(page):
    assert page.read_text() == report.filled(page, report.pages()[page])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 110


def test_the_tree_lists_every_room():
    tree = (DOCS / "layout.md").read_text()
    for path in (*(ROOT / "saefast").iterdir(), *DOCS.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if name != "layout.md" and path.suffix in {"", ".py", ".md"} and not name.startswith("__"):
            assert re.search(rf"\b{name}", tree), name


def test_every_page_can_be_reached_from_the_readme():
    for page in DOCS.rglob("*.md"):
        assert f"](docs/{page.relative_to(DOCS)}" in README, page


def test_the_words_of_make_exist():
    make = (ROOT / "Makefile").read_text()
    pages = "\n".join(
        page.read_text() for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"))
    )
    for word in set(re.findall(r"(?:`|^)make ([\w-]+)", pages, re.MULTILINE)):
        assert f"\n{word}:" in make, word
