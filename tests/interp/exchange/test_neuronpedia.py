"""Neuronpedia's export and upload, and SAEDashboard's batches, against the records themselves."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.exchange.neuronpedia import export_neuronpedia, read_neuronpedia_explanations
from saefast.interp.exchange.neuronpedia_upload import upload, upload_batches
from saefast.interp.exchange.sae_dashboard import export_sae_dashboard, read_sae_dashboard
from saefast.interp.explanations import write_explanations
from tests.helpers.hostile_records import (
    DEAD,
    GROUPS,
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


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return hostile_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def effects():
    return hostile_effects()


def test_export_is_what_the_code_says(records, effects, tmp_path):
    records, code, contexts = records
    folder = export_neuronpedia(records, effects, Words(), tmp_path, **IDS)
    assert folder == tmp_path / "tiny" / "3-set-a__x"
    features, activations = rows(folder, "features"), rows(folder, "activations")
    assert [row["index"] for row in features] == [str(i) for i in range(F)]
    assert len({row["id"] for row in activations}) == len(activations)
    assert all(len(row["id"]) == 25 and list(row) == list(activations[0]) for row in activations)
    for i, feature in enumerate(features):
        mine = [row for row in activations if row["index"] == str(i)]
        assert feature["frac_nonzero"] == (code[i] > 0).sum() / code[i].size
        assert sum(feature["freq_hist_data_bar_heights"]) == (code[i] > 0).sum()
        assert np.float32(feature["maxActApprox"]) == code[i].max()
        assert feature["pos_str"] == [string(t) for t in effects.logits.positive_tokens[i].tolist()]
        assert feature["topkCosSimIndices"] == [1] and len(feature["topkCosSimValues"]) == 1
        assert feature["sourceSetName"] == "set-a" and feature["hookName"] == "blocks.3.hook_resid_post"
        assert bool(mine) == (i != DEAD)
        examples = records.latent(i).examples
        wanted = [one for group in GROUPS for one in examples[group]]
        assert len(wanted) == len(mine)
        for row, one in zip(mine, wanted, strict=True):
            assert row["tokens"] == [
                string(t) for t in contexts[one.context, one.start :][: len(one.tokens)].tolist()
            ]
            dense = code[i].reshape(M, LENGTH)[one.context, one.start :][: len(one.tokens)]
            assert np.array_equal(np.float32(row["values"]), dense)
            assert np.float32(row["values"][row["qualifyingTokenIndex"]]) == np.float32(one.act)
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
            act = np.float32(one.act)
            if one.group == "top":
                assert (row["binMin"], row["binContains"]) == (-1, -1) and row["binMax"] == feature[
                    "maxActApprox"
                ]
            else:
                assert np.float32(row["binMin"]) <= act <= np.float32(row["binMax"])
                assert 0 < row["binContains"] <= 1
        if mine:
            shares = {row["binMin"]: row["binContains"] for row in mine[:-1] if row["binMin"] != -1}
            assert shares
    assert [row["description"] for row in rows(folder, "explanations")] == ["x" * 600, "nul  \U0001f600"]
    back = list(read_neuronpedia_explanations(folder))
    assert [(one["latent"], one["method"], one["model"]) for one in back] == [(1, "m", None), (2, "m", "g")]
    raw = b"".join(gzip.decompress(p.read_bytes()) for p in folder.glob("*/*.gz"))
    assert b"\\u0000" not in raw


def test_interval_shares_are_of_all_tokens(records, effects, tmp_path):
    records, code, _ = records
    folder = export_neuronpedia(records, effects, Words(), tmp_path, **(IDS | {"groups": ("interval",)}))
    for row in rows(folder, "activations"):
        acts = code[int(row["index"])]
        inside = (acts > 0) & (acts >= np.float32(row["binMin"])) & (acts <= np.float32(row["binMax"]))
        assert row["binContains"] == pytest.approx(inside.mean())


def test_rerun_gives_the_same_bytes_and_clears_old_files(records, effects, tmp_path):
    def everything():
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    folder = export_neuronpedia(records[0], effects, Words(), tmp_path, **IDS)
    first = everything()
    (folder / "features" / "batch-9.jsonl.gz").write_bytes(b"old")
    export_neuronpedia(records[0], effects, Words(), tmp_path, **IDS)
    assert everything() == first


def test_explanations_and_scores_come_back(records, effects, tmp_path):
    records = records[0]
    before = (records.folder / "explanations.jsonl").read_bytes()
    lines = [
        {"latent": 4, "explanation": "a", "method": None, "model": None, "scores": {"x": -0.25, "y": 1.5}},
        {"latent": 0, "explanation": "b", "method": "m", "model": "g", "scores": {"x": 0.1 + 0.2}},
        {"latent": 4, "explanation": "a", "method": "m", "model": "g", "scores": {}},
        {"latent": 4, "explanation": "a", "method": "n", "model": "g", "scores": {"x": 1}},
    ]
    try:
        write_explanations(records.folder, lines)
        folder = export_neuronpedia(records, effects, Words(), tmp_path, **IDS)
    finally:
        (records.folder / "explanations.jsonl").write_bytes(before)
    assert list(read_neuronpedia_explanations(folder)) == [lines[1], lines[0], *lines[2:]]
    scores = rows(folder, "explanation_scores")
    assert len({row["id"] for row in scores}) == 4 and {row["initiatedByUserId"] for row in scores} == {"me"}
    assert {row["explanationId"] for row in scores} < {row["id"] for row in rows(folder, "explanations")}
    for path in folder.glob("explanation_scores/*"):  # as what is downloaded from Neuronpedia
        path.unlink()
    assert all(one["scores"] == {} for one in read_neuronpedia_explanations(folder))
    (folder / "explanation_scores/batch-0.jsonl").write_text('{"explanationId": "x", "value": 1}\n')
    with pytest.raises(InputError, match="batch-0.jsonl: expected lines with an explanation, a type"):
        list(read_neuronpedia_explanations(folder))
    with pytest.raises(InputError, match="found none"):
        list(read_neuronpedia_explanations(tmp_path))


@pytest.mark.parametrize("wrong", [{"source_id": "Set"}, {"model_id": "../x"}, {"groups": ("random",)}])
def test_wrong_ids(records, effects, tmp_path, wrong):
    with pytest.raises(InputError, match="expected"):
        export_neuronpedia(records[0], effects, Words(), tmp_path, **(IDS | wrong))


def test_sae_dashboard_comes_back(records, effects, tmp_path):
    paths = export_sae_dashboard(
        records[0], effects, Words(), tmp_path, model_id="tiny", layer=3, sae_set="s"
    )
    assert [path.name for path in paths] == ["batch-0.json"]
    found = list(read_sae_dashboard(tmp_path))
    assert [one["feature_index"] for one in found] == list(range(F)) and found[0]["sae_set"] == "s"
    assert found[DEAD]["activations"] == [] and found[0]["activations"][0]["bin_min"] == -1
    keys = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}
    assert all(set(a) == keys for one in found for a in one["activations"])
    with pytest.raises(InputError, match="found none"):
        next(read_sae_dashboard(tmp_path / "nowhere"))


class Server(BaseHTTPRequestHandler):
    """Refuses what the schema of the upload call refuses; the first answer is 503."""

    taken: ClassVar[list[dict]] = []
    busy = 1

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Server.busy:
            Server.busy -= 1
            self.answer(503)
        elif (
            self.headers["x-api-key"] != "key" or self.path != "/api/feature/upload-batch" or not valid(body)
        ):
            self.answer(400)
        else:
            Server.taken.append(body)
            self.answer(200)

    def answer(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


def valid(body):
    ok = {"modelId", "source", "features"} == set(body) and 1 <= len(body["features"]) <= 128
    for one in body["features"]:
        ok &= type(one["index"]) is int and 0 <= one["density"] <= 1 and len(one["activations"]) >= 1
        for logit in one["topLogits"] + one["bottomLogits"]:
            ok &= len(logit["token"]) > 0 and type(logit["value"]) is float
        ok &= len(one["topLogits"]) <= 20
        for text in one.get("explanations", []):
            ok &= 1 <= len(text["text"].encode("utf-16-le")) // 2 <= 512
            ok &= set(text) == {"text", "methodName"} and text["methodName"] in (None, "m")
        for act in one["activations"]:
            ok &= 1 <= len(act["tokens"]) == len(act["values"]) <= 1024 and all(act["tokens"])
            ok &= act["quantileFraction"] is None or 0 <= act["quantileFraction"] <= 1
    return ok


def test_upload_is_taken_and_goes_on(records, effects):
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, waits = f"http://127.0.0.1:{server.server_port}/", []
    bodies = list(upload_batches(records[0], effects, Words(), model_id="Tiny", source_id="3-s", per_batch=2))
    try:
        assert upload(bodies, url, "key", wait=waits.append) == 3
        assert waits == [1.0]
        sent = [one["index"] for body in Server.taken for one in body["features"]]
        assert sent == [i for i in range(F) if i != DEAD]
        assert upload(bodies, url, "key", start=2) == 3 and len(Server.taken) == 4
        with pytest.raises(InputError, match="start = 1"):
            upload([bodies[0], {"features": []}], url, "key")
    finally:
        server.shutdown()
        server.server_close()
