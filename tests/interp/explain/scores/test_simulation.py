"""Scores of simulations, by hand."""

from functools import partial

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles, top_and_random
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scores.simulation import (
    _correlations,
    _sums,
    simulate_and_score,
    simulation,
    simulation_score,
)
from saefast.interp.trial.scores import pearson
from tests.helpers.scored_units import DENSE, NEVER, RARE, by_hand, constant, records_of, true_of

TRUE = np.array([[0.0, 0, 2], [4, 0, 7]])
PREDICTED = np.array([[1.0, 0, 1], [3, 1, np.nan]])
MASK = np.array([[1, 1, 1], [1, 1, 0]], bool)  # the last one is padding


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def tiles(records):
    return Tiles(records, "score", 64)


@pytest.fixture(scope="module")
def judge(records):
    return ProgramJudge(Tiles(records, "explain", 64))


def test_by_hand():
    found = simulation_score(TRUE, PREDICTED, MASK)
    # around the means of 1.2: products sum to 6.8, squares to 12.8 and 4.8
    assert found.ev_correlation_score == pytest.approx(6.8 / (12.8 * 4.8) ** 0.5)
    # ranks 2 2 4 5 2 and 3 1 3 5 3: products 6, squares 8 and 8
    assert found.spearman == pytest.approx(0.75)
    # errors -1 0 1 1 -1
    assert found.rsquared_score == pytest.approx(1 - 4 / 20)
    assert found.absolute_dev_explained_score == pytest.approx(1 - 4 / 6)
    assert (found.defined, found.n_windows, found.n_tokens) == (True, 2, 5)
    assert found.interval.value == found.ev_correlation_score


def test_windows_by_hand_whose_mean_is_not_the_score():
    found = simulation_score(TRUE, PREDICTED, MASK)
    assert found.windows.ev_correlation_score == pytest.approx([0.5, 1])
    assert found.windows.rsquared_score == pytest.approx([1 - 2 / 4, 1 - 2 / 16])
    assert found.windows.absolute_dev_explained_score == pytest.approx([0, 0.5])
    assert found.windows.ev_correlation_score.mean() != pytest.approx(found.ev_correlation_score, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e300])
def test_a_constant_prediction_earns_nothing(value):
    found = simulation_score(TRUE, np.full((2, 3), value))
    assert (found.ev_correlation_score, found.spearman, found.defined) == (0, 0, False)
    assert found.interval == (0, 0, 0) and not found.windows.ev_correlation_score.any()
    assert np.isfinite([found.rsquared_score, found.absolute_dev_explained_score]).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_unit_says_nothing_of_the_prediction(value):
    found = simulation_score(np.full((2, 3), value), TRUE)
    assert (found.ev_correlation_score, found.spearman, found.defined) == (0, 0, False)
    assert found.interval == (0, -1, 1)
    if value == 0:
        assert (found.rsquared_score, found.absolute_dev_explained_score) == (0, 0)


def test_a_prediction_of_0_has_no_squares_and_deviations_explained():
    found = simulation_score(TRUE, np.zeros((2, 3)))
    assert (found.rsquared_score, found.absolute_dev_explained_score) == (0, 0)


def test_scale_and_shift_do_not_count_and_the_sign_does():
    one, other, against = (
        simulation_score(TRUE, p, MASK) for p in (PREDICTED, 9 * PREDICTED - 4, -PREDICTED)
    )
    assert other.ev_correlation_score == pytest.approx(one.ev_correlation_score)
    assert np.allclose(other.interval, one.interval)
    assert against.ev_correlation_score == pytest.approx(-one.ev_correlation_score)


def test_draws_are_correlations_of_the_windows_that_were_drawn():
    rng = np.random.default_rng(0)
    true = rng.exponential(size=(6, 9)) * (rng.random((6, 9)) < 0.3) * 1e-5
    predicted, mask = 1e6 * true + rng.normal(size=(6, 9)) + 1e3, rng.random((6, 9)) < 0.8
    counts = rng.multinomial(6, np.full(6, 1 / 6), 50).astype(float)
    for found, count in zip(_correlations(counts, _sums(true, predicted, mask)), counts, strict=True):
        rows = np.repeat(np.arange(6), count.astype(int))
        x, y = (part[rows][mask[rows]] for part in (true, predicted))
        assert found == pytest.approx(pearson(x, y), abs=1e-9)


def test_draws_of_windows_without_any_activity_are_0():
    true = np.zeros((2, 4))
    true[0, 1] = 1
    found = simulation_score(true, true)
    assert found.interval == (1, 0, 1)


def test_of_chosen_groups_each_is_in_all_draws():
    true = np.zeros((2, 4))
    true[0, 1] = 1
    assert simulation_score(true, true, groups=np.array([0, 1])).interval == (1, 1, 1)


def test_without_draws_and_of_one_window_nothing_is_known():
    assert simulation_score(TRUE, TRUE, draws=0).interval == (1, -1, 1)
    assert simulation_score(TRUE[:1], TRUE[:1]).interval == (1, -1, 1)


def test_the_same_for_the_same_seed():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 5))
    call = partial(simulation_score, x, x + y)
    assert call(seed=1).interval == call(seed=1).interval != call(seed=2).interval


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30])
def test_very_small_and_very_large_activations(scale):
    found = simulation_score(TRUE * scale, PREDICTED * scale, MASK)
    assert found.ev_correlation_score == pytest.approx(6.8 / (12.8 * 4.8) ** 0.5)
    assert np.allclose(found.interval, simulation_score(TRUE, PREDICTED, MASK).interval)


@pytest.mark.parametrize(
    "true, predicted, mask",
    [
        (TRUE, PREDICTED, None),  # NaN
        (TRUE, TRUE + np.inf, None),
        (TRUE * np.nan, TRUE, None),
        (TRUE, TRUE[:1], None),
        (TRUE[0], TRUE[0], None),
        (TRUE, TRUE, MASK[:1]),
        (TRUE, TRUE, MASK.astype(int)),
        (TRUE, TRUE, np.zeros((2, 3), bool)),
        (np.zeros((0, 3)), np.zeros((0, 3)), None),
    ],
)
def test_bad_input(true, predicted, mask):
    with pytest.raises(InputError):
        simulation_score(true, predicted, mask)


def test_padding_of_windows_is_left_out(judge):
    tokens = [[1, 2, 3, -1], [3, 3, 3, 2]]
    examples = by_hand([[1, 2, 0, 0], [0, 0, 0, 1]], tokens)
    found = simulation(judge, true_of(0), examples)
    assert found.n_tokens == 7
    # predicted 1.5 where it is active: around 4 / 7, of squares 6 - 16 / 7, with 4 - 3 * 4 / 7 of the mean of 3 tokens of 7
    x, y = np.array([1, 2, 0, 0, 0, 0, 1.0]), np.array([1, 1, 0, 0, 0, 0, 1.0])
    assert found.ev_correlation_score == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_windows_that_explainers_see_are_refused(judge, records):
    examples = top_and_random(Tiles(records, "explain", 64), 0)
    with pytest.raises(InputError, match="score"):
        simulation(judge, true_of(0), examples)
    with pytest.raises(InputError, match="score"):
        simulate_and_score(judge, true_of(0), Tiles(records, "explain", 64), 0)


def test_variants_of_a_unit(judge, tiles):
    found = simulate_and_score(judge, true_of(3), tiles, 3)
    assert (found.top_and_random.n_windows, found.top_only.n_windows, found.random_only.n_windows) == (
        10,
        5,
        10,
    )
    assert found.predicted.shape == found.examples.tokens.shape == (10, 64)
    acts, predicted = found.examples.acts, found.predicted
    assert found.top_and_random.ev_correlation_score == pytest.approx(
        pearson(acts.ravel(), predicted.ravel())
    )
    assert found.top_only.ev_correlation_score == pytest.approx(
        pearson(acts[:5].ravel(), predicted[:5].ravel())
    )
    for one in (found.top_and_random, found.top_only, found.random_only):
        assert 0.8 < one.interval.low < one.ev_correlation_score < one.interval.high <= 1  # not how strongly


def test_random_windows_are_of_all(tiles, judge):
    """The top windows are among them as often as any other, and they are others than those beside the top ones."""
    n_top, drawn = 40, 0
    for seed in range(20):
        found = simulate_and_score(
            judge, true_of(3), tiles, 3, n_top=n_top, n_random=10, n_random_only=60, seed=seed
        )
        assert found.random_only.n_windows == 60
        own = tiles.random(3, 60, seed + 5, np.zeros(0, np.int64))
        drawn += len(np.intersect1d(tiles.first[own], found.examples.of("top").slots))
    assert drawn / (20 * 60) == pytest.approx(n_top / len(tiles), rel=0.25)


@pytest.mark.parametrize("latent", [DENSE, RARE, NEVER])
def test_units_that_are_always_seldom_or_never_active(judge, tiles, latent):
    for explanation in (true_of(latent), constant(latent, 0.1)):
        found = simulate_and_score(judge, explanation, tiles, latent)
        assert found.top_and_random.ev_correlation_score == 0 and not found.top_and_random.defined
    assert found.top_only.n_windows == (0 if latent == NEVER else 5)
    assert found.random_only.n_windows == 10


def test_the_explanation_of_another_unit_earns_nothing(judge, tiles):
    found = [simulate_and_score(judge, true_of(i + 1), tiles, i).top_and_random for i in range(30)]
    assert np.mean([one.ev_correlation_score for one in found]) == pytest.approx(0, abs=0.05)


def test_random_windows_only_can_be_left_out(judge, tiles):
    found = simulate_and_score(judge, true_of(3), tiles, 3, n_random_only=0)
    assert found.random_only.n_windows == 0 and found.random_only.interval == (0, -1, 1)
