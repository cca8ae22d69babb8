"""A smoke of `python -m tests.faults.boundary --sanitize`: no fault in the extension, and one that is put in is seen."""

import shutil

import pytest

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")

from tests.faults.boundary import ROOT, build, fuzz


@pytest.mark.slow
@pytest.mark.timeout(900)  # the build takes most of it
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_fuzzed_calls_have_no_fault_and_an_off_by_one_has(tmp_path):
    found = fuzz(20_000, seed=21, budget=30, extension=build())
    assert found["calls"] > 3_000 and not found["faults"], found["faults"]
    kinds = {name.rsplit(" ", 1)[1] for name in found["counts"]}
    assert kinds == {"right", "taken", "refused"}

    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    group = tmp_path / "csrc/cpu/group.cpp"
    right = "std::fill(pairs + place, pairs + N, 0)"
    text = group.read_text()
    assert text.count(right) == 1
    group.write_text(text.replace(right, right.replace("N", "N + 1")))
    faults = fuzz(20_000, seed=21, budget=30, extension=build(tmp_path / "csrc"), most=1)["faults"]
    assert "heap-buffer-overflow" in faults[0]["report"], faults
