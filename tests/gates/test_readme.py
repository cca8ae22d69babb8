"""The README says what is there. Its commands are run by .ci/run."""

import re
from pathlib import Path

import pytest

from benchmarks.report import __main__ as report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_figures_are_those_of_the_results(page):
    assert page.read_text() == report.filled(page, report.pages()[page])


def test_the_tree_lists_every_room():
    tree = README.split("## What is where")[1]
    for path in (ROOT / "saefast").iterdir():
        name = path.name if path.suffix == ".py" else f"{path.name}/"
        if not name.startswith("__"):
            assert re.search(rf"\b{name}", tree), name


def test_files_that_are_named_exist():
    for name in re.findall(
        r"`((?:benchmarks|docs|saefast|tests|csrc|examples)/[\w./]*)`|\]\(([\w./]+)\)", README
    ):
        assert (ROOT / (name[0] or name[1])).exists(), name
    make = (ROOT / "Makefile").read_text()
    for word in re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE):
        assert f"\n{word[0] or word[1]}:" in make, word
