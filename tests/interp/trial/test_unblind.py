"""Means, intervals and p-values; a whole trial on planted units."""

import json
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest

from saefast.interp.trial import difference_of, mean_of, register, score_trial, trial_result, unblind
from saefast.interp.trial.unblind import MEASURES, STRATA
from tests.helpers.trial_cases import Means, arms_of, config, planted


def test_permutations_against_all_of_them():
    better, worse = np.array([0.9, 0.5, 0.7, 0.2]), np.array([0.4, 0.1, 0.3, 0.6, 0.0])
    pooled, observed = np.concatenate([better, worse]), better.mean() - worse.mean()
    deals = list(combinations(range(9), 4))
    differences = [pooled[[*deal]].mean() - np.delete(pooled, deal).mean() for deal in deals]
    exact = np.mean(np.asarray(differences) >= observed - 1e-12)
    found = difference_of(better, worse, n_permutations=20_000)
    assert found.difference == pytest.approx(observed)
    assert found.p == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 20_000) ** 0.5)
    other_way = difference_of(worse, better, n_permutations=20_000)
    assert other_way.p > 0.85 and other_way.difference == pytest.approx(-observed)


def test_p_is_never_0_and_1_without_a_difference():
    assert difference_of(np.full(30, 1.0), np.zeros(30), 999).p == 1 / 1000
    assert difference_of(np.ones(5), np.ones(5), 999).p == 1
    assert difference_of(np.ones(1), np.zeros(9)) == (difference_of(np.ones(1), np.zeros(9)))
    assert difference_of(np.ones(1), np.zeros(9)).p is None


@pytest.mark.slow
def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(1)
    ps = np.asarray([difference_of(*rng.normal(size=(2, 20)), 199, 99, i).p for i in range(400)])
    assert np.abs(np.quantile(ps, [0.1, 0.25, 0.5, 0.75, 0.9]) - [0.1, 0.25, 0.5, 0.75, 0.9]).max() < 0.12


@pytest.mark.slow
def test_intervals_cover_the_mean():
    rng = np.random.default_rng(2)
    means = [mean_of(rng.normal(0.3, 0.25, 60), 400, i) for i in range(300)]
    assert 0.88 < np.mean([one.low < 0.3 < one.high for one in means]) < 0.99
    gaps = [difference_of(rng.normal(0.5, 0.2, 50), rng.normal(0.3, 0.2, 50), 99, 400, i) for i in range(300)]
    assert 0.88 < np.mean([one.low < 0.2 < one.high for one in gaps]) < 0.99
    one = mean_of(np.array([1.0, 2, 6]))
    assert (one.n, one.mean, one.median) == (3, 3, 2) and 1 <= one.low < 3 < one.high <= 6
    assert mean_of(np.zeros(0)).mean is None


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Units of one thing against mixtures, and units whose logits are random."""
    folder = tmp_path_factory.mktemp("trial")
    ground = planted(folder / "planted")
    arms = arms_of(ground)
    registration = register(
        folder / "registration.json", arms, config(n_units=100, n_permutations=2000, also=("shuffled",))
    )
    score_trial(registration, arms, folder / "scores.jsonl")
    return registration, folder / "scores.jsonl"


def test_a_whole_trial(trial):
    registration, path = trial
    result = trial_result(registration, path)
    assert result.sha256 == registration.sha256 and result.primary == "means" and result.threshold == 0.01
    assert {name: arm.units for name, arm in result.arms.items()} == {
        "features": 30,
        "neurons": 30,
        "shuffled": 16,
    }
    assert result.arms["features"].single_token >= 5
    assert set(result.measured["means"]) == set(STRATA)
    for stratum in STRATA:
        assert set(result.measured["means"][stratum]) == set(MEASURES)
        for measured in result.measured["means"][stratum].values():
            assert {name: sum(counts) for name, counts in measured.histogram.items()} == {
                name: mean.n for name, mean in measured.arms.items()
            }
    both = [result.measured["means"][stratum]["spearman"].arms["features"].n for stratum in STRATA[1:]]
    assert sum(both) == 30 and both[1] == result.arms["features"].single_token
    of = result.measured["means"]["all"]
    assert result.registered == result.measured["means"]["not single token"]["spearman"].difference
    joined = [(unit, row["scores"]["spearman"]) for unit, row in unblind(registration, path)]
    two = [
        np.asarray([x for unit, x in joined if unit.arm == arm and not unit.single_token])
        for arm in ("shuffled", "neurons")
    ]
    assert result.also == {"shuffled": difference_of(*two, 2000, 200, 0)}
    assert "So do those of shuffled" in registration.config.words()["hypothesis"]
    # what was planted
    assert of["spearman"].arms["shuffled"].mean < of["spearman"].arms["features"].mean
    assert of["logit_accuracy"].arms["features"].mean > 0.65
    assert abs(of["logit_accuracy"].arms["shuffled"].mean - 0.5) < 0.1
    assert abs(of["other_spearman"].arms["features"].mean) < 0.15
    json.dumps(asdict(result))


def test_numbers_are_those_of_the_rows(trial):
    registration, path = trial
    result = trial_result(registration, path)
    joined = unblind(registration, path)
    for single, stratum in ((False, "not single token"), (True, "single token")):
        for arm in ("features", "neurons"):
            rows = [row for unit, row in joined if unit.arm == arm and unit.single_token == single]
            for measure, values in {
                "spearman_weighted": [row["scores"]["spearman_weighted"] for row in rows],
                "logit_auc": [row["logits"]["auc"] for row in rows],
                "other_logit_accuracy": [row["other_logits"]["accuracy"] for row in rows],
            }.items():
                found = result.measured["means"][stratum][measure].arms[arm]
                assert found.n == len(values)
                assert found.mean == (pytest.approx(np.mean(values)) if values else None)


@pytest.mark.slow
def test_the_hypothesis_holds_where_it_was_planted(tmp_path):
    """An explainer that sees through features and not through neurons; and one that is blind for both."""
    ground = planted(tmp_path / "planted")

    class Blurred(Means):
        def explain(self, latent):
            table = super().explain(latent)
            rng = np.random.default_rng(latent)
            good = self.noise == 0 and ground.monosemantic[latent]
            table.means = table.means if good else rng.random(len(table.means))
            return table

    arms = arms_of(ground, [Blurred(ground.records), Blurred(ground.records, "blind", noise=1)])
    registration = register(
        tmp_path / "registration.json", arms, config(n_units=100, explainers=("means", "blind"))
    )
    score_trial(registration, arms, tmp_path / "scores.jsonl")
    result = trial_result(registration, tmp_path / "scores.jsonl")
    assert result.registered.difference > 0.2 and result.registered.p < 0.01
    assert result.measured["blind"]["not single token"]["spearman"].difference.p > 0.01
