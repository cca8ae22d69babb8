"""Bodies of Neuronpedia's upload call, against the features that they are made from, and the sending of them."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from saefast.errors import InputError
from saefast.interp.exchange import neuronpedia_upload
from saefast.interp.exchange.dashboards import SHOWN, dashboards
from saefast.interp.exchange.neuronpedia_upload import upload, upload_batches
from tests.helpers.hostile_records import DEAD, F, Words, hostile_effects, hostile_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return hostile_records(tmp_path_factory.mktemp("records"))[0]


def bodies(records, **options):
    about = {"model_id": "Tiny", "source_id": "3-S", "groups": SHOWN}
    return list(upload_batches(records, hostile_effects(), Words(), **about | options))


def test_bodies_say_what_the_features_say(records):
    [body], [features] = bodies(records), dashboards(records, hostile_effects(), Words(), SHOWN)
    assert (body["modelId"], body["source"]) == ("tiny", "3-s")
    assert [one["index"] for one in body["features"]] == [i for i in range(F) if i != DEAD]
    for one in body["features"]:
        feature = features[one["index"]]
        assert one["density"] == feature["frac_nonzero"]
        for name, sign in (("topLogits", "pos"), ("bottomLogits", "neg")):
            assert [pair["token"] for pair in one[name]] == feature[f"{sign}_str"]
            assert [pair["value"] for pair in one[name]] == feature[f"{sign}_values"]
        for act, wanted in zip(one["activations"], feature["activations"], strict=True):
            assert (act["tokens"], act["values"]) == (wanted["tokens"], wanted["values"])
            keys = (
                ("quantileMin", "bin_min"),
                ("quantileMax", "bin_max"),
                ("quantileFraction", "bin_contains"),
            )
            for key, of in keys:
                assert act[key] == (None if wanted["group"] == "top" else wanted[of])
        assert {act["quantileMin"] is None for act in one["activations"]} == {True, False}


def test_methods_and_models(records):
    """A method that Neuronpedia does not know, and any model, would have the whole body refused."""
    for known, wanted in ((), None), (("m",), "m"):
        [body] = bodies(records, known_methods=known)
        found = [text for one in body["features"] for text in one.get("explanations", [])]
        assert [text["methodName"] for text in found] == [wanted, wanted]
        assert all(set(text) == {"text", "methodName"} for text in found)
    first, second = (text["text"] for text in found)
    assert first == "x" * 511 + "\u2026" and second == "nul  \U0001f600"


def test_limits_are_kept(records, monkeypatch):
    monkeypatch.setattr(neuronpedia_upload, "MAX_LOGITS", 2)
    [body] = bodies(records)
    assert {len(one[name]) for one in body["features"] for name in ("topLogits", "bottomLogits")} == {2}
    with pytest.raises(InputError, match="1 to 128, got 129"):
        bodies(records, per_batch=129)
    assert [len(body["features"]) for body in bodies(records, per_batch=4)] == [4, 2]


@pytest.mark.parametrize("qualifying, first", [(0, 0), (511, 0), (600, 88), (1400, 888), (1999, 976)])
def test_a_long_window_is_cut_around_its_token(qualifying, first):
    tokens = [str(i) for i in range(2000)]
    one = {"tokens": tokens, "values": [float(i == qualifying) for i in range(2000)], "group": "top"}
    one |= {"qualifying_token_index": qualifying, "bin_min": -1, "bin_max": 1.0, "bin_contains": -1}
    found = neuronpedia_upload._activation(one)
    assert found["tokens"] == tokens[first : first + 1024] and len(found["values"]) == 1024
    assert found["tokens"][found["values"].index(1.0)] == str(qualifying)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("y" * 512, "y" * 512),
        ("y" * 513, "y" * 511 + "\u2026"),
        ("\U0001f600" * 257, "\U0001f600" * 255 + "\u2026"),
    ],
)
def test_an_explanation_is_cut_at_512_units_of_utf16(text, wanted):
    """Not within a pair of surrogates."""
    assert neuronpedia_upload._cut(text) == wanted


def test_waits_and_progress():
    """What the server asks for, else 1, 2, 4 seconds; no more than `tries`; a refusal is final."""
    answers, waits, sent = [], [], []

    class Busy(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            code, after = answers.pop(0)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            if after:
                self.send_header("Retry-After", after)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        answers[:] = [(503, None), (429, "7"), (500, "soon"), (200, None), (200, None)]
        assert upload([{}, {}], url, "k", wait=waits.append, progress=sent.append) == 2
        assert waits == [1.0, 7.0, 4.0] and sent == [1, 2] and not answers
        answers[:] = [(503, None)] * 3
        with pytest.raises(InputError, match="body 0 was not taken: 503 .*start = 0"):
            upload([{}], url, "k", wait=waits.append, tries=3)
        assert waits[3:] == [1.0, 2.0] and not answers
        answers[:] = [(400, None), (200, None)]
        with pytest.raises(InputError, match="400"):
            upload([{}], url, "k", wait=waits.append)
        assert len(answers) == 1 and len(waits) == 5
    finally:
        server.shutdown()
        server.server_close()
