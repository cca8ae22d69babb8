"""SAEDashboard's own classes, of the version that `make peers` installs, read our batches; we read what they write."""

import json
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from saefast import SAE, SAEConfig
from saefast.interp.exchange.sae_dashboard import export_sae_dashboard, read_sae_dashboard
from tests.helpers.hostile_records import D_IN, DEAD, F, Words, hostile_effects, hostile_records

pytestmark = pytest.mark.skipif(find_spec("sae_dashboard") is None, reason="sae-dashboard is not installed")


@pytest.fixture(scope="module")
def theirs():
    """The module of its classes, alone: its packages import TransformerLens."""
    assert version("sae-dashboard") == "0.8.0"
    file = (
        Path(find_spec("sae_dashboard").submodule_search_locations[0])
        / "neuronpedia/neuronpedia_dashboard.py"
    )
    spec = spec_from_file_location("neuronpedia_dashboard", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with one batch of every key that they have, with vectors."""
    records, _, _ = hostile_records(tmp_path_factory.mktemp("records"))
    folder = tmp_path_factory.mktemp("dashboards")
    about = {"model_id": "tiny", "layer": 3, "sae_set": "s", "sae_id_suffix": "x"}
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=F, k=2))
    export_sae_dashboard(records, hostile_effects(), Words(), folder, sae=sae, **about)
    return folder


def test_their_classes_give_our_batch_back(theirs, written):
    """Their constructors take every key of ours by its name, and none of theirs is missing."""
    batch = json.loads((written / "batch-0.json").read_text())
    made = theirs.NeuronpediaDashboardBatch(**batch)
    assert made.to_dict() == batch
    assert all(type(one) is theirs.NeuronpediaDashboardFeature for one in made.features)
    assert [len(one.activations) > 0 for one in made.features] == [i != DEAD for i in range(F)]
    assert all(type(act) is theirs.NeuronpediaDashboardActivation for act in made.features[0].activations)


def test_we_read_what_their_classes_write(theirs, written, tmp_path):
    """Also where they leave out what they do not know: dfa of an SAE that is not at attention, a suffix."""
    batch = json.loads((written / "batch-0.json").read_text())
    made = theirs.NeuronpediaDashboardBatch(**batch)
    made.sae_id_suffix = None
    (tmp_path / "batch-0.json").write_text(json.dumps(made.to_dict()))
    for again, ours in zip(read_sae_dashboard(tmp_path), read_sae_dashboard(written), strict=True):
        assert again == ours | {"sae_id_suffix": None}
