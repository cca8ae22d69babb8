"""What SAEDashboard's and Neuronpedia's files say of a latent, against the code and the effects themselves."""

import json

import numpy as np
import pytest
import torch

from saefast import SAE, SAEConfig
from saefast.errors import InputError
from saefast.interp.effects import Effects
from saefast.interp.exchange import neuronpedia
from saefast.interp.exchange.dashboards import SHOWN, dashboards
from saefast.interp.exchange.neuronpedia import export_neuronpedia
from saefast.interp.exchange.sae_dashboard import export_sae_dashboard, read_sae_dashboard
from tests.helpers.hostile_records import (
    D_IN,
    DEAD,
    IDS,
    LENGTH,
    F,
    M,
    Words,
    hostile_effects,
    hostile_records,
    rows,
    string,
)

LIVE = [i for i in range(F) if i != DEAD]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return hostile_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def features(made):
    [found] = dashboards(made[0], hostile_effects(), Words(), SHOWN)
    return found


def test_histograms_by_numpy(made, features):
    """np.histogram over (0, max]; bars stand at the middles of their bins."""
    _, code, _ = made
    for latent in LIVE:
        acts = code[latent][code[latent] > 0].astype(np.float64)
        heights, edges = np.histogram(acts, bins=44, range=(0, acts.max()))
        assert features[latent]["freq_hist_data_bar_heights"] == heights.tolist()
        middles = (edges[1:] + edges[:-1]) / 2
        assert np.allclose(features[latent]["freq_hist_data_bar_values"], middles, rtol=1e-6, atol=0)
        assert features[latent]["frac_nonzero"] == len(acts) / code[latent].size
    dead = features[DEAD]
    assert (
        dead["freq_hist_data_bar_values"] == dead["freq_hist_data_bar_heights"] == dead["activations"] == []
    )


def test_effects_under_their_names(features):
    effects = hostile_effects()
    for latent, one in enumerate(features):
        logits, align = effects.logits, effects.alignment
        for sign, name in (("pos", "positive"), ("neg", "negative")):
            tokens = getattr(logits, f"{name}_tokens")[latent].tolist()
            assert one[f"{sign}_str"] == [string(token) for token in tokens]
            assert np.array_equal(np.float32(one[f"{sign}_values"]), getattr(logits, name)[latent].numpy())
        low, high = float(logits.lowest[latent]), float(logits.highest[latent])
        assert low < high and one["logits_hist_data_bar_heights"] == [1.0] * 5
        wanted = low + (high - low) * np.array([0.1, 0.3, 0.5, 0.7, 0.9])
        assert np.allclose(one["logits_hist_data_bar_values"], wanted, rtol=0, atol=1e-6)
        for key, table in (("features", effects.correlated), ("neurons", effects.correlated_neurons)):
            assert one[f"correlated_{key}_indices"] == table.indices[latent, :1].tolist() != []
            pearson = np.float32(one[f"correlated_{key}_pearson"])
            assert np.array_equal(pearson, table.values[latent, :1].numpy())
        for key in align._fields:
            found = np.asarray(one[f"neuron_alignment_{key}"], np.float32)
            assert np.array_equal(found, getattr(align, key)[latent].float().numpy())
    about = {key: features[0][key] for key in ("n_prompts_total", "n_tokens_in_prompt", "dataset")}
    assert about == {"n_prompts_total": M, "n_tokens_in_prompt": LENGTH, "dataset": "somewhere"}


def test_bins_by_brute_force(made, features):
    """Every example of a bin is in it, and it says how many tokens (of a quantile group: contexts) there are."""
    records, code, _ = made
    for latent in LIVE:
        acts = code[latent].astype(np.float64)
        peaks = code[latent].reshape(M, LENGTH).max(1)
        peaks = np.sort(peaks[peaks > 0])
        n, m = records.config.n_quantiles, len(peaks)
        groups = [peaks[i * m // n : (i + 1) * m // n] for i in range(n)]
        for one in features[latent]["activations"]:
            here = (one["bin_min"], one["bin_max"], one["bin_contains"])
            act, part = one["values"][one["qualifying_token_index"]], one["bin"]
            assert act > 0
            if one["group"] == "top":
                assert here[::2] == (-1, -1) and np.float32(here[1]) == code[latent].max()
            elif one["group"] == "interval":
                width = acts.max() / records.config.n_intervals
                assert np.allclose(here[:2], (part * width, (part + 1) * width), rtol=1e-6, atol=1e-9)
                inside = (acts > 0) & (np.minimum(acts // width, records.config.n_intervals - 1) == part)
                assert here[2] == inside.sum() / acts.size
                assert np.float32(here[0]) <= np.float32(act) <= np.float32(here[1])
            else:
                lows, highs = groups[part].min(), groups[part].max()
                assert (np.float32(here[0]), np.float32(here[1])) == (lows, highs)
                assert here[2] == len(groups[part]) / m
                assert lows <= np.float32(act) <= highs
    assert {one["group"] for one in features[0]["activations"]} == set(SHOWN)


def test_wrong_arguments(made):
    records, short = made[0], hostile_effects()
    cut = short.logits._replace(**{key: t[:-1] for key, t in short.logits._asdict().items()})
    with pytest.raises(InputError, match="expected 7 latents, logits has 6"):
        next(dashboards(records, short._replace(logits=cut), Words()))

    class Few(Words):
        strings, raw = Words.strings[:-1], Words.raw[:-1]

        def __len__(self):
            return len(self.raw)

    assert records.text.contexts.max() == len(Words()) - 1
    with pytest.raises(InputError, match=f"ids below {len(Words()) - 1}, the text has token"):
        next(dashboards(records, Effects(), Few()))


def test_vectors_and_rows_of_neuronpedia(made, tmp_path):
    records, code, _ = made
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=F, k=2))
    with_sae = export_neuronpedia(records, hostile_effects(), Words(), tmp_path / "a", **IDS, sae=sae)
    without = export_neuronpedia(records, hostile_effects(), Words(), tmp_path / "b", **IDS)
    for latent, (one, bare) in enumerate(zip(rows(with_sae, "features"), rows(without, "features"))):
        assert torch.equal(torch.tensor(one["vector"]), sae.params.W_dec[latent])
        assert one["hasVector"] and np.float32(one["vectorDefaultSteerStrength"]) == code[latent].max()
        assert (bare["vector"], bare["hasVector"], bare["vectorDefaultSteerStrength"]) == ([], False, 10.0)
        assert np.float32(bare["topkCosSimValues"]) == hostile_effects().decoder.values[latent, 0]
    activations = rows(without, "activations")
    one = {"values": [2.0, 1.0, 3.0], "tokens": list("abc"), "qualifying_token_index": 0, "group": "top"}
    one |= {"bin": 0, "rank": 0, "bin_min": -1, "bin_max": 3.0, "bin_contains": -1}
    row = neuronpedia._activation({"modelId": "m", "layer": "3-a"}, {}, 1, one)
    assert (row["minValue"], row["maxValue"], row["maxValueTokenIndex"]) == (1.0, 3.0, 2)
    off = [row["maxValueTokenIndex"] != row["qualifyingTokenIndex"] for row in activations]
    assert any(off) and all(
        row["values"][row["maxValueTokenIndex"]] == row["maxValue"] for row in activations
    )
    paths = export_sae_dashboard(
        records,
        Effects(),
        Words(),
        tmp_path / "c",
        model_id="m",
        layer=3,
        sae_set="s",
        sae_id_suffix="x",
        sae=sae,
    )
    batches = list(read_sae_dashboard(paths[0].parent))
    assert [one["vector"] for one in batches] == sae.params.W_dec.tolist()
    assert {(one["layer"], one["sae_id_suffix"]) for one in batches} == {(3, "x")}


def test_files_of_neuronpedia(made, tmp_path):
    """Ids tell explanations of a latent and sources apart; no time of day is in the files; what the small tables say."""
    records, _, _ = made
    lines = (records.folder / "explanations.jsonl").read_text()
    (records.folder / "explanations.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    try:
        folder, other = (
            export_neuronpedia(records, hostile_effects(), Words(), tmp_path, **IDS | {"source_id": source})
            for source in ("3-a", "4-a")
        )
    finally:
        (records.folder / "explanations.jsonl").write_text(lines)
    for part, n in (("activations", 200), ("explanations", 3)):
        ids = [row["id"] for of in (folder, other) for row in rows(of, part)]
        assert len(set(ids)) == len(ids) >= 2 * n
    headers = [path.read_bytes()[4:8] for path in folder.glob("*/*.gz")]
    assert headers == [b"\0\0\0\0"] * 4
    about = {name: json.loads((folder / f"{name}.jsonl").read_text()) for name in ABOUT}
    for name, wanted in ABOUT.items():
        assert {key: about[name][key] for key in wanted} == wanted, name
        assert about[name]["creatorId"] == "me" and about[name]["visibility"] == "PUBLIC"


ABOUT = {
    "release": {"name": "a", "isNewUi": True, "description": "7 latents"},
    "model": {"id": "tiny", "dimension": D_IN, "instruct": False},
    "sourceset": {"modelId": "tiny", "name": "a", "releaseName": "a", "description": "7 latents"},
    "source": {"modelId": "tiny", "id": "3-a", "setName": "a", "num_prompts": M}
    | {"num_tokens_in_prompt": LENGTH, "dataset": "somewhere", "hasDashboards": True},
}


def test_batches_in_order_and_whole(made, tmp_path):
    about = {"model_id": "m", "layer": 3, "sae_set": "s"}
    for name in ("batch-1.json", "batch-10.json", "batch-x.json"):
        (tmp_path / name).write_text("{}")
    [path] = export_sae_dashboard(made[0], Effects(), Words(), tmp_path, **about)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["batch-0.json", "batch-x.json"]
    batch = json.loads(path.read_text())
    for number in (10, 9):
        for feature in batch["features"]:
            feature["feature_index"] = number
        (tmp_path / f"batch-{number}.json").write_text(json.dumps(batch))
    assert [one["feature_index"] for one in read_sae_dashboard(tmp_path)] == [*range(F), *[9] * F, *[10] * F]
    batch["features"][0]["activations"][0]["values"].pop()
    path.write_text(json.dumps(batch))
    with pytest.raises(InputError, match="feature 9 has tokens without values"):
        list(read_sae_dashboard(tmp_path))
