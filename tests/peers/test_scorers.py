"""Simulations scored beside the real packages: automated-interpretability (OpenAI's) and delphi.

Where theirs are defined otherwise, both are asserted.
"""

import asyncio

import numpy as np
import pytest

from saefast.interp.explain.scores.calibration import linear, percentiles
from saefast.interp.explain.scores.simulation import simulation_score
from tests.helpers.peer_scorers import delphi_scorers, openai_scorers

CASES = ["sparse", "dense", "either sign", "small", "one token", "one window"]


@pytest.fixture(scope="module")
def openai():
    return openai_scorers()


@pytest.fixture(scope="module")
def delphi():
    return delphi_scorers()


def simulated(case, seed=0):
    """Activations and predictions [n, L]."""
    rng = np.random.default_rng(seed)
    shape = {"one token": (8, 1), "one window": (1, 64)}.get(case, (10, 64))
    true = rng.exponential(size=shape) * (case == "dense" or rng.random(shape) < 0.1)
    if case == "either sign":  # neurons of GELU
        true = rng.normal(size=shape)
    predicted = np.floor(10 * np.clip(true + rng.normal(0, 0.3, shape), 0, 1))
    return (true * 1e-6 if case == "small" else true), predicted


class Simulator:
    """Of either package: says what was predicted of a sequence, whose only token is its number."""

    def __init__(self, sequence, predicted):
        self.sequence, self.predicted = sequence, predicted

    async def simulate(self, tokens):
        return self.sequence(list(tokens), self.predicted[int(tokens[0])].tolist())


def of_openai(openai, true, predicted, calibrated=None):
    def sequence(tokens, values):
        scale = openai.explanations.ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS
        return openai.explanations.SequenceSimulation(tokens, values, scale, [], [])

    simulator = Simulator(sequence, predicted)
    records = [
        openai.activations.ActivationRecord([str(i)] * true.shape[1], row.tolist())
        for i, row in enumerate(true)
    ]
    if calibrated is not None:
        kind, fit = calibrated
        simulator = kind(simulator)
        simulator.calibrate_from_simulations(
            [openai.activations.ActivationRecord([""], row.tolist()) for row in fit[0]],
            [sequence([""], row.tolist()) for row in fit[1]],
        )
    return asyncio.run(openai.scoring.simulate_and_score(simulator, records))


def or_0(value):
    """What they leave undefined is 0 here."""
    return value if value is not None and np.isfinite(value) else 0.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # theirs divide by 0
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_simulation_is_openais(openai, case, seed):
    true, predicted = simulated(case, seed)
    theirs, ours = of_openai(openai, true, predicted), simulation_score(true, predicted, draws=0)
    for name in ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score"):
        assert getattr(ours, name) == pytest.approx(or_0(getattr(theirs, name)), rel=1e-9, abs=1e-6)
        of_windows = [or_0(getattr(one, name)) for one in theirs.scored_sequence_simulations]
        assert getattr(ours.windows, name) == pytest.approx(of_windows, rel=1e-9, abs=1e-6)
    assert ours.defined == np.isfinite(theirs.ev_correlation_score) and (ours.defined or case == "one token")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_openai_leaves_undefined_is_0(openai):
    true, predicted = simulated("sparse")
    for real, said in ((true, np.ones_like(true)), (np.zeros_like(true), predicted)):
        theirs, ours = of_openai(openai, real, said), simulation_score(real, said)
        assert np.isnan(theirs.ev_correlation_score) and ours.ev_correlation_score == 0 and not ours.defined
    assert theirs.rsquared_score == theirs.absolute_dev_explained_score == -np.inf
    assert ours.rsquared_score == ours.absolute_dev_explained_score == 0


@pytest.mark.parametrize("case", ["sparse", "dense", "either sign", "small"])
def test_calibration_is_openais(openai, case):
    fit, (true, predicted) = simulated(case, 1), simulated(case, 2)
    module = openai.calibrated_simulator
    for kind, ours in (
        (module.LinearCalibratedNeuronSimulator, linear),
        (module.PercentileMatchingCalibratedNeuronSimulator, percentiles),
    ):
        theirs = of_openai(openai, true, predicted, (kind, fit))
        mine = ours(fit[0].ravel(), fit[1].ravel())(predicted)
        said = [one.simulation.expected_activations for one in theirs.scored_sequence_simulations]
        assert np.allclose(mine, said, rtol=1e-9, atol=1e-9 * np.abs(true).max())
        found = simulation_score(true, mine, draws=0)
        assert found.rsquared_score == pytest.approx(theirs.rsquared_score, abs=1e-6)
        assert found.ev_correlation_score == pytest.approx(theirs.ev_correlation_score, abs=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_simulation_is_delphis(delphi):
    """Theirs has a score of each quantile, "distance" 1 and on, and one of all windows, 0; two of three scores are always 0."""
    true, predicted = simulated("sparse")
    true = np.ceil(10 * true / true.max())
    true[4:] = 0  # those it is not active in

    def records(rows, quantiles):
        pairs = zip(rows, quantiles, strict=True)
        return [
            delphi.data_models.ActivationRecord([str(i)] * 64, true[i].tolist(), quantile)
            for i, quantile in pairs
        ]

    simulator = Simulator(lambda tokens, values: values, predicted)
    active, quiet = records(range(4), [0, 0, 1, 1]), records(range(4, 10), [-1] * 6)
    found = {
        one.distance: one for one in asyncio.run(delphi.scoring.simulate_and_score(simulator, active, quiet))
    }
    for distance, rows in ((0, slice(10)), (1, slice(2)), (2, slice(2, 4))):
        ours = simulation_score(true[rows], predicted[rows], draws=0)
        assert ours.ev_correlation_score == pytest.approx(found[distance].ev_correlation_score, abs=1e-9)
        of_windows = [one.ev_correlation_score for one in found[distance].scored_sequence_simulations]
        theirs = [0.0 if one == "nan" else one for one in of_windows]
        assert ours.windows.ev_correlation_score == pytest.approx(theirs, abs=1e-9)
        assert found[distance].rsquared_score == 0 != pytest.approx(ours.rsquared_score, abs=0.01)
    assert "nan" in of_windows or found[0].scored_sequence_simulations[-1].ev_correlation_score == "nan"
