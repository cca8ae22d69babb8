"""Scores by hand, by brute force, and beside scipy and scikit-learn."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from saefast.errors import InputError
from saefast.interp.trial.scores import (
    auc,
    balanced_accuracy,
    digits,
    pearson,
    r2,
    ranks,
    scores_of,
    spearman,
)

X = np.array([0.0, 0.0, 1.0, 2.0])
Y = np.array([1.0, 3.0, 2.0, 4.0])


def numbers(seed, n=60):
    """With many ties, as activations have."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n) * rng.integers(0, 2, n) * 1.5
    predicted = true + rng.integers(-2, 3, n)
    return true, predicted, rng.integers(0, 4, n)


def test_by_hand():
    # deviations -.75 -.75 .25 1.25 and -1.5 .5 -.5 1.5: products sum to 2.5, squares to 2.75 and 5
    assert pearson(X, Y) == pytest.approx(2.5 / (2.75 * 5) ** 0.5)
    # ranks 1.5 1.5 3 4 and 1 3 2 4: deviations -1 -1 .5 1.5 and -1.5 .5 -.5 1.5: products 3, squares 4.5 and 5
    assert ranks(X).tolist() == [1.5, 1.5, 3, 4]
    assert spearman(X, Y) == pytest.approx(3 / (4.5 * 5) ** 0.5)
    # errors -1 -3 -1 -2: 15; around the mean 2.75
    assert r2(X, Y) == pytest.approx(1 - 15 / 2.75)
    # active 2 and 4, others 1 and 3: 2 > 1, 4 > 1, 4 > 3
    assert auc(X > 0, Y) == 0.75
    # said of 3, 2, 4: both active ones, and one of the two others
    assert balanced_accuracy(X > 0, Y > 1.5) == 0.75


def test_weighted_by_hand():
    weights = np.array([1.0, 1.0, 2.0, 0.0])
    # the mean of x is .5, that of y 2: products .5 -.5 0 -> 0
    assert pearson(X, Y, weights) == pytest.approx(0)
    assert pearson(X, Y, np.array([3.0, 1, 2, 2])) == pytest.approx(
        np.cov(X, Y, aweights=[3, 1, 2, 2])[0, 1]
        / np.sqrt(np.cov(X, aweights=[3, 1, 2, 2]) * np.cov(Y, aweights=[3, 1, 2, 2]))
    )


@pytest.mark.parametrize("seed", range(8))
def test_beside_other_tools(seed):
    true, predicted, _ = numbers(seed)
    assert spearman(true, predicted) == pytest.approx(scipy.stats.spearmanr(true, predicted).statistic)
    assert pearson(true, predicted) == pytest.approx(scipy.stats.pearsonr(true, predicted).statistic)
    assert r2(true, predicted) == pytest.approx(metrics.r2_score(true, predicted))
    assert auc(true > 0, predicted) == pytest.approx(metrics.roc_auc_score(true > 0, predicted))
    said = predicted > 1
    assert balanced_accuracy(true > 0, said) == pytest.approx(metrics.balanced_accuracy_score(true > 0, said))
    assert ranks(predicted).tolist() == scipy.stats.rankdata(predicted).tolist()
    pairs = [(a > b) + (a == b) / 2 for a in predicted[true > 0] for b in predicted[true == 0]]
    assert auc(true > 0, predicted) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("seed", range(8))
def test_integer_weights_do_what_copies_do(seed):
    true, predicted, weights = numbers(seed)
    copies = np.repeat(true, weights), np.repeat(predicted, weights)
    weighted = weights.astype(float)
    assert spearman(true, predicted, weighted) == pytest.approx(scipy.stats.spearmanr(*copies).statistic)
    assert pearson(true, predicted, weighted) == pytest.approx(scipy.stats.pearsonr(*copies).statistic)
    assert spearman(true, predicted, 1e-7 * weighted) == pytest.approx(spearman(true, predicted, weighted))


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1 + 0.2, 1e300, -1e-300])
def test_a_constant_prediction_earns_nothing(constant):
    true = np.array([[0.0, 1, 2], [3, 0, 0]])
    scores = scores_of(true, np.full((2, 3), constant), np.array([1.0, 0.1]), largest=3.0)
    exact = (scores.spearman_exact, scores.pearson_weighted)
    assert (scores.spearman, scores.pearson, scores.spearman_weighted, *exact) == (0,) * 5
    assert scores.auc == 0.5 and scores.balanced_accuracy == 0.5
    assert scores.r2 <= 0


def test_a_perfect_prediction():
    true = np.array([[0.0, 1, 2], [3, 0, 0]])
    scores = scores_of(true, true, np.array([1.0, 0.1]), largest=3.0)
    assert scores == pytest.approx((1,) * 8)
    upside_down = scores_of(true, 3 - true, np.array([1.0, 0.1]), largest=3.0)
    assert upside_down.spearman == upside_down.pearson_weighted == pytest.approx(-1)


def test_importance_is_that_of_the_window():
    """Three tokens of a window that counts nothing change no weighted score, and all others."""
    rng = np.random.default_rng(0)
    true, predicted = rng.random((4, 3)), rng.random((4, 3))
    weights = np.array([1.0, 2, 0, 0.5])
    other = predicted.copy()
    other[2] = 1 - other[2]
    one, two = (scores_of(true, given, weights, 1.0) for given in (predicted, other))
    assert one.spearman_weighted == two.spearman_weighted and one.pearson_weighted == two.pearson_weighted
    assert one.spearman_exact != two.spearman_exact and one.pearson != two.pearson
    each = np.repeat(weights, 3)
    assert one.pearson_weighted == pytest.approx(pearson(true.ravel(), predicted.ravel(), each))


def test_very_large_and_very_small_numbers():
    true, predicted, _ = numbers(3)
    for scale in (1e200, 1e-200):
        assert pearson(true, scale * predicted) == pytest.approx(pearson(true, predicted))


def test_digits_are_those_of_the_paper():
    acts = np.array([-1, 0, 0.49, 0.5, 1, 1.5, 8.4, 8.5, 9, 20]) / 9 * 4.0
    assert digits(acts, 4.0).tolist() == [0, 0, 0, 1, 1, 2, 8, 9, 9, 9]


def test_nearly_nothing_is_nothing():
    """The right explanation of a rare unit, but for a prediction of hardly anything elsewhere, is right."""
    rng = np.random.default_rng(0)
    true = np.zeros((60, 9))
    true[:6, 4] = 9.0
    predicted = true + 0.3 * rng.random(true.shape)
    scores = scores_of(true, predicted, np.ones(60), largest=9.0)
    assert scores.spearman == scores.spearman_weighted == pytest.approx(1) and scores.spearman_exact < 0.2
    assert scores.auc == scores.balanced_accuracy == 1
    # a true digit of 0 is not active, and a predicted one does not say so
    true, predicted = np.array([[0.4, 0.6, 9.0, 0.0]]), np.array([[0.6, 0.6, 9.0, 0.4]])
    scores = scores_of(true, predicted, np.ones(1), largest=9.0)
    assert scores.balanced_accuracy == 0.75 and scores.auc == (0.5 + 1 + 1 + 1) / 4
    assert scores.spearman == pytest.approx(spearman(np.array([0.0, 1, 9, 0]), np.array([1.0, 1, 9, 0])))


def test_one_side_only():
    assert auc(np.zeros(3, bool), np.arange(3.0)) == 0.5
    assert balanced_accuracy(np.ones(3, bool), np.array([True, True, False])) == pytest.approx(
        (2 / 3 + 0.5) / 2
    )
    assert pearson(np.ones(1), np.ones(1)) == 0.0
    assert r2(np.ones(3), np.arange(3.0)) == 0.0


@pytest.mark.parametrize(
    ("predicted", "weights", "message"),
    [
        (np.ones((2, 2)), np.ones(2), "predicted: expected"),
        (np.full((2, 3), np.nan), np.ones(2), "got NaN or Inf"),
        (np.full((2, 3), np.inf), np.ones(2), "got NaN or Inf"),
        (np.ones((2, 3)), np.array([1.0, -1]), "weights: expected 2"),
        (np.ones((2, 3)), np.ones(3), "weights: expected 2"),
    ],
)
def test_bad_input(predicted, weights, message):
    with pytest.raises(InputError, match=message):
        scores_of(np.zeros((2, 3)), predicted, weights, 1.0)
