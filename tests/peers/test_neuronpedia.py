"""Exports beside what Neuronpedia itself does with them: its database, and its converter of SAEDashboard's batches.

They need a checkout of hijohnnylin/neuronpedia, in NEURONPEDIA, and the first one Postgres besides (`apt-get install
postgresql`, as root): they are skipped without.
"""

import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from saefast import SAE, SAEConfig
from saefast.interp.exchange.neuronpedia import export_neuronpedia
from saefast.interp.exchange.sae_dashboard import export_sae_dashboard
from tests.helpers.hostile_records import D_IN, F, Words, hostile_effects, hostile_records
from tests.peers import neuronpedia_database

CHECKOUT = Path(os.environ.get("NEURONPEDIA", "nowhere"))
UTILS = CHECKOUT / "utils/neuronpedia-utils"
CONVERTER = UTILS / "neuronpedia_utils/convert-saedashboard-to-neuronpedia-export.py"
pytestmark = pytest.mark.skipif(not UTILS.exists(), reason="no checkout of neuronpedia (NEURONPEDIA)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(ours, what their converter makes of our batches)."""
    records, _, _ = hostile_records(tmp_path_factory.mktemp("records"))
    folder, effects = tmp_path_factory.mktemp("exports"), hostile_effects()
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=F, k=2))
    ours = export_neuronpedia(
        records,
        effects,
        Words(),
        folder / "ours",
        model_id="tiny",
        source_id="3-set-a__x",
        creator_id="me",
        creator_name="Me",
        description="Mine",
        sae=sae,
    )
    about = {"model_id": "tiny", "layer": 3, "sae_set": "set-a", "sae_id_suffix": "x"}
    export_sae_dashboard(records, effects, Words(), folder / "batches", sae=sae, **about)
    return ours, folder


@pytest.fixture(scope="module")
def converted(exported):
    _, folder = exported
    for name in ("orjson", "typer", "dotenv"):
        if find_spec(name) is None:
            pytest.skip(f"their converter needs {name}")
    options = {
        "saedashboard-output-dir": folder / "batches",
        "creator-name": "Me",
        "release-id": "set-a",
        "release-title": "Mine",
        "url": "",
        "model-name": "tiny",
        "neuronpedia-source-set-id": "set-a",
        "neuronpedia-source-set-description": "Mine",
        "hf-weights-repo-id": "",
        "hf-weights-path": "",
        "hook-point": "hook_resid_post",
        "layer-num": 3,
        "prompts-huggingface-dataset-path": "somewhere",
        "n-prompts-total": 12,
        "n-tokens-in-prompt": 16,
    }
    command = [sys.executable, CONVERTER, *(f"--{name}={value}" for name, value in options.items())]
    env = os.environ | {"PYTHONPATH": str(UTILS), "DEFAULT_CREATOR_ID": "me"}
    answers = "n\n"  # it asks whether bos is to be zeroed
    done = subprocess.run(
        command, check=False, cwd=folder, env=env, input=answers, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "exports" / "tiny" / "3-set-a__x"


def rows(folder, part):
    path = folder / part / "batch-0.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]


def differences(ours, theirs):
    """{key: (ours, theirs)} of a pair of rows; a key that one side lacks is None there."""
    keys = ours.keys() | theirs.keys()
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def test_their_converter_makes_the_same_features_of_our_batches(exported, converted):
    """But for: an index is a number there (the column is text), it knows no neighbours, and it does not say which set it is of."""
    ours, _ = exported
    pairs = list(zip(rows(ours, "features"), rows(converted, "features"), strict=True))
    assert len(pairs) == F
    for mine, their in pairs:
        apart = differences(mine, their)
        expected = {"index", "createdAt", "sourceSetName", "topkCosSimIndices", "topkCosSimValues"}
        assert set(apart) == expected
        assert apart["index"] == (str(their["index"]), their["index"])
        assert apart["sourceSetName"] == ("set-a", None)
        assert apart["topkCosSimIndices"] == (mine["topkCosSimIndices"], [])
        assert mine["hookName"] == "blocks.3.hook_resid_post" and len(mine["vector"]) == D_IN


def test_their_converter_makes_the_same_activations_of_our_batches(exported, converted):
    """But for ids, which are counted there; its z-values of attention are null, ours are not in the row."""
    ours, _ = exported
    pairs = list(zip(rows(ours, "activations"), rows(converted, "activations"), strict=True))
    assert len(pairs) > 100
    for mine, their in pairs:
        apart = differences(mine, their)
        assert set(apart) == {"id", "index", "createdAt"}
        assert apart["index"] == (str(their["index"]), their["index"])


@pytest.mark.parametrize("name", ["release", "model", "sourceset", "source"])
def test_their_converter_writes_the_same_about_it(name, exported, converted):
    """But for the width of the model, its owner, and that it calls on an inference server, which ours has not."""
    ours, theirs = (json.loads((folder / f"{name}.jsonl").read_text()) for folder in (exported[0], converted))
    expected = {
        "release": {"createdAt", "isNewUi"},
        "model": {"createdAt", "updatedAt", "dimension", "owner", "inferenceEnabled"},
        "sourceset": {"createdAt"},
        "source": {"createdAt", "hfRepoId", "hfFolderId"},
    }[name]
    assert set(differences(ours, theirs)) == expected, differences(ours, theirs)
    assert ours.keys() == theirs.keys()


def test_their_database_takes_both(exported, converted):
    """Ours whole, twice, value by value; then theirs of the same latents, whose rows are there already but for the activations."""
    if not any(Path("/usr/lib/postgresql").glob("*/bin")) or os.geteuid() != 0:
        pytest.skip("no Postgres, or not root")
    ours, _ = exported
    server = neuronpedia_database.Postgres(CHECKOUT)
    try:
        added = neuronpedia_database.check(server, ours, every=1)
        n = len(rows(ours, "activations"))
        assert added["Neuron"] == F and added["Activation"] == n and added["Explanation"] == 2
        assert added["ExplanationScore"] == added["ExplanationScoreType"] == 1
        again = server.fill(converted)
        assert again["Activation"] == n and again["Neuron"] == 0 == again["Source"]
    finally:
        server.close()
