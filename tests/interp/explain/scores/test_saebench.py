"""14 windows, what always "none" gets, and who is drawn by weight."""

from itertools import permutations

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.controls import Always
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scores.saebench import saebench, saebench_examples
from tests.helpers.scored_units import DENSE, NEVER, RARE, by_hand, records_of, true_of


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def tiles(records):
    return Tiles(records, "score", 21)


class Names:
    def __init__(self, *answers):
        self.answers = np.array(answers)

    def detect(self, explanation, tokens):
        return self.answers


def test_by_hand():
    examples = by_hand([[0, 2.0], [0, 0], [0, 0], [1, 1]])
    found = saebench(Names(0.9, 0.51, 0.5, 0.1), true_of(0), examples)
    assert found.accuracy.value == 0.5 and found.floor == 0.5 and (found.n, found.n_active) == (4, 2)
    assert found.accuracy.low == pytest.approx(0.1500, abs=1e-4)  # Wilson of 2 in 4


def test_a_rare_unit_has_the_floor_that_is_printed(tiles):
    examples = saebench_examples(tiles, RARE)
    assert [len(examples.of(name)) for name in ("top", "quantile", "random")] == [2, 2, 10]
    assert examples.of("top").acts.max(axis=1).tolist() == [9, 8]
    found = saebench(Always(0), true_of(RARE), examples)
    assert round(found.floor, 3) == 0.714 and found.accuracy.value == found.floor == 10 / 14


def test_random_windows_are_labelled_by_what_the_unit_does(tiles):
    found = [saebench(Always(0), true_of(i), saebench_examples(tiles, i)) for i in range(20)]
    assert all(one.n_active > 4 for one in found[:3]) and np.mean([one.floor for one in found]) < 0.6
    assert all(one.accuracy.value == one.floor for one in found)
    examples = saebench_examples(tiles, 0)
    assert (examples.active == np.isin(examples.tokens, [1, 2]).any(axis=1)).all()


def test_the_true_explanation_is_above_the_floor(records, tiles):
    judge = ProgramJudge(Tiles(records, "explain", 21))
    found = saebench(judge, true_of(3), saebench_examples(tiles, 3))
    assert found.accuracy.value == 1 > found.floor and found.n == 14


@pytest.mark.parametrize("latent, n, floor", [(DENSE, 14, 0.0), (NEVER, 10, 1.0)])
def test_units_that_are_always_or_never_active(tiles, latent, n, floor):
    found = saebench(Always(0), true_of(latent), saebench_examples(tiles, latent))
    assert (found.n, found.floor, found.accuracy.value) == (n, floor, floor)


def test_drawn_by_the_square_of_the_activation(tiles):
    """Two of the three below the top ones, 1, 2 and 3: by 1, 4 and 9 one after the other."""
    weights = {1.0: 1, 2.0: 4, 3.0: 9}
    expected = dict.fromkeys(weights, 0.0)
    for first, second, _ in permutations(weights):
        p = weights[first] / 14 * weights[second] / (14 - weights[first])
        expected[first] += p
        expected[second] += p
    drawn = [saebench_examples(tiles, RARE, seed).of("quantile").acts.max(axis=1) for seed in range(600)]
    for act, p in expected.items():
        assert np.mean([act in some for some in drawn]) == pytest.approx(p, abs=0.05)


def test_the_same_for_the_same_seed(tiles):
    one, same, other = (saebench_examples(tiles, 3, seed).slots.tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_windows_that_explainers_see_are_refused(records):
    with pytest.raises(InputError, match="score"):
        saebench(Always(0), true_of(0), saebench_examples(Tiles(records, "explain", 21), 0))
