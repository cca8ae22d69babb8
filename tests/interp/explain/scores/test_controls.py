"""What stands beside the scores, and that scores of true explanations are far above it."""

from functools import partial

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles, top_and_random
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explain.programs.rules import Rules
from saefast.interp.explain.programs.split import ExplainSplit
from saefast.interp.explain.scores.classification import detection, detection_examples, fuzzing
from saefast.interp.explain.scores.controls import (
    CONTROLS,
    Chance,
    controls,
    mean_correlation,
    mean_of,
    overlap,
)
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scores.simulation import simulation
from tests.helpers.scored_units import N_UNITS, NEVER, records_of, true_of
from tests.helpers.trial_cases import planted

UNITS = range(N_UNITS)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def judge(records):
    return ProgramJudge(Tiles(records, "explain", 32))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("score", [detection, fuzzing])
def test_controls_are_chance_and_true_explanations_are_not(records, judge, score):
    tiles = Tiles(records, "score", 32)
    examples = [detection_examples(tiles, unit) for unit in UNITS]
    explanations = [true_of(unit) for unit in UNITS]
    found = controls(score, judge, explanations, examples)
    assert tuple(found) == CONTROLS
    for name, scores in found.items():
        mean = mean_of(scores)
        assert mean.n_units == len(scores) == N_UNITS
        for one in (mean.balanced_accuracy, mean.auc):
            assert one.value == pytest.approx(0.5, abs=0.03)
            if name.startswith("always"):
                assert one == (0.5, 0.5, 0.5)
    own = mean_of([score(judge, *pair) for pair in zip(explanations, examples, strict=True)])
    assert own.balanced_accuracy.low > 0.97 and own.auc.low > 0.97


def test_controls_of_simulation(records, judge):
    tiles = Tiles(records, "score", 64)
    examples = [top_and_random(tiles, unit) for unit in UNITS]
    explanations = [true_of(unit) for unit in UNITS]
    found = controls(partial(simulation, draws=0), judge, explanations, examples)
    for name, scores in found.items():
        assert mean_correlation(scores).value == pytest.approx(0, abs=0.03)
        assert any(one.defined for one in scores) != name.startswith("always")
    own = [simulation(judge, *pair) for pair in zip(explanations, examples, strict=True)]
    assert mean_correlation(own).low > 0.9


@pytest.mark.parametrize("explainer, least", [(LookUp, 0.85), (Rules, 0.9)])
def test_planted_units(ground, explainer, least):
    """Of real text other units are no perfect control: where one thing is, others are more often. They are far below still."""
    named = explainer(ground.records, ground.vocabulary)
    units = ground.monosemantic.nonzero()[0][::2].tolist()
    explanations = [named.explain(unit) for unit in units]
    judge, tiles = ProgramJudge(Tiles(ground.records, "explain", 32)), Tiles(ground.records, "score", 32)
    examples = [detection_examples(tiles, unit) for unit in units]
    for score in (detection, fuzzing):
        own = mean_of([score(judge, *pair) for pair in zip(explanations, examples, strict=True)])
        found = {name: mean_of(some) for name, some in controls(score, judge, explanations, examples).items()}
        assert own.balanced_accuracy.value > least and own.auc.value > least
        for name in CONTROLS[:3]:
            assert found[name].balanced_accuracy.value == pytest.approx(0.5, abs=0.03)
            assert found[name].auc.value == pytest.approx(0.5, abs=0.03)
        assert abs(found["shuffled"].balanced_accuracy.value - 0.5) < 0.15
    poly = (~ground.monosemantic).nonzero()[0][::4].tolist()
    others = [detection(judge, named.explain(unit), detection_examples(tiles, unit)) for unit in poly]
    assert mean_of(others).auc.value < least - 0.1


def test_nothing_that_is_scored_was_seen(records):
    split = ExplainSplit(records)
    seen = np.flatnonzero(split._place >= 0)
    tiles, other = Tiles(records, "score", 32), Tiles(records, "explain", 32)
    scored = [detection_examples(tiles, unit) for unit in range(5)]
    assert overlap({unit: seen for unit in range(5)}, scored) == 0
    assert overlap({0: seen}, [detection_examples(other, 0)]) == 1
    assert overlap({}, []) == 0


def test_chance_is_drawn_anew_for_each_unit_and_question():
    tokens = np.ones((2000, 3), int)
    one, again, other = (
        Chance().detect(true_of(0), tokens),
        Chance().detect(true_of(0), tokens),
        Chance(1).detect(true_of(0), tokens),
    )
    assert (one == again).all() and (one >= 0).all() and (one < 1).all()
    drawn = [one, other, Chance().detect(true_of(1), tokens), Chance().fuzz(true_of(0), tokens, tokens > 0)]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.08
    assert all(abs(some.mean() - 0.5) < 0.03 for some in drawn)
    assert Chance().simulate(true_of(0), tokens).shape == (2000, 3)


def test_units_without_both_labels_are_not_in_the_mean(records, judge):
    tiles = Tiles(records, "score", 32)
    scores = [detection(judge, true_of(unit), detection_examples(tiles, unit)) for unit in (0, 1, NEVER)]
    assert mean_of(scores).n_units == 2 and mean_of(scores).balanced_accuracy.value > 0.98
    with pytest.raises(InputError):
        mean_of(scores[2:])


def test_bad_input(records, judge):
    examples = [detection_examples(Tiles(records, "score", 32), 0)]
    with pytest.raises(InputError):
        controls(detection, judge, [true_of(0), true_of(1)], examples)
    with pytest.raises(InputError):
        controls(detection, judge, [true_of(0)], examples)
