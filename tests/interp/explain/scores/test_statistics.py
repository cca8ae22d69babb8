"""Intervals: by hand, by their coverage, and beside other ways to get them."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.contexts.auc import auc_of
from saefast.interp.explain.scores.classification import classification_score
from saefast.interp.explain.scores.statistics import interval, mean_interval, wilson


def mean(counts, x):
    return counts @ x / counts.sum(axis=1)


def test_two_items_by_hand():
    # of draws of two, a quarter are twice the first and a quarter twice the second
    assert mean_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    assert mean_interval(np.array([3.0])) == (3, 3, 3)
    assert mean_interval(np.full(9, 0.25)) == (0.25, 0.25, 0.25)


def test_the_value_is_that_of_the_items_as_they_are_in_any_order():
    x = np.random.default_rng(0).normal(size=30)
    groups = np.arange(30) % 3
    found = interval(lambda counts, x, groups: mean(counts, x * groups), (x, groups), groups=groups)
    assert found.value == pytest.approx((x * groups).mean()) and found.low < found.value < found.high


def test_draws_are_of_as_many_items_within_each_group():
    groups = np.array([1, 0, 1, 1, 0, 2])
    seen = []

    def statistic(counts, of):
        seen.append((counts, of))
        return counts.sum(axis=1)

    interval(statistic, (groups,), groups=groups, n=200)
    counts, of = seen[1]
    assert counts.shape == (200, 6) and set(np.unique(counts)) >= {0, 1, 2, 3}
    for group, size in enumerate([2, 3, 1]):
        assert (counts[:, of == group].sum(axis=1) == size).all()
    seen.clear()
    interval(statistic, (groups,), n=200)
    counts, of = seen[1]
    assert (counts.sum(axis=1) == 6).all() and len(np.unique(counts[:, of == 2])) > 2
    assert np.allclose(counts.mean(axis=0), 1, atol=0.25)


def test_the_same_for_the_same_seed_and_another_for_another():
    x = np.random.default_rng(0).normal(size=50)
    assert mean_interval(x, 1) == mean_interval(x, 1) != mean_interval(x, 2)


def test_of_many_samples_95_percent_cover_the_truth():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(2, 1, 40), seed) for seed in range(300)]
    assert 0.9 < np.mean([one.low <= 2 <= one.high for one in found]) < 0.98


def test_many_items_are_drawn_in_parts():
    x = np.random.default_rng(0).normal(size=6000)
    found, half = mean_interval(x), 1.96 * x.std() / np.sqrt(len(x))
    assert found.low == pytest.approx(x.mean() - half, abs=half / 8)
    assert found.high == pytest.approx(x.mean() + half, abs=half / 8)


def test_the_interval_of_an_auc_is_that_of_delong():
    rng = np.random.default_rng(0)
    labels = np.arange(100) < 50
    p = 1 / (1 + np.exp(-rng.normal(labels * 1.2, 1).round(1)))  # with ties
    found, other = classification_score(labels, p).auc, auc_of(p, labels, np.arange(100))
    assert found.value == pytest.approx(other.value)
    assert found.low == pytest.approx(other.low, abs=0.02)
    assert found.high == pytest.approx(other.high, abs=0.02)
    assert found.high - found.low == pytest.approx(other.high - other.low, rel=0.1)


def test_wilson():
    # Wilson 1927: (k + z^2 / 2 +- z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2)
    assert wilson(10, 14) == pytest.approx((10 / 14, 0.4535, 0.8828), abs=1e-4)
    assert wilson(0, 5)[:2] == (0, 0) and wilson(5, 5)[2] == 1
    assert wilson(0, 0) == (0.5, 0, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval(np.zeros(0)),
        lambda: interval(mean, (np.zeros(3),), groups=np.zeros(2)),
        lambda: interval(mean, (np.zeros(3),), n=0),
        lambda: wilson(3, 2),
        lambda: wilson(1, 0),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()
