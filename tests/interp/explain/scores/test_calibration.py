"""From the scale of a prediction to that of the unit."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.scores.calibration import calibration, linear, percentiles
from saefast.interp.explain.scores.controls import Always
from saefast.interp.explain.scores.simulation import simulation_score
from tests.helpers.scored_units import Said, by_hand, true_of

TRUE, PREDICTED = np.array([0.0, 2, 4, 10]), np.array([0.0, 1, 2, 1])


class Program:
    name = "program"

    def simulate(self, explanation, tokens):
        return explanation.predict(tokens)


def test_linear_by_hand():
    # around the means of 1 and 4: products sum to 4 + 0 + 0 + 0, squares to 2
    assert linear(TRUE, PREDICTED) == (2, 2)
    assert linear(TRUE, PREDICTED)(np.array([[0, 3], [-1, 0.5]])).tolist() == [[2, 8], [0, 3]]
    assert linear(TRUE, np.full(4, 7.0)) == (0, 4)
    assert linear(TRUE, -PREDICTED) == (-2, 2)


def test_linear_leaves_the_score_as_it_is():
    rng = np.random.default_rng(0)
    true = rng.exponential(size=(9, 20))
    predicted = np.floor(true + rng.exponential(size=true.shape))
    found = linear(*(rng.permutation(part.ravel()) for part in (true, predicted)))
    found = found._replace(slope=abs(found.slope) + 0.1)
    one, other = simulation_score(true, predicted), simulation_score(true, found(predicted))
    assert other.ev_correlation_score == pytest.approx(one.ev_correlation_score, abs=1e-12)
    assert np.allclose(other.interval, one.interval) and other.spearman == pytest.approx(one.spearman)
    assert other.rsquared_score != pytest.approx(one.rsquared_score, abs=0.01)
    fitted = simulation_score(true, linear(true.ravel(), predicted.ravel())(predicted))
    assert fitted.rsquared_score > one.rsquared_score
    assert fitted.ev_correlation_score == pytest.approx(one.ev_correlation_score, abs=1e-12)


def test_percentiles_by_hand():
    found = percentiles(TRUE, np.array([5.0, 3, 1, 2]))  # 1 2 3 5 become 0 2 4 10
    assert found(np.array([1.0, 2, 3, 5])).tolist() == [0, 2, 4, 10]
    assert found(np.array([[0.0, 1.5], [4, 9]])).tolist() == [[0, 1], [7, 10]]
    # of predictions that are equal the one of the highest rank counts: 0 1 1 2 have 0 2 4 10
    assert percentiles(TRUE, PREDICTED)(np.array([0.0, 0.5, 1, 2])).tolist() == [0, 2, 4, 10]
    assert percentiles(TRUE, np.ones(4))(np.array([0.0, 1, 2])).tolist() == [10, 10, 10]


def test_fitted_on_other_windows_without_their_padding():
    fit = by_hand([[2.0, 0], [2, 0]], [[1, 3], [1, -1]], first_slot=100)
    scored = by_hand([[2.0, 0]])
    assert calibration(Program(), true_of(0), fit, scored) == pytest.approx((2 / 1.5, 0))
    found = calibration(Program(), true_of(0), fit, scored, "percentiles")
    assert (found.predicted.tolist(), found.true.tolist()) == ([0, 1.5], [0, 2])
    assert calibration(Always(1), true_of(0), fit, scored) == pytest.approx((0, 4 / 3))


@pytest.mark.parametrize("first_slot", [0, 1, 3])
def test_not_on_tokens_that_are_scored(first_slot):
    one, other = by_hand(np.ones((2, 2)), first_slot=first_slot), by_hand(np.ones((2, 2)))
    with pytest.raises(InputError, match="not scored"):
        calibration(Program(), true_of(0), one, other)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(np.zeros(0), np.zeros(0)),
        lambda: linear(np.zeros(3), np.zeros(2)),
        lambda: percentiles(np.zeros((2, 2)), np.zeros((2, 2))),
        lambda: percentiles(np.zeros(2), np.array([0, np.nan])),
        lambda: calibration(
            Program(), Said(0, np.zeros(9)), by_hand([[1.0]], first_slot=9), by_hand([[1.0]]), "cubic"
        ),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()
