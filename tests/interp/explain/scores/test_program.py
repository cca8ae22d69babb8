"""Yes and no of predictions."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores import program
from saefast.interp.explain.scores.program import ProgramJudge, threshold
from saefast.interp.trial.scores import balanced_accuracy
from tests.helpers.scored_units import DENSE, N_TOKENS, NEVER, RARE, Said, constant, records_of, true_of


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def judge(records):
    return ProgramJudge(Tiles(records, "explain", 32))


T, F = True, False


@pytest.mark.parametrize(
    "strength, labels, expected",
    [
        ([0, 0, 1, 3], [F, F, T, T], 0.5),
        ([0, 1, 4], [T, F, T], 2.5),
        ([0, 1, 5, 6], [F, T, F, T], 0.5),  # as good as 5.5, and lower
        ([0, 1, 5, 9], [F, T, F, T], 7),  # as good as 0.5, in a wider gap
        ([3, 1, 0, 0], [F, F, T, T], 2),  # whatever it is, it is wrong: at least for some
        ([2, 2, 2], [F, T, T], 2),
        ([0.1, 0.1], [F, T], 0.1),
        ([1, 2, 9], [T, T, T], 2),
        ([1, 2, 9], [F, F, F], 2),
        ([], [], 0),
    ],
)
def test_thresholds_by_hand(strength, labels, expected):
    assert threshold(np.array(strength, float), np.array(labels, bool)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(40) < 0.4
    strength = rng.integers(0, 12, 40) * rng.random() + labels
    values = np.unique(strength)
    tries = [balanced_accuracy(labels, strength > at) for at in (values[1:] + values[:-1]) / 2]
    assert balanced_accuracy(labels, strength > threshold(strength, labels)) == pytest.approx(max(tries))


def test_probabilities_by_hand(judge):
    """The threshold of a unit that is active where its tokens are lies half-way between 0 and 1.5."""
    table = true_of(0).table.copy()
    table[9], table[10], table[11] = 0.75, 4.5, -3
    tokens = np.array([[1, 3, 2, -1], [5, 5, 5, 5], [9, 5, 5, 5], [10, 1, 5, 5], [11, 11, 11, 11]])
    said = Said(0, true_of(0).table)
    assert judge.detect(said, tokens[:2]).tolist() == [2 / 3, 0]
    strange = Said(0, table)
    judge._kept[id(strange)] = program._Thresholds(strange, 0.75, 0.75)
    assert judge.detect(strange, tokens) == pytest.approx([2 / 3, 0, 0.5, 6 / 7, 0])
    marked = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], bool)
    assert judge.fuzz(strange, tokens, marked) == pytest.approx([0.5, 0, 0.5, 0.8, 0])
    assert judge.fuzz(strange, tokens, np.zeros_like(marked)).tolist() == [0] * 5
    assert judge.simulate(strange, tokens).tolist() == table[tokens].tolist()


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 7e-9, -2.0])
@pytest.mark.parametrize("latent", [0, DENSE, RARE, NEVER])
def test_a_constant_prediction_is_0_5_everywhere(judge, value, latent):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, N_TOKENS, (50, 32))
    marked = rng.random(tokens.shape) < rng.random((50, 1))
    marked[:, 0] = True
    assert (judge.detect(constant(latent, value), tokens) == 0.5).all()
    assert (judge.fuzz(constant(latent, value), tokens, marked) == 0.5).all()


def test_two_explanations_of_one_unit_have_a_threshold_each(judge):
    one, other = true_of(4), Said(4, 10 * true_of(4).table)
    tokens = np.array([[9, 1], [1, 1]])
    assert judge.detect(one, tokens).tolist() == judge.detect(other, tokens).tolist() == [2 / 3, 0]
    assert judge.detect(one, tokens).tolist() == [2 / 3, 0]


def test_thresholds_are_fitted_once_and_a_few_are_kept(judge, monkeypatch):
    fitted = []
    whole = ProgramJudge._fitted
    monkeypatch.setattr(ProgramJudge, "_fitted", lambda self, x: (fitted.append(x.latent), whole(self, x))[1])
    monkeypatch.setattr(program, "KEPT", 3)
    judge._kept.clear()
    said = [true_of(i) for i in range(5)]
    for one in said:
        judge.detect(one, np.array([[1, 2]]))
        judge.fuzz(one, np.array([[1, 2]]), np.array([[True, False]]))
    assert fitted == [0, 1, 2, 3, 4] and len(judge._kept) == 3
    judge.detect(said[0], np.array([[1, 2]]))
    assert fitted[-1] == 0


def test_thresholds_are_fitted_on_text_for_explaining(records):
    with pytest.raises(InputError, match="explain"):
        ProgramJudge(Tiles(records, "score", 32))
