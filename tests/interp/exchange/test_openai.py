"""OpenAI's neuron-explainer records, against the whole code; their own reader is in tests/peers/test_openai_records.py."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.effects import Effects
from saefast.interp.exchange.openai import MOMENTS, export_openai
from saefast.interp.exchange.openai_read import read_openai, read_openai_explanations
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import RAW, WORDS, F, everything
from tests.helpers.look_records import SMALL


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return cases.records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def code(records):
    return cases.dense(records)


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    return export_openai(
        records, cases.effects(), WORDS, tmp_path_factory.mktemp("out"), layer=3, n_random=8, min_count=3
    )


@pytest.fixture(scope="module")
def neurons(written):
    found = list(read_openai(written))
    assert [(one["layer"], one["latent"]) for one in found] == [(3, i) for i in range(F)]
    return found


def shown(example, code):
    """An example as a record with the tokens of the window and the code on them."""
    acts = code[example.context, example.start :][: len(example.tokens)]
    return [WORDS.strings[token] for token in example.tokens], acts.tolist()


def as_pairs(samples):
    return [(one["tokens"], np.float32(one["activations"]).tolist()) for one in samples]


def test_top_and_quantiles_are_the_examples(records, code, neurons):
    for latent, neuron in enumerate(neurons):
        examples = records.latent(latent).examples
        of = {name: [shown(one, code[latent]) for one in examples[name]] for name in ("top", "quantile")}
        assert as_pairs(neuron["most_positive_activation_records"]) == of["top"]
        groups = neuron["random_sample_by_quantile"]
        assert [pair for group in groups for pair in as_pairs(group)] == of["quantile"] and len(groups) == 5
        assert bool(of["top"]) == (latent < F - 2)
        bounds = neuron["quantile_boundaries"]
        assert len(bounds) == 6 and bounds[0] is bounds[-1] is None
        peaks = np.sort(code[latent].max(axis=1))
        peaks = peaks[peaks > 0]
        wanted = [peaks[part * len(peaks) // 5] for part in range(1, 5)] if len(peaks) else [0] * 4
        assert np.float32(bounds[1:-1]).tolist() == np.float32(wanted).tolist()
        for part, group in enumerate(groups):
            for _, acts in as_pairs(group):
                assert (bounds[part] or 0) <= max(acts) <= (bounds[part + 1] or peaks[-1])


def test_moments_are_those_of_all_tokens_with_a_row(records, code, neurons):
    for latent, neuron in enumerate(neurons):
        acts = code[latent][records.text.encoded].astype(np.float64)
        z = (acts - acts.mean()) / acts.std() if acts.any() else None
        wanted = [acts.mean(), acts.var(), *([None, None] if z is None else [(z**3).mean(), (z**4).mean()])]
        for name, value in zip(MOMENTS, wanted, strict=True):
            assert neuron[name] == (value if value is None else pytest.approx(value, rel=1e-9)), name


def test_random_sample_is_of_all_text(records, code, neurons):
    text, n_active, n_tokens = records.text, 0, 0
    before, after = records.config.before, records.config.after
    windows = {}
    for context, tokens in enumerate(text.contexts.tolist()):
        for begin in range(text.length):
            for end in range(begin + 1, text.length + 1):
                windows.setdefault(tuple(tokens[begin:end]), []).append((context, begin, end))
    strings = {}
    for key, places in windows.items():
        strings.setdefault(tuple(WORDS.strings[token] for token in key), []).extend(places)
    samples = set()
    for latent, neuron in enumerate(neurons):
        contexts = []
        assert len(neuron["random_sample"]) == 8
        for tokens, acts in as_pairs(neuron["random_sample"]):
            places = strings[tuple(tokens)]
            fitting = [(c, b, e) for c, b, e in places if code[latent][c, b:e].tolist() == acts]
            centres = [(c, b + before if b > 0 else e - after - 1) for c, b, e in fitting]
            assert any(text.encoded[centre] for centre in centres)  # only tokens with a row are drawn
            contexts.append({context for context, _, _ in fitting})
            n_active, n_tokens = n_active + np.count_nonzero(acts), n_tokens + len(acts)
        for one in contexts:
            assert sum(one == other for other in contexts) == 1 or len(one) > 1  # one of each context
        samples.add(json.dumps(neuron["random_sample"]))
    assert len(samples) == F  # each latent has its own
    assert n_active / n_tokens == pytest.approx((code > 0).mean(), rel=0.2)  # active tokens are not preferred


def test_tokens_of_the_largest_average_activation(records, code, written):
    text = records.text
    tokens = text.contexts[text.encoded]
    counts = np.bincount(tokens, minlength=len(RAW))
    common = int(np.sort(counts)[len(counts) // 2])  # a count that there is
    out = written.parent / "common"
    export_openai(records, cases.effects(), WORDS, out, layer=0, n_tokens=6, min_count=common)
    for folder, least, n in ((written, 3, 50), (out, common, 6)):
        [folder] = (folder / "related-tokens/activation-based").iterdir()
        for latent in range(F):
            found = json.loads((folder / f"{latent}.json").read_text())
            acts = code[latent][text.encoded].astype(np.float64)
            means = {i: acts[tokens == i].mean() for i in range(len(RAW)) if counts[i] >= least}
            wanted = sorted(((-mean, i) for i, mean in means.items() if mean > 0))[:n]
            assert found["tokens"] == [WORDS.strings[i] for _, i in wanted]
            assert found["average_activations"] == pytest.approx([-mean for mean, _ in wanted], rel=1e-6)


def test_weights_and_explanations(written):
    weights = json.loads((written / "related-tokens/weight-based/3/1.json").read_text())
    logits = cases.effects().logits
    assert weights["output_positive"]["tokens"] == [
        WORDS.strings[i] for i in logits.positive_tokens[1].tolist()
    ]
    assert np.array_equal(np.float32(weights["output_negative"]["strengths"]), logits.negative[1].numpy())
    assert weights["input_positive"]["tokens"] == []
    assert sorted(path.name for path in (written / "explanations/3").iterdir()) == ["1.jsonl", "2.jsonl"]
    found = list(read_openai_explanations(written))
    assert [(one["latent"], one["explanation"]) for one in found] == [
        (one["latent"], one["explanation"]) for one in cases.LINES
    ]
    assert [one["scores"] for one in found] == [{}, {"simulation": -0.25, "rsquared_score": 0.5}, {}]


def test_rerun_gives_the_same_bytes_and_clears_old_files(records, tmp_path):
    def write(effects):
        return export_openai(records, effects, WORDS, tmp_path, layer=3)

    write(cases.effects())
    first = everything(tmp_path)
    (tmp_path / "explanations/3/99.jsonl").write_text("old")
    write(cases.effects())
    assert everything(tmp_path) == first
    write(cases.effects()._replace(logits=None))
    assert {name for name in first if "weight" not in name} == set(everything(tmp_path))


def test_a_full_disk_leaves_what_was_there(records, tmp_path, monkeypatch):
    export_openai(records, cases.effects(), WORDS, tmp_path, layer=3)
    before = everything(tmp_path)
    left = tmp_path / "explanations/3/.files.tmp/7.jsonl"  # by a kill
    left.parent.mkdir()
    left.write_text("half")
    export_openai(records, cases.effects(), WORDS, tmp_path, layer=3)
    assert everything(tmp_path) == before

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saefast.files.os.sync", full)
    with pytest.raises(OSError, match="No space left on device: '.*explanations/3'"):
        export_openai(records, cases.effects(), WORDS, tmp_path, layer=3, n_random=1)
    assert everything(tmp_path) == before


def test_another_seed_draws_other_samples(tmp_path, neurons):
    found = cases.records(tmp_path, config=replace(SMALL, seed=1))
    export_openai(found, cases.effects(), WORDS, tmp_path / "out", layer=3, n_random=8)
    for one, other in zip(read_openai(tmp_path / "out"), neurons, strict=True):
        assert one["random_sample"] != other["random_sample"]


def test_several_layers_and_chosen_latents(records, written, tmp_path):
    for layer in (0, 11):
        export_openai(records, cases.effects(), WORDS, tmp_path, layer=layer, n_random=1)
    with pytest.raises(InputError, match=r"one of \[0, 11\]"):
        next(read_openai(tmp_path))
    assert [one["latent"] for one in read_openai(tmp_path, 11, [4, 2])] == [2, 4]
    assert next(read_openai(tmp_path / "collated-activations", 11))["layer"] == 11
    with pytest.raises(InputError, match=r"none of \[77\]"):
        next(read_openai(written, latents=[77]))
    for wrong in (tmp_path / "nowhere", tmp_path / "explanations" / "0"):
        with pytest.raises(InputError, match="found none"):
            next(read_openai(wrong))


@pytest.mark.parametrize("wrong", [{"layer": -1}, {"n_tokens": -1}, {"n_random": 1.5}, {"min_count": True}])
def test_wrong_numbers(records, tmp_path, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: expected a number from 0 on"):
        export_openai(records, cases.effects(), WORDS, tmp_path, **({"layer": 3} | wrong))
    assert not everything(tmp_path)


def test_nothing_asked_for(records, tmp_path):
    export_openai(records, Effects(), WORDS, tmp_path, layer=3, n_random=0, n_tokens=0)
    assert all(one["random_sample"] == [] for one in read_openai(tmp_path))
    assert json.loads((tmp_path / "related-tokens/activation-based/3/0.json").read_text())["tokens"] == []


def sample(**changes):
    return {"tokens": ["a", "b"], "activations": [0.5, -1]} | changes


def record(**changes):
    return {"neuron_id": {"layer_index": 0, "neuron_index": 5}, "random_sample": [sample()]} | changes


def test_what_others_write_is_read(tmp_path):
    """Without class names, with fields of later versions, with negative activations and without what has a default."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "5.json").write_text(json.dumps(record(later=1, mean=float("nan"), variance=2)))
    [found] = read_openai(tmp_path)
    assert found["random_sample"] == [sample()] and found["variance"] == 2 and found["mean"] is None
    assert found["random_sample_by_quantile"] is None and found["most_positive_activation_records"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "[1",
        "[]",
        record(dataclass_name="ActivationRecord"),
        record(neuron_id={"layer_index": 0, "neuron_index": 6}),
        record(neuron_id=None),
        record(random_sample=[sample(activations=[1])]),
        record(random_sample=[sample(activations=[1, float("nan")])]),
        record(random_sample=[sample(activations=[1, True])]),
        record(random_sample=[sample(tokens=["a", 3])]),
        record(random_sample=[None]),
        record(random_sample={}),
        record(most_positive_activation_records=[{}]),
        record(random_sample_by_quantile=[[1]]),
        record(random_sample_by_quantile=7),
        record(quantile_boundaries=["x"]),
        record(kurtosis="x"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, wrong):
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "5.json"
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    with pytest.raises(InputError, match="0/5.json: expected"):
        list(read_openai(tmp_path))


@pytest.mark.parametrize(
    "wrong", [[None], [{"explanation": "x"}], [{"explanation": 1, "scored_simulation": {}}]]
)
def test_a_wrong_file_of_explanations_is_named(tmp_path, wrong):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "5.jsonl").write_text(json.dumps(record(scored_explanations=wrong)) + "\n")
    with pytest.raises(InputError, match="0/5.jsonl: expected"):
        list(read_openai_explanations(tmp_path))
