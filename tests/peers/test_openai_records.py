"""OpenAI's own package (automated-interpretability, as Neuronpedia releases it) reads our records, and we read its."""

import io
from collections import Counter
from contextlib import redirect_stdout

import numpy as np
import pytest

from saefast.config.records import RecordsConfig
from saefast.interp.exchange.openai import export_openai
from saefast.interp.exchange.openai_read import read_openai, read_openai_explanations
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import RAW, WORDS, F

fast = pytest.importorskip("neuron_explainer.fast_dataclasses")
activations = pytest.importorskip("neuron_explainer.activations.activations")
tokens = pytest.importorskip("neuron_explainer.activations.token_connections")
explanations = pytest.importorskip("neuron_explainer.explanations.explanations")
LIVE = F - 2  # those after it never fire


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
