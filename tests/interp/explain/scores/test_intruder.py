"""Trials with an intruder."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.intruder import intruder_score, intruder_trials
from tests.helpers.scored_units import DENSE, NEVER, RARE, records_of


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def tiles(records):
    return Tiles(records, "score", 32)


def test_trials(tiles):
    trials = intruder_trials(tiles, 3)
    assert len(trials) == 50 and [trial.part for trial in trials] == list(range(10)) * 5
    for trial in trials:
        assert trial.tokens.shape == trial.marked.shape == (5, 32)
        ours = np.isin(trial.tokens, [7, 8])
        others = np.arange(5) != trial.intruder
        assert not ours[trial.intruder].any() and (trial.marked[others] <= ours[others]).all()
        counts = trial.marked.sum(axis=1)
        assert counts[trial.intruder] == max(1, int(ours[others].sum(axis=1).mean()))
        assert (counts[others] >= 1).all() and len(np.unique(trial.tokens, axis=0)) == 5
    intruders = [trial.tokens[trial.intruder].tolist() for trial in trials]
    assert len(np.unique(intruders, axis=0)) == 50
    assert set(np.bincount([trial.intruder for trial in trials], minlength=5)) <= set(range(3, 20))


def test_windows_of_a_trial_are_of_one_quantile(tiles):
    strongest = tiles.peaks(3)[1]
    for trial in intruder_trials(tiles, 3, n=20):
        examples = [row for i, row in enumerate(trial.tokens) if i != trial.intruder]
        peaks = []
        for row in examples:
            tile = next(
                t
                for t in tiles.peaks(3)[0]
                if (tiles.records.text.contexts.ravel()[tiles.first[t] :][:32] == row).all()
            )
            peaks.append(strongest[np.searchsorted(tiles.peaks(3)[0], tile)])
        quantiles = [np.mean(strongest < peak) for peak in peaks]
        assert max(quantiles) - min(quantiles) <= 0.11 and abs(min(quantiles) - trial.part / 10) < 0.11


def test_the_same_for_the_same_seed(tiles):
    def key(seed):
        return [
            (trial.intruder, trial.tokens.tolist(), trial.marked.tolist())
            for trial in intruder_trials(tiles, 3, 5, seed=seed)
        ]

    assert key(0) == key(0) != key(1)


@pytest.mark.parametrize(
    "latent, k, n", [(RARE, 5, 50), (RARE, 6, 50), (RARE, 7, 0), (NEVER, 5, 0), (DENSE, 5, 0)]
)
def test_units_that_are_always_seldom_or_never_active(tiles, latent, k, n):
    trials = intruder_trials(tiles, latent, k=k)
    assert len(trials) == n and all(len(trial.tokens) == k and trial.part == 0 for trial in trials)


def test_scores(tiles):
    trials = intruder_trials(tiles, 3)
    right = np.array([trial.intruder for trial in trials])
    found = intruder_score(trials, right)
    assert (found.share.value, found.chance, found.n) == (1, 0.2, 50) and 0.92 < found.share.low < 1
    assert intruder_score(trials, np.where(np.arange(50) < 40, right, -1)).share.value == 0.8
    assert intruder_score(trials[:5], (right[:5] + 1) % 5).share.value == 0
    assert intruder_score([], []).share == (0.5, 0, 1)


def test_bad_input(tiles, records):
    with pytest.raises(InputError):
        intruder_trials(tiles, 3, k=1)
    with pytest.raises(InputError):
        intruder_score(intruder_trials(tiles, 3, n=3), [0])
    with pytest.raises(InputError, match="score"):
        intruder_trials(Tiles(records, "explain", 32), 3)
