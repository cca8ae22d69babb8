"""Statistics and examples equal a brute force, by the specification and by the extension."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast.config.records import RecordsConfig
from saefast.interp.records import engine
from saefast.interp.records import select as specification
from saefast.interp.records.select import STATISTICS
from saefast.interp.records.text import Text
from tests.interp.records import brute_force

SMALL = RecordsConfig(n_top=4, n_intervals=3, per_interval=2, n_quantiles=3, per_quantile=2, n_random=3, n_inactive=3, n_bins=5,
                      before=4, after=2, seed=3)  # fmt: skip
NONE = RecordsConfig(
    n_top=0, n_intervals=0, per_interval=0, n_quantiles=0, per_quantile=0, n_random=0, n_inactive=0, n_bins=1
)
ONLY = {
    name: {name: 0}
    for name in ("n_top", "per_interval", "n_intervals", "per_quantile", "n_quantiles", "n_random")
}


@pytest.fixture(params=["native", "numpy"])
def is_native(request, monkeypatch):
    monkeypatch.setattr(engine, "IS_NATIVE", request.param == "native")


@pytest.mark.parametrize(
    "sizes", [{}, {"m": 1}, {"m": 1, "length": 1, "encoded": 1.0}, {"m": 40, "length": 3}], ids=str
)
@pytest.mark.parametrize("separators", [[], [0, 1], [99]], ids=str)
def test_equals_brute_force(is_native, sizes, separators):
    dense, contexts, encoded = brute_force.case(len(separators), **sizes)
    length, n = contexts.shape[1], dense.shape[1]
    text = Text(contexts, encoded, separators)
    m = len(contexts)
    config = RecordsConfig() if m == 9 and not separators else SMALL
    blocks = brute_force.blocks_of(dense, length, [m // 3, m - m // 3] if m > 2 else [m])
    got = engine.select(blocks, 0, n, text, config)
    for latent in range(n):
        column = dense[:, latent]
        want = brute_force.examples(latent, column, contexts, encoded, separators, config)
        assert got.slots[latent].tolist() == want, latent
        assert got.acts[latent].tolist() == [column[slot] if slot >= 0 else 0 for slot in want]
        numbers = brute_force.statistics(column, encoded)
        for name, value in zip(STATISTICS, got.statistics[latent].tolist(), strict=True):
            want_value = numbers[name]
            if name in ("skewness", "kurtosis"):
                assert value == pytest.approx(want_value, rel=1e-9, abs=1e-9, nan_ok=True), (latent, name)
            else:
                assert value == pytest.approx(want_value, rel=1e-12, abs=1e-30), (latent, name)
        largest = float(column.max())
        bins = [0] * config.n_bins
        for act in column[column > 0]:
            bins[min(int(float(act) / largest * config.n_bins), config.n_bins - 1)] += 1
        assert got.histogram[latent].tolist() == bins


def test_windows_and_documents(is_native):
    _, contexts, encoded = brute_force.case(1)
    contexts[2, 3:6] = 1  # two documents without a token between their separators
    slots = np.arange(contexts.size)
    for separators in ([], [1], [0, 1]):
        text = Text(contexts, encoded, separators)
        document = 0
        documents = engine.documents(slots, text)
        for slot, (begin, end) in zip(
            slots.tolist(), engine.windows(slots, text, SMALL).tolist(), strict=True
        ):
            base = slot // 12 * 12
            assert list(range(base + begin, base + end)) == brute_force.window(
                slot, contexts, separators, SMALL
            )
            assert documents[slot] == document
            ends = contexts.flat[slot] in separators if separators else slot % 12 == 11
            document += int(ends)


def test_acts_of_windows(is_native):
    dense, _, _ = brute_force.case(2)
    blocks = brute_force.blocks_of(dense, 12, [4, 5])
    rng = np.random.default_rng(0)
    latents = rng.integers(0, dense.shape[1], 200)
    begin = rng.integers(0, 9, 200) * 12 + rng.integers(0, 6, 200)
    bounds = np.stack([begin, begin + rng.integers(0, 7, 200)], axis=1)
    offsets, at, acts = engine.window_acts(blocks, latents, bounds)
    assert (offsets.dtype, at.dtype, acts.dtype) == (np.int32, np.int16, np.float32)
    for i, (latent, (first, end)) in enumerate(zip(latents.tolist(), bounds.tolist(), strict=True)):
        column = dense[first:end, latent]
        part = slice(*offsets[i : i + 2].tolist())
        assert at[part].tolist() == column.nonzero()[0].tolist()
        assert acts[part].tolist() == column[column > 0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    m=st.integers(1, 12),
    length=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    sizes=st.lists(st.integers(0, 6), min_size=9, max_size=9),
    separators=st.sampled_from([[], [0], [0, 1, 2, 3]]),
)
def test_extension_equals_specification(seed, m, length, cuts, sizes, separators):
    dense, contexts, encoded = brute_force.case(seed, m=m, length=length)
    edges = sorted({0, *(cut for cut in cuts if cut < m), m})
    blocks = brute_force.blocks_of(dense, length, [b - a for a, b in pairwise(edges)])
    names = (
        "n_top",
        "n_intervals",
        "per_interval",
        "n_quantiles",
        "per_quantile",
        "n_random",
        "n_inactive",
        "before",
        "after",
    )
    config = RecordsConfig(**dict(zip(names, sizes, strict=True)), n_bins=4, seed=seed % 2**15)
    text = Text(contexts, encoded, separators)
    got = engine.select(blocks, 0, dense.shape[1], text, config)
    want = specification.select(blocks, 0, dense.shape[1], text, config)
    np.testing.assert_array_equal(got.slots, want.slots)
    np.testing.assert_array_equal(got.acts, want.acts)
    np.testing.assert_array_equal(got.histogram, want.histogram)
    np.testing.assert_allclose(got.statistics, want.statistics, rtol=1e-9, atol=1e-12)
    part = engine.select(blocks, 2, 5, text, config)
    np.testing.assert_array_equal(part.slots, want.slots[2:5])


@pytest.mark.parametrize("none", [*ONLY.values(), {"n_inactive": 0}], ids=str)
def test_a_group_may_be_left_out(is_native, none):
    dense, contexts, encoded = brute_force.case(4)
    config = RecordsConfig(**none)
    text, blocks = Text(contexts, encoded, [0]), brute_force.blocks_of(dense, 12, [9])
    got = engine.select(blocks, 0, 7, text, config)
    for latent in range(7):
        want = brute_force.examples(latent, dense[:, latent], contexts, encoded, [0], config)
        assert got.slots[latent].tolist() == want
    assert engine.select(blocks, 0, 7, text, NONE).slots.shape == (7, 0)


@pytest.mark.parametrize(
    "name, value", [("slots", 108), ("slots", 0), ("acts", -1.0), ("acts", np.nan), ("acts", np.inf)]
)
def test_a_damaged_code_is_named(name, value):
    dense, contexts, encoded = brute_force.case(5)
    (block,) = brute_force.blocks_of(dense, 12, [9])
    array = getattr(block, name).copy()
    array[block.offsets[2] - 1] = value
    with pytest.raises(ValueError, match="of latent 1"):
        engine.select([block._replace(**{name: array})], 0, 7, Text(contexts, encoded, []), SMALL)
