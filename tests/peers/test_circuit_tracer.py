"""What we write for circuit-tracer, read by its own models, server and pages, and by Neuronpedia's schema.

PyPI's circuit-tracer, a fork, has its models. A checkout of decoderesearch/circuit-tracer on PYTHONPATH (commit 4bb8c0e) has the
server and the pages as well, whose JavaScript Node runs. $NEURONPEDIA is a checkout of hijohnnylin/neuronpedia.
"""

import inspect
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from saefast.interp.exchange.circuit_tracer import (
    escaped,
    export_circuit_tracer,
    pair_id,
    read_circuit_tracer,
)
from tests.helpers import exchange_records as cases
from tests.helpers.exchange_records import WORDS, F

feature_models = pytest.importorskip("circuit_tracer.frontend.feature_models")
LAYERS = (0, 7)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    records = cases.records(tmp_path_factory.mktemp("records"))
    out = tmp_path_factory.mktemp("out")
    for layer in LAYERS:
        export_circuit_tracer(records, cases.effects(), WORDS, out, layer=layer, scan="/features")
        export_circuit_tracer(
            records, cases.effects(), WORDS, out / "single", layer=layer, scan="x", a_file_each=True
        )
    return out


def pages(written):
    return [read_circuit_tracer(written, layer, latent) for layer in LAYERS for latent in range(F)]


def test_their_models_take_every_page(written):
    for page in pages(written):
        assert feature_models.Model.model_validate(page, strict=True).model_dump() == page
    for path in (written / "single/features").glob("*.json"):
        feature_models.Model.model_validate_json(path.read_bytes(), strict=True)


def test_their_graphs_number_the_latents_alike():
    graph_models = pytest.importorskip("circuit_tracer.frontend.graph_models")
    for layer, latent in ((0, 0), (5, 17), (31, 163_839)):
        assert graph_models.Node.feature_node(layer, 2, latent).feature == pair_id(layer, latent)


def test_neuronpedias_schema_takes_every_page(written):
    jsonschema = pytest.importorskip("jsonschema")
    checkout = os.environ.get("NEURONPEDIA")
    if checkout is None:
        pytest.skip("$NEURONPEDIA names no checkout")
    schema = json.loads(
        (Path(checkout) / "apps/webapp/app/api/graph/feature-details-schema.json").read_text()
    )
    for page in pages(written):
        jsonschema.validate(page, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"index": 1}, schema)


def run_their_pages(features_dir, ids, feature):
    """Their server on our folder, and their JavaScript in Node."""
    local_server = pytest.importorskip("circuit_tracer.frontend.local_server")
    if "features_dir" not in inspect.signature(local_server.serve).parameters:
        pytest.skip("a circuit-tracer that serves no features of one's own")
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    server = local_server.serve(str(features_dir), features_dir=str(features_dir), port=port)
    try:
        script, assets = (
            Path(__file__).with_name("circuit_tracer_pages.js"),
            local_server.DEFAULT_FRONTEND_DIR,
        )
        command = [node, str(script), str(assets), f"http://127.0.0.1:{port}/"]
        given = json.dumps({"ids": ids, "feature": feature})
        result = subprocess.run(
            command, check=False, input=given, capture_output=True, text=True, timeout=120
        )
    finally:
        server.httpd.shutdown()  # before its own stop(), which closes a socket that is listened on
        server.stop()
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_their_pages_load_and_show_what_was_written(written):
    texts = [
        b" a",
        b"\xe2\x82",
        b"\xac",
        b" b",
        rb"\x41",
        b" c",
        b"\xf0\x9f",
        b"\x98",
        b"\x80",
        b"a\0b",
        b"\n",
    ]
    acts = [float(i) for i in range(len(texts))]  # neighbours with the same activation are one on their pages
    example = {"tokens": [escaped(raw) for raw in texts], "tokens_acts_list": acts, "train_token_ind": 2}
    feature = {"examples_quantiles": [{"quantile_name": "Top", "examples": [example]}]}
    ids = [pair_id(layer, latent) for layer in LAYERS for latent in range(F)]
    found = run_their_pages(written / "features", ids, feature)
    own = [{"colorScale", "featureIndex", "scan"} & set(page) for page in found["loaded"]]
    assert own == [{"featureIndex", "scan"}] * len(ids)
    for page, one in zip(found["loaded"], pages(written), strict=True):
        assert {key: value for key, value in page.items() if key not in ("featureIndex", "scan")} == one
    assert found["shown"] == [[" a", "\u20ac", " b", r"\x41 c", "\U0001f600", "a\0b", "\n"]]
