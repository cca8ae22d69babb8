"""Which windows are drawn, against a walk over all tokens."""

import numpy as np
import pytest
import torch

from saefast.errors import InputError
from saefast.interp.explain.examples import (
    GROUPS,
    Tiles,
    by_quantile,
    check_apart,
    inactive,
    joined,
    top_and_random,
)
from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards

SEPARATOR, LENGTH, N = 0, 8, 6
GROUP = {name: i for i, name in enumerate(GROUPS)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Documents of 3 to 40 tokens, of which the first of each context has no row; unit i is active on token i + 1, and unit 5 never."""
    rng = np.random.default_rng(1)
    contexts = rng.integers(1, N + 1, (120, 32)).astype(np.int32)
    contexts[rng.random(contexts.shape) < 0.06] = SEPARATOR
    x = np.zeros((*contexts.shape, N), np.float32)
    for unit in range(N - 1):
        x[..., unit] = (contexts == unit + 1) * rng.uniform(0.5, 3, contexts.shape)
    folder = tmp_path_factory.mktemp("tiles")
    rows = torch.from_numpy(x.reshape(-1, N))
    source = shards(folder / "shards", rows, torch.from_numpy(contexts), left_out=1)
    return record(neurons(N), source, folder / "records", CONFIG, separators=[SEPARATOR])


def walked(records, split, length):
    """First slots of tiles: from the beginning of each stretch with rows of one document in one context."""
    text, found = records.text, []
    splits = text.splits(text.documents(np.arange(text.n_slots)), records.config)
    documents = text.documents(np.arange(text.n_slots))
    encoded, wanted = text.encoded.reshape(-1), ("explain", "score").index(split)
    run, begin = 0, 0
    for slot in range(text.n_slots):
        ok = encoded[slot] and splits[slot] == wanted
        goes_on = slot % text.length and ok and run and documents[slot] == documents[slot - 1]
        if not goes_on:
            run, begin = 0, slot
        run = run + 1 if ok else 0
        if run == length:
            found.append(begin)
            run, begin = 0, slot + 1
    return found


@pytest.mark.parametrize("split", ["explain", "score"])
@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_tiles_are_those_of_a_walk(records, split, length):
    assert Tiles(records, split, length).first.tolist() == walked(records, split, length)


def test_the_splits_share_no_document(records):
    text = records.text
    of = [set(text.documents(Tiles(records, split, LENGTH).first).tolist()) for split in ("explain", "score")]
    assert of[0] and of[1] and not of[0] & of[1]


def dense(records, unit):
    slots, acts = records.entries(unit)
    found = np.zeros(records.text.n_slots)
    found[slots] = acts
    return found


@pytest.mark.parametrize("unit", range(N))
def test_top_windows_have_the_largest_activations(records, unit):
    tiles, of_unit = Tiles(records, "score", LENGTH), dense(records, unit)
    found = top_and_random(tiles, unit, 4, 3, seed=2)
    acts = of_unit[tiles.first[:, None] + np.arange(LENGTH)]
    assert np.array_equal(found.acts, of_unit[found.slots[:, None] + np.arange(LENGTH)])
    assert np.array_equal(
        found.tokens.ravel(),
        records.text.contexts.ravel()[(found.slots[:, None] + np.arange(LENGTH)).ravel()],
    )
    peaks = acts.max(axis=1)
    want = tiles.first[np.argsort(-peaks, kind="stable")[:4]] if peaks.any() else []
    assert found.of("top").slots.tolist() == list(want)
    assert len(found.of("random")) == 3 and len(np.unique(found.slots)) == len(found)
    assert found.largest == peaks.max()
    assert found.active.tolist() == (found.acts > 0).any(axis=1).tolist()


def test_random_windows_are_all_of_them_when_so_many_are_asked_for(records):
    tiles = Tiles(records, "score", LENGTH)
    for n in (len(tiles) - 4, len(tiles), len(tiles) + 5):
        found = top_and_random(tiles, 0, 4, n)
        assert sorted(found.slots.tolist()) == tiles.first.tolist()


def test_every_window_is_as_probable_as_any_other(records):
    tiles = Tiles(records, "score", LENGTH)
    counts = np.zeros(len(tiles))
    for unit in range(3):
        for seed in range(200):
            counts[tiles.random(unit, 5, seed, np.zeros(0, np.int64))] += 1
    mean = 3000 / len(tiles)
    # a count has about the deviation of a Poisson number; 5 of them are not reached by chance
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_quantiles_have_equal_parts_the_weakest_first(records):
    tiles = Tiles(records, "score", LENGTH)
    active, peaks = tiles.peaks(0)
    found = by_quantile(tiles, 0, 10, 5)
    assert np.bincount(found.part).tolist() == [2] * 5 and found.active.all()
    order = active[np.argsort(peaks, kind="stable")]
    for part in range(5):
        group = order[part * len(order) // 5 : (part + 1) * len(order) // 5]
        assert set(found.slots[found.part == part]) <= set(tiles.first[group])


def test_inactive_windows_prefer_those_of_units_that_are_like_it(records):
    tiles = Tiles(records, "score", LENGTH)
    of_unit, other = dense(records, 0), dense(records, 1)
    found = inactive(tiles, 0, 12, near=[1])
    where = found.slots[:, None] + np.arange(LENGTH)
    assert not of_unit[where].any() and not found.active.any()
    near = (other[where] > 0).any(axis=1)
    assert near[found.group == GROUP["near"]].all() and (found.group == GROUP["near"]).any()
    without = inactive(tiles, 0, 12, without=found.slots)
    assert not np.isin(without.slots, found.slots).any()


def test_scoring_what_was_explained_is_refused(records):
    seen, scored = (top_and_random(Tiles(records, split, LENGTH), 0) for split in ("explain", "score"))
    check_apart(seen, scored)
    with pytest.raises(InputError, match="other documents for scoring"):
        check_apart(scored, scored)
    with pytest.raises(InputError, match="each window once"):
        joined(seen, seen)
    with pytest.raises(InputError, match="one unit and split"):
        joined(seen, scored)
    assert len(seen.take([])) == 0 == len(seen.of("near"))


def test_bad_lengths_and_splits(records):
    with pytest.raises(InputError, match="split: expected one of explain, score, got 'all'"):
        Tiles(records, "all", 8)
    with pytest.raises(InputError, match="length: expected 1 to 32 tokens, got 33"):
        Tiles(records, "score", 33)
    with pytest.raises(InputError, match="of at least 32 tokens with rows, got none"):
        Tiles(records, "score", 32)  # the first token of each context has no row
