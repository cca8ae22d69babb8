"""The README says what is there. Its commands are run by .ci/run."""

import re
from pathlib import Path

import pytest
import report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_figures_are_those_of_the_results(page):
    assert page.read_text() == report.filled(page, report.pages()[page])


def test_the_tree_lists_every_module():
    tree = README.split("## What is where")[1]
    for path in (ROOT / "saefast").glob("*.py"):
        if path.stem != "__init__":
            assert re.search(rf"\b{path.name}\b", tree), path.name
    for folder in ("architectures", "formats", "adapters"):
        assert f"  {folder}/" in tree


def test_files_that_are_named_exist():
    for name in re.findall(
        r"`((?:benchmarks|docs|saefast|tests|csrc|examples)/[\w./]*)`|\]\(([\w./]+)\)", README
    ):
        assert (ROOT / (name[0] or name[1])).exists(), name
    make = (ROOT / "Makefile").read_text()
    for word in re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE):
        assert f"\n{word[0] or word[1]}:" in make, word
