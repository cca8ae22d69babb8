"""The numbers of a step have one list, from which the kernels' names are made."""

import re

from saefast.reference import Numbers
from tests.gates import generated


def test_the_files_are_as_they_are_made():
    assert generated.stale() == []


def test_a_number_that_is_added_or_moved_is_noticed(monkeypatch):
    monkeypatch.setattr(Numbers, "_fields", (*Numbers._fields[1:], Numbers._fields[0]))
    assert generated.stale() == ["numbers.py", "numbers.h"]


def test_no_kernel_reads_a_number_by_its_place():
    for path in (generated.ROOT / "triton_kernels").glob("*.py"):
        assert not re.search(r"numbers_ptr \+ \d", path.read_text()), path.name
