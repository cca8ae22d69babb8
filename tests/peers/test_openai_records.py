"""OpenAI's own package (automated-interpretability, as Neuronpedia releases it) reads our records, and we read its."""

import io
import shutil
from collections import Counter
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest

from saefast.config.records import RecordsConfig
from saefast.interp.exchange.openai import export_openai
from saefast.interp.exchange.openai_read import (
    read_openai,
    read_openai_explanations,
    read_openai_simulations,
)
from saefast.interp.explanations import write_explanations
from saefast.interp.records import Records
from saefast.interp.simulations import Simulations
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import RAW, WORDS, F

fast = pytest.importorskip("neuron_explainer.fast_dataclasses")
activations = pytest.importorskip("neuron_explainer.activations.activations")
tokens = pytest.importorskip("neuron_explainer.activations.token_connections")
explanations = pytest.importorskip("neuron_explainer.explanations.explanations")
LIVE = F - 2  # those after it never fire
DEAD = F - 1


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    contexts = np.random.default_rng(1).integers(0, len(RAW), (60, 24)).astype(np.int32)
    config = RecordsConfig(before=8, after=5)
    return cases.records(tmp_path_factory.mktemp("records"), contexts=contexts, config=config)


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    return export_openai(records, cases.effects(), WORDS, tmp_path_factory.mktemp("out"), layer=3)


def test_its_reader_takes_every_file(written):
    said, found = io.StringIO(), Counter()
    with redirect_stdout(said):
        for path in written.rglob("*.json*"):
            found[type(fast.loads(path.read_bytes(), backwards_compatible=False)).__name__] += 1
    assert said.getvalue() == ""  # it prints what it does not know
    names = ("NeuronRecord", "TokenLookupTableSummaryOfNeuron", "WeightBasedSummaryOfNeuron")
    assert found == {**dict.fromkeys(names, F), "NeuronSimulationResults": 2}


def test_its_scores_of_our_simulations_are_ours(records, tmp_path):
    """Its loader has the simulations, and its scoring, given what it loaded, the scores that are stored."""
    scoring = pytest.importorskip("neuron_explainer.explanations.scoring")
    rng, length = np.random.default_rng(2), 16
    true = cases.dense(records).reshape(F, -1)
    folder = tmp_path / "records"
    shutil.copytree(records.folder, folder)
    kept = Simulations(folder)
    lines = []
    for latent in range(F):  # the last two never fire
        windows = []
        for slot in (np.arange(6) * 24 + 3).tolist():
            noisy = true[latent, slot : slot + length] * 3.7 + rng.normal(0, 2 + latent, length)
            per_token = rng.dirichlet([1.0] * 11, length)
            one = {"slot": slot, "length": length, "expected": noisy, "scale": "neuron_activations"}
            if latent % 2:
                values = np.tile(np.arange(11.0), (length, 1))
                one |= {"distribution_values": values, "distribution_probabilities": per_token}
                one |= {"expected": per_token @ np.arange(11.0), "scale": "simulated_normalized_activations"}
            windows.append(one)
        kept.append(latent, "m", None, windows)
        lines.append({"latent": latent, "explanation": "x", "method": "m", "model": None, "scores": {}})
    kept.close()
    write_explanations(folder, lines)
    out = export_openai(Records(folder), cases.effects(), WORDS, tmp_path / "out", layer=3)
    said = io.StringIO()
    for latent in range(F):
        with redirect_stdout(said):
            path = out / f"explanations/3/{latent}.jsonl"
            fast.loads(path.read_bytes(), backwards_compatible=False)
            [one] = explanations.load_neuron_explanations(
                str(out / "explanations"), 3, latent
            ).scored_explanations
        sequences = one.scored_simulation.scored_sequence_simulations
        assert len(sequences) == 6 and isinstance(sequences[0], explanations.ScoredSequenceSimulation)
        assert all(isinstance(each.simulation, explanations.SequenceSimulation) for each in sequences)
        with np.errstate(all="ignore"):
            check(scoring.aggregate_scored_sequence_simulations(sequences), one.scored_simulation, latent)
            for each in sequences:
                record = activations.ActivationRecord(each.simulation.tokens, each.true_activations)
                its = {
                    "ev_correlation_score": scoring.correlation_score,
                    "rsquared_score": scoring.rsquared_score_from_sequences,
                    "absolute_dev_explained_score": scoring.absolute_dev_explained_score_from_sequences,
                }
                found = {
                    name: scoring.score_from_simulation(record, each.simulation, score)
                    for name, score in its.items()
                }
                check(SimpleNamespace(**found), each, latent if max(each.true_activations) else DEAD)
        if latent % 2:
            assert np.shape(sequences[5].simulation.distribution_probabilities) == (length, 11)
    assert said.getvalue() == ""


def check(its, stored, latent):
    for name in ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score"):
        its_score, our_score = getattr(its, name), getattr(stored, name)
        if latent < LIVE:
            assert our_score == pytest.approx(its_score, abs=1e-6), name
        else:
            assert our_score is None and not np.isfinite(its_score)  # JSON has no NaN


def test_its_records_are_ours(written):
    url = (written / "collated-activations").as_uri()
    for ours in read_openai(written):
        neuron = activations.load_neuron(3, ours["latent"], url)
        assert (neuron.neuron_id.layer_index, neuron.neuron_id.neuron_index) == (3, ours["latent"])
        for name in ("mean", "variance", "skewness", "kurtosis", "quantile_boundaries"):
            assert getattr(neuron, name) == ours[name]
        for name in ("random_sample", "most_positive_activation_records"):
            pairs = [{"tokens": one.tokens, "activations": one.activations} for one in getattr(neuron, name)]
            assert pairs == ours[name]
        groups = [
            [{"tokens": one.tokens, "activations": one.activations} for one in group]
            for group in neuron.random_sample_by_quantile
        ]
        assert groups == ours["random_sample_by_quantile"] and len(groups) == 5


def test_its_splits_and_prompts_take_our_examples(records, written):
    formatting = pytest.importorskip("neuron_explainer.activations.activation_records")
    five = activations.ActivationRecordSliceParams(n_examples_per_split=5)
    for latent in range(LIVE):
        neuron = activations.load_neuron(3, latent, (written / "collated-activations").as_uri())
        assert np.float32(neuron.max_activation) == np.float32(records.latent(latent).max)
        train = neuron.train_activation_records(five)
        assert len(train) == 5 and len(neuron.valid_activation_records(five)) == 10
        assert (
            len(neuron.calibration_activation_records(five))
            == len(neuron.test_activation_records(five))
            == 10
        )
        largest = formatting.calculate_max_activation(train)
        prompt = formatting.format_activation_records(train, largest)
        assert prompt.count("<start>") == 5 and "\t10" in prompt


def test_its_tokens_and_explanations_are_ours(written):
    for latent in range(F):
        url = (written / "related-tokens").as_uri()
        table = tokens.load_token_lookup_table_connections_of_neuron(3, latent, f"{url}/activation-based")
        assert len(table.tokens) == len(table.average_activations)
        assert sorted(table.average_activations, reverse=True) == table.average_activations
        assert bool(table.tokens) == (latent < LIVE)
        weights = tokens.load_token_weight_connections_of_neuron(3, latent, f"{url}/weight-based")
        assert len(weights.output_positive.tokens) == len(weights.output_negative.strengths) == 5
        assert weights.input_positive.tokens == []
    folder = str(written / "explanations")
    assert explanations.get_sorted_neuron_indices_from_explanations(folder, 3) == [1, 2]
    assert explanations.load_neuron_explanations(folder, 3, 0) is None
    found = explanations.load_neuron_explanations(folder, 3, 2).scored_explanations
    assert [one.explanation for one in found] == [one["explanation"] for one in cases.LINES[1:]]
    assert [one.scored_simulation.rsquared_score for one in found] == [0.5, None]
    assert [one.get_preferred_score() for one in found] == [-0.25, None]


def test_we_read_what_it_writes(tmp_path):
    one = activations.ActivationRecord(tokens=["a", "\ufffd"], activations=[-0.25, 3])
    neuron = activations.NeuronRecord(
        neuron_id=activations.NeuronId(layer_index=1, neuron_index=8),
        random_sample=[one],
        random_sample_by_quantile=[[one], []],
        quantile_boundaries=[float("-inf"), 0.5, float("inf")],
        mean=0.125,
        most_positive_activation_records=[one, one],
    )
    simulation = explanations.SequenceSimulation(
        tokens=["a"],
        expected_activations=[0.5],
        activation_scale=explanations.ActivationScale.NEURON_ACTIVATIONS,
        distribution_values=[[0.0]],
        distribution_probabilities=[[1.0]],
    )
    sequence = explanations.ScoredSequenceSimulation(
        simulation=simulation, true_activations=[0.5], ev_correlation_score=float("nan")
    )
    scored = explanations.ScoredSimulation([sequence], ev_correlation_score=0.75, rsquared_score=float("nan"))
    results = explanations.NeuronSimulationResults(
        neuron_id=neuron.neuron_id, scored_explanations=[explanations.ScoredExplanation("dates", scored)]
    )
    for kind, suffix, value in (("collated-activations", "json", neuron), ("explanations", "jsonl", results)):
        path = tmp_path / kind / "1" / f"8.{suffix}"
        path.parent.mkdir(parents=True)
        path.write_bytes(fast.dumps(value))
    pair = {"tokens": ["a", "\ufffd"], "activations": [-0.25, 3]}
    [found] = read_openai(tmp_path)
    assert found == {
        "layer": 1,
        "latent": 8,
        "random_sample": [pair],
        "random_sample_by_quantile": [[pair], []],
        "quantile_boundaries": [None, 0.5, None],
        "mean": 0.125,
        "variance": None,
        "skewness": None,
        "kurtosis": None,
        "most_positive_activation_records": [pair, pair],
    }
    [said] = read_openai_explanations(tmp_path)
    assert said["explanation"] == "dates" and said["scores"] == {"simulation": 0.75}
    [simulated] = read_openai_simulations(tmp_path)
    assert simulated["simulations"] == [
        {
            "tokens": ["a"],
            "true_activations": [0.5],
            "expected": [0.5],
            "scale": "neuron_activations",
            "distribution_values": [[0.0]],
            "distribution_probabilities": [[1.0]],
        }
    ]
