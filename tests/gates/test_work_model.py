"""The update's work stays even on latents as uneven as those of a language model, and chunks that are too long are noticed."""

import numpy as np
import pytest

pytest.importorskip("triton")
from benchmarks.shapes import SHAPES
from tests.gates import work_model
from tests.gates.work_model import counts_of, over_bounds, work


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "E"])
def test_the_curve_of_another_shape_has_its_entries_and_keeps_its_head(name: str) -> None:
    shape = SHAPES[name]
    counts = counts_of(shape)
    assert len(counts) == shape.F and counts.max() == work_model.measured()[0] * 8192
    assert (
        abs(counts.sum() / (shape.B * shape.K) - 1) < 0.05
    )  # rounding: most latents are active once or never
    assert np.median(counts) < counts.mean()


def test_work_is_counted_by_program_and_by_chain() -> None:
    even = np.full(64, 10)
    assert work(even, programs=8, chunk=16) == (1.0, 10 / 80)
    counts = even.copy()
    counts[3] = 810  # 13 chunks of 64
    longest, chain = work(counts, programs=8, chunk=64)
    assert longest == (8 * 18 + 3) / (8 * 18 + 3 / 8)
    assert chain == 64 / ((63 * 10 + 810) / 8)
    assert work(counts, programs=8, chunk=4096)[0] > 2


@pytest.mark.parametrize("name", ["A", "D"])
def test_chunks_that_are_too_long_are_noticed(name: str) -> None:
    """Planted: a latent of up to 4096 tokens stays with one program, and 256 are one chain in A."""
    counts = counts_of(SHAPES[name])
    right = {name: work(counts, programs=1056, chunk=64)}
    assert over_bounds(right) == []
    assert len(over_bounds({name: work(counts, programs=1056, chunk=4096)})) == 2
    assert len(over_bounds({"A": work(counts_of(SHAPES["A"]), programs=1056, chunk=256)})) == 2
