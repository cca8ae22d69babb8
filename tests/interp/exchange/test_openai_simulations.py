"""Simulations in OpenAI's files: what they are, that everything comes back, and other people's explanations into records."""

import json
import shutil

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.exchange.delphi_explanations import export_delphi_explanations
from saefast.interp.exchange.import_explanations import import_explanations
from saefast.interp.exchange.neuronpedia import export_neuronpedia
from saefast.interp.exchange.openai import export_openai
from saefast.interp.exchange.openai_read import read_openai_explanations, read_openai_simulations
from saefast.interp.exchange.openai_simulations import Places, scores_of
from saefast.interp.explanations import EXPLANATIONS, read_explanations, write_explanations
from saefast.interp.records import Records
from saefast.interp.simulations import Simulations, read_simulations
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import WORDS, F, everything
from tests.helpers.hostile_records import IDS

NEURON, NORMALIZED = "neuron_activations", "simulated_normalized_activations"
DEAD = F - 1
LENGTH = 8


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of records; (4, "m", None) has no simulations."""
    return cases.records(tmp_path_factory.mktemp("bare")).folder


def windows(latent, n=3, scale=NEURON, **changes):
    rng = np.random.default_rng(latent)
    expected = rng.gamma(1.0, 2.0, (n, LENGTH)) * (rng.random((n, LENGTH)) < 0.5)
    slots = [24 * i + 16 * (i % 2) for i in range(n)]
    return [
        {"slot": slot, "length": LENGTH, "expected": row, "scale": scale} | changes
        for slot, row in zip(slots, expected, strict=True)
    ]


@pytest.fixture(scope="module")
def records(bare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "records"
    shutil.copytree(bare, folder)
    keys = [(2, "a", "g"), (2, "b", None), (1, None, None), (4, "m", None), (DEAD, "a", None)]
    lines = [
        {"latent": i, "explanation": f"{i} {m}", "method": m, "model": g, "scores": {"simulation": 0.75}}
        for i, m, g in keys
    ]
    write_explanations(folder, lines)
    per_token = {"distribution_values": [[0.0, 7.5]] * LENGTH}
    per_token["distribution_probabilities"] = [[0.1, 0.9]] * LENGTH
    kept = Simulations(folder)
    kept.append(2, "b", None, windows(2, scale=NORMALIZED, **per_token))
    kept.append(2, "a", "g", windows(20))
    kept.append(1, None, None, windows(1, expected=[1.0] * LENGTH))
    kept.append(DEAD, "a", None, windows(9))
    kept.close()
    return Records(folder)


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    return export_openai(records, cases.effects(), WORDS, tmp_path_factory.mktemp("out"), layer=3)


def scored(written, latent):
    text = (written / f"explanations/3/{latent}.jsonl").read_text()
    return json.loads(text)["scored_explanations"]


def test_simulations_are_those_of_the_windows(records, written):
    code, flat = cases.dense(records).reshape(F, -1), records.text.contexts.ravel()
    first, second = scored(written, 2)
    assert [first["explanation"], second["explanation"]] == ["2 a", "2 b"]
    for one, given in ((first, windows(20)), (second, windows(2))):
        sequences = one["scored_simulation"]["scored_sequence_simulations"]
        assert len(sequences) == len(given) == 3
        for found, wanted in zip(sequences, given, strict=True):
            part = slice(wanted["slot"], wanted["slot"] + LENGTH)
            simulation = found["simulation"]
            assert found["true_activations"] == code[2, part].tolist()  # eighths: exact as decimals
            assert simulation["tokens"] == [WORDS.strings[i] for i in flat[part].tolist()]
            assert simulation["expected_activations"] == [float(f"{x:.4g}") for x in wanted["expected"]]
            assert simulation["uncalibrated_simulation"] is None
            assert found["dataclass_name"] == "ScoredSequenceSimulation"
            assert simulation["dataclass_name"] == "SequenceSimulation"
    assert any(any(one["true_activations"]) for one in sequences)
    assert simulation["activation_scale"] == NORMALIZED and simulation["distribution_values"][7] == [0, 7.5]
    assert simulation["distribution_probabilities"] == [[0.1, 0.9]] * LENGTH
    plain = first["scored_simulation"]["scored_sequence_simulations"][0]["simulation"]
    assert plain["activation_scale"] == NEURON and plain["distribution_values"] == []


def test_scores_are_of_all_tokens(written):
    of_all = scored(written, 2)[0]["scored_simulation"]
    sequences = of_all["scored_sequence_simulations"]
    parts = [(one["true_activations"], one["simulation"]["expected_activations"]) for one in sequences]
    for one, (x, y) in [
        *zip(sequences, parts, strict=True),
        (of_all, tuple(map(sum, zip(*parts), [[], []]))),
    ]:
        x, y = np.asarray(x), np.asarray(y)
        r = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
        assert one["ev_correlation_score"] == pytest.approx(r, abs=1e-12)
        assert one["rsquared_score"] == pytest.approx(1 - ((x - y) @ (x - y)) / (x @ x))
        assert one["absolute_dev_explained_score"] == pytest.approx(1 - np.abs(x - y).sum() / x.sum())
    assert of_all["ev_correlation_score"] != 0.75  # that of explanations.jsonl
    names = ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score")
    [dead], [constant], [none] = scored(written, DEAD), scored(written, 1), scored(written, 4)
    assert [dead["scored_simulation"][name] for name in names] == [None] * 3
    assert constant["scored_simulation"]["ev_correlation_score"] is None
    assert constant["scored_simulation"]["rsquared_score"] is not None
    assert [none["scored_simulation"][name] for name in names] == [0.75, None, None]
    assert none["scored_simulation"]["scored_sequence_simulations"] == []


def test_a_constant_is_not_correlated_by_rounding():
    x = [0.1, 0.2, 0.7] * 4
    assert scores_of(x, [0.1] * 12)["ev_correlation_score"] is None
    assert scores_of([0.1] * 12, x)["ev_correlation_score"] is None


def test_round_trip_gives_the_same_bytes(bare, written, tmp_path):
    fresh = tmp_path / "fresh"
    shutil.copytree(bare, fresh)
    (fresh / EXPLANATIONS).unlink()
    found = import_explanations(fresh, written, "openai", strings=WORDS.strings)
    assert found == (5, 4, 0)
    methods = [(one["latent"], one["method"]) for one in read_explanations(fresh)]
    name = "oai_token-act-pair"
    assert methods == [(1, name), (2, name), (2, f"{name}-2"), (4, name), (DEAD, name)]
    out = export_openai(Records(fresh), cases.effects(), WORDS, tmp_path / "out", layer=3)
    assert everything(out) == everything(written)
    assert len(list(read_simulations(fresh))) == 4
    before = everything(fresh)
    import_explanations(fresh, written, "openai", strings=WORDS.strings)
    assert len(list(read_simulations(fresh))) == 4  # in place of those of the first time
    assert before[EXPLANATIONS] == (fresh / EXPLANATIONS).read_bytes()
    again = export_openai(Records(fresh), cases.effects(), WORDS, tmp_path / "again", layer=3)
    assert everything(again) == everything(written)


def test_simulations_of_an_explanation_that_is_replaced_go(bare, written, tmp_path):
    fresh = tmp_path / "fresh"
    shutil.copytree(bare, fresh)
    import_explanations(fresh, written, "openai", strings=WORDS.strings)
    assert import_explanations(fresh, written, "openai") == (5, 0, 0)
    assert list(read_simulations(fresh)) == []


def test_text_that_is_elsewhere(bare, written, tmp_path):
    fresh, other = tmp_path / "fresh", tmp_path / "other"
    shutil.copytree(bare, fresh)
    shutil.copytree(written / "explanations", other)
    path = other / "3/2.jsonl"
    value = json.loads(path.read_text())
    sequences = value["scored_explanations"][0]["scored_simulation"]["scored_sequence_simulations"]
    sequences[1]["simulation"]["tokens"][3] = "elsewhere"
    path.write_text(json.dumps(value) + "\n")
    assert import_explanations(fresh, other, "openai", strings=WORDS.strings) == (5, 3, 1)
    kept = {(row["latent"], row["method"]) for row in read_simulations(fresh)}
    assert (2, "oai_token-act-pair") not in kept and (2, "oai_token-act-pair-2") in kept


def test_places_of_windows_that_are_there_twice(tmp_path):
    contexts = np.zeros((6, 24), np.int32)  # the same token everywhere, but for one
    contexts[3, 5], contexts[1, 23], contexts[2, 0] = 1, 4, 6
    records = cases.records(tmp_path, contexts=contexts)
    code, places = cases.dense(records).reshape(F, -1), Places(records, WORDS.strings)
    zero = WORDS.strings[0]
    for latent in (0, 3, DEAD):
        for slot in (0, 7, 24, 60, 130, 136):
            truth = code[latent, slot : slot + LENGTH].tolist()
            found = places.find(latent, [zero] * LENGTH, truth)
            assert found is not None and found % 24 <= 24 - LENGTH
            assert code[latent, found : found + LENGTH].tolist() == truth
    tokens = [zero] * 3 + [WORDS.strings[1]]
    at = 3 * 24 + 5 - 3
    assert places.find(DEAD, tokens, [0.0] * 4) == at
    active = int(code[:, at + 3].argmax())
    truth = code[active, at : at + 4]
    assert places.find(active, tokens, (truth * 1.0004).tolist()) == at
    assert places.find(active, tokens, (truth * 1.01).tolist()) is None
    assert places.find(DEAD, tokens, (truth + 1).tolist()) is None
    assert places.find(DEAD, [*tokens, "nowhere"], [0.0] * 5) is None
    assert (
        places.find(DEAD, [zero] * 24, [0.0] * 24) == 0 and places.find(DEAD, [zero] * 25, [0.0] * 25) is None
    )
    assert places.find(DEAD, [], []) is None
    assert (
        places.find(DEAD, [WORDS.strings[4], WORDS.strings[6]], [0.0] * 2) is None
    )  # from one context to the next


@pytest.mark.parametrize("slot", [20, 12 * 24 - 7, 10_000])
def test_windows_that_are_not_in_a_context(bare, tmp_path, slot):
    shutil.copytree(bare, tmp_path / "records")
    kept = Simulations(tmp_path / "records")
    kept.append(2, "m", "g", windows(2, n=1, slot=slot))
    kept.close()
    with pytest.raises(
        InputError, match=f"latent 2: expected windows in one of the contexts, got slot {slot}"
    ):
        export_openai(Records(tmp_path / "records"), cases.effects(), WORDS, tmp_path / "out", layer=3)


def test_other_layouts_are_imported(records, bare, tmp_path):
    fresh = tmp_path / "fresh"
    shutil.copytree(bare, fresh)
    (fresh / EXPLANATIONS).unlink()
    ids = IDS | {"source_id": "3-a"}
    neuronpedia = export_neuronpedia(records, cases.effects(), WORDS, tmp_path / "np", **ids)
    assert import_explanations(fresh, neuronpedia, "neuronpedia") == (5, 0, 0)
    wanted = sorted(read_explanations(records.folder), key=lambda one: one["latent"])
    assert read_explanations(fresh) == wanted
    export_delphi_explanations(wanted[:1], tmp_path / "delphi", hookpoint="x")
    assert import_explanations(fresh, tmp_path / "delphi", "delphi") == (1, 0, 0)
    assert read_explanations(fresh)[-1]["method"] == "delphi" and len(read_explanations(fresh)) == 6


def test_latents_that_are_not_there(bare, written, tmp_path):
    fresh, other = tmp_path / "fresh", tmp_path / "other"
    shutil.copytree(bare, fresh)
    before = everything(fresh)
    shutil.copytree(written / "explanations", other)
    text = (other / "3/4.jsonl").read_text().replace('"neuron_index":4', f'"neuron_index":{F}')
    (other / f"3/{F}.jsonl").write_text(text)
    with pytest.raises(
        InputError, match=f"other: expected explanations of latents 0 to {F - 1}.* latent {F}"
    ):
        import_explanations(fresh, other, "openai", strings=WORDS.strings)
    with pytest.raises(InputError, match="layout: expected one of openai, neuronpedia, delphi, got 'x'"):
        import_explanations(fresh, other, "x")
    with pytest.raises(InputError, match="layer: expected only with openai"):
        import_explanations(fresh, other, "delphi", layer=1)
    with pytest.raises(InputError, match="found none"):
        import_explanations(fresh, other, "delphi")
    assert everything(fresh) == before


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"simulation": None},
        {"true_activations": [1]},
        {"true_activations": [1, float("nan")]},
        {"simulation": {"expected_activations": [1]}},
        {"simulation": {"expected_activations": [1, None]}},
        {"simulation": {"activation_scale": "other"}},
        {"simulation": {"tokens": ["a", 1]}},
    ],
)
def test_wrong_simulations_are_named(tmp_path, wrong):
    simulation = {"tokens": ["a", "b"], "expected_activations": [1, 0], "activation_scale": NEURON}
    good = {"simulation": simulation, "true_activations": [2, 3]}
    if wrong is not None:
        inner = wrong.get("simulation", {})
        wrong = good | wrong | ({"simulation": simulation | inner} if inner else {})
    (tmp_path / "0").mkdir()

    def write(*sequences):
        of = [{"explanation": "x", "scored_simulation": {"scored_sequence_simulations": sequences}}]
        neuron = {"layer_index": 0, "neuron_index": 5}
        (tmp_path / "0/5.jsonl").write_text(json.dumps({"neuron_id": neuron, "scored_explanations": of}))

    write(good)
    [found] = read_openai_simulations(tmp_path)
    assert found["simulations"] == [
        {"tokens": ["a", "b"], "true_activations": [2, 3], "expected": [1, 0], "scale": NEURON}
    ]
    write(good, wrong)
    assert len(list(read_openai_explanations(tmp_path))) == 1
    with pytest.raises(InputError, match="0/5.jsonl: expected"):
        list(read_openai_simulations(tmp_path))
