import json
import logging

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.models import CannotAnswer, Turn
from saefast.interp.explain.models.budget import Budget
from saefast.interp.explain.models.endpoint import Endpoint
from saefast.interp.explain.models.open import open_model
from tests.helpers import llm_server

pytest.importorskip("openai")
DIGITS = [str(i) for i in range(11)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("SAEFAST_API_KEY", llm_server.KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with llm_server.FakeServer() as made:
        yield made


def asked(*texts):
    return [(Turn("user", text),) for text in texts]


def endpoint(server, **options):
    return Endpoint(server.url, "toy", **({"timeout": 1.0, "retries": 2} | options))


def shares_of(text, choices=DIGITS):
    """What the toy says of choices after a text."""
    values = llm_server.probabilities(text)[[llm_server.VOCABULARY.index(choice) for choice in choices]]
    return values / values.sum()


def test_answers_are_in_the_order_of_the_prompts_and_asked_at_once(server):
    server.delay = 0.05
    model = endpoint(server, concurrency=3)
    found = model.write(asked(*"abcdefgh"), max_tokens=5)
    assert found == [[f"answer to {letter}"] for letter in "abcdefgh"]
    assert server.most_at_once == 3 == model.at_once
    path, body, headers = server.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {llm_server.KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("toy", 5, 0)


def test_samples_have_seeds_of_their_own_and_certain_answers_are_paid_once(server):
    server.answer = lambda body: str(body["seed"])
    model = endpoint(server)
    assert model.write(asked("a", "b"), max_tokens=5, temperature=1.0, n=3, seed=7) == [["7", "8", "9"]] * 2
    assert model.write(asked("a"), max_tokens=5, n=3) == [["0"] * 3]
    assert len(server.requests) == 7


@pytest.mark.parametrize("fault", ["rate limit", "error", "slow", "broken", (503, {"error": "busy"})])
def test_what_may_come_right_is_tried_again(server, fault):
    server.faults = [fault, fault]
    assert endpoint(server, timeout=0.5).write(asked("a"), max_tokens=5) == [["answer to a"]]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("rate limit", "429.*slow down.*wait 0.3 s"),
        ("far limit", "429.*tomorrow.*wait 86400 s"),
        ("error", "500.*out of memory"),
        ("slow", "3 tries: Request timed out"),
        ("broken", "3 tries: RemoteProtocolError: peer closed connection"),
        ("no json", "expected a JSON object.*the proxy is down"),
        ("other fields", "expected an answer as OpenAI's.*'result': 'fine'"),
        ("unauthorized", "401.*the key is read from SAEFAST_API_KEY"),
        ("key", r"400.*wrong: Bearer \*\*\*"),
        ((200, {"error": {"message": "model overloaded"}}), "model overloaded"),
        ((200, {"choices": []}), "expected an answer as OpenAI's"),
        ((200, {"choices": [{"message": None}]}), "expected an answer as OpenAI's"),
        ((200, {"choices": [{"message": {"content": 3}}]}), "expected an answer as OpenAI's"),
        ((404, {"error": {"message": "no model toy"}}), "no model toy.*the model's name"),
    ],
)
def test_the_last_failure_is_told_with_its_reason_and_without_the_key(server, fault, said, caplog):
    caplog.set_level(logging.DEBUG)
    server.faults = [fault] * 3
    model = endpoint(server, timeout=0.3 if fault == "slow" else 20.0)
    with pytest.raises(InputError, match=said) as error:
        model.write(asked("a"), max_tokens=5)
    assert server.url in str(error.value)
    shown = f"{error.value!r} {error.value.__cause__!r} {model!r} {caplog.text}"
    assert llm_server.KEY not in shown and "Traceback" not in caplog.text


def test_nobody_there(server):
    url = server.url
    server.server.server_close()
    with pytest.raises(InputError, match=f"{url}: no answer.*1 tries: ConnectError"):
        Endpoint(url, "toy", retries=0).write(asked("a"), max_tokens=5)


def test_cut_off_empty_and_refused_answers_are_told_and_counted(server, caplog):
    said = {
        "cut": {"message": {"content": "It is a"}, "finish_reason": "length"},
        "null": {"message": {"content": None}},
        "thinking": {"message": {"content": "<think>hm"}, "finish_reason": "length"},
        "refused": {"message": {"content": None, "refusal": "I will not"}},
        "filter": {"message": {"content": ""}, "finish_reason": "content_filter"},
        "no content": {"message": {"role": "assistant"}},
        "thought": "<think>is it?\nyes</think>\nIt is.",
    }
    server.answer = lambda body: said[body["messages"][-1]["content"]]
    model = endpoint(server)
    found = model.write(asked(*said), max_tokens=5)
    assert found == [["It is a"], [""], [""], [""], [""], [""], ["It is."]]
    assert model.counts == {"cut off": 1, "empty": 3, "refused": 2}
    assert len([one for one in caplog.records if one.name == "saefast"]) == 3


def test_an_answer_goes_on_with_what_was_begun(server):
    prompt = (Turn("user", "a"), Turn("assistant", "The unit"))
    server.answer = lambda body: " fires"
    model = endpoint(server)
    assert model.write([prompt], max_tokens=5) == [[" fires"]]
    body = server.requests[0][1]
    assert body["continue_final_message"] and not body["add_generation_prompt"]
    server.refuses = ("continue_final_message", "add_generation_prompt")
    server.answer = lambda body: "The unit fires"
    assert model.write([prompt], max_tokens=5) == [[" fires"]]
    body = server.requests[-1][1]
    assert [turn["role"] for turn in body["messages"]] == ["user"]
    assert body["messages"][0]["content"].endswith("with exactly this text: The unit")
    n = len(server.requests)
    assert model.write([(Turn("user", "b"), Turn("assistant", ""))], max_tokens=5) == [["The unit fires"]]
    assert len(server.requests) == n + 1 and len(server.requests[-1][1]["messages"]) == 1


def test_settings_that_a_model_refuses_are_left_out_from_then_on(server, caplog):
    server.refuses = ("max_tokens", "temperature")
    model = endpoint(server, concurrency=1)
    assert model.write(asked("a", "b"), max_tokens=5) == [["answer to a"], ["answer to b"]]
    body = server.requests[-1][1]
    assert body["max_completion_tokens"] == 5 and not {"max_tokens", "temperature"} & body.keys()
    assert len(server.requests) == 4 and "refuses the setting max_tokens" in caplog.text
    server.refuses = ("model",)
    with pytest.raises(InputError, match="unknown setting: model"):
        model.write(asked("a"), max_tokens=5)


def test_choices_are_read_from_log_probabilities(server):
    found = endpoint(server).choices(asked("a", "some text"), ["Yes", "No"])
    for text, row in zip(["a", "some text"], found):
        np.testing.assert_allclose(row, shares_of(text, ["Yes", "No"]), atol=1e-9)
    model = endpoint(server)
    tops = [("Ye", 0.2), (" No", 0.1), ("No", 0.3), ("N", 0.1), ("", 0.1)]
    content = [{"top_logprobs": [{"token": t, "logprob": float(np.log(p))} for t, p in tops]}]
    server.answer = lambda body: {"message": {"content": ""}, "logprobs": {"content": content}}
    server.top = 0
    np.testing.assert_allclose(model.choices(asked("a"), ["Yes", "No"]), [[0.2 / 0.7, 0.5 / 0.7]])
    np.testing.assert_allclose(model.choices(asked("a"), ["Nine", "No", "x"]), [[0, 1, 0]])  # "N" may be both
    np.testing.assert_array_equal(model.choices(asked("a"), ["1", "2"]), [[0.5, 0.5]])
    assert model.choices([], ["1", "2"]).shape == (0, 2)


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_probabilities_inside_of_a_prompt_and_losses(server, begin):
    server.begin = begin
    model = endpoint(server)
    texts = [
        ["Neuron 3:\nthe", " unknown\ncat\t", "1\nsat\t", " unknown"],
        ["Привет \U0001f600 a\t", "5\nb\t", ""],
        ["alone"],
    ]
    server.delay = 0.02
    found = model.choices_inside(texts, DIGITS)
    for parts, rows in zip(texts, found):
        assert rows.shape == (len(parts) - 1, 11)
        for i, row in enumerate(rows):
            np.testing.assert_allclose(row, shares_of("".join(parts[: i + 1])), atol=1e-9)
    before, text = "It is said: ", "the cat 1 No"
    losses = model.losses([(before, text), ("a", "")])
    expected = []
    for i, token in enumerate(llm_server.tokens(text)):
        done = before + "".join(llm_server.tokens(text)[:i])
        p = dict(zip(llm_server.VOCABULARY, llm_server.probabilities(done))).get(token, 0.001)
        expected.append(-np.log(p))
    np.testing.assert_allclose(losses[0], expected)
    assert len(expected) == 5 and losses[1].shape == (0,)
    paths = [path for path, _, _ in server.requests]
    assert paths.count("/v1/completions") == len(paths) == 1 + 1 + 2 + 1  # probe, digits, texts, losses


def test_tokens_across_the_end_of_a_segment_make_choices_equal(server):
    model = endpoint(server)
    found = model.choices_inside([["ab", "cd\t", "1"]], DIGITS)[0]
    np.testing.assert_array_equal(found[0], np.full(11, 1 / 11))
    np.testing.assert_allclose(found[1], shares_of("abcd\t"), atol=1e-9)
    with pytest.raises(CannotAnswer, match="across the ends of all segments"):
        model.choices_inside([["ab", "cd"]], DIGITS)
    with pytest.raises(CannotAnswer, match="'11' is none"):
        model.choices_inside([["a\t", "1"]], ["1", "11"])


def test_a_server_without_log_probabilities_says_which_scores_cannot_run(server):
    server.top = 0
    model = endpoint(server)
    assert not model.gives_choices and not model.reads_prompts
    n = len(server.requests)
    with pytest.raises(CannotAnswer, match="toy.*gives no log-probabilities"):
        model.choices(asked("a"), ["Yes", "No"])
    for ask in (lambda: model.choices_inside([["a", ""]], DIGITS), lambda: model.losses([("a", "b")])):
        with pytest.raises(CannotAnswer, match="toy.*simulation falls back.*surprisal cannot"):
            ask()
    assert len(server.requests) == n  # found out once


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_refuses_to_echo(server, status):
    server.faults = [(status, {"error": {"message": "no echo"}})] * 6
    model = endpoint(server)
    assert not model.reads_prompts and not model.reads_prompts and len(server.requests) in (2, 6)
    server.faults = []
    assert model.gives_choices and model.gives_choices
    with pytest.raises(InputError, match="slow down"):  # not: it cannot
        server.faults = ["rate limit"] * 9
        _ = endpoint(server, retries=0).reads_prompts


def test_special_tokens_and_pieces_of_characters_move_nothing(server):
    """As vLLM gives them: a special token before the text, and replacement characters for the bytes of one sign."""
    text = "a\U0001f600 cat\t5"
    tokens = ["<s>", "a", "\ufffd", "\ufffd", "\ufffd", " cat", "\t", "5", "\n"]
    tops = [None, *({"5": -0.5, "6": -1.5} if token == "5" else {"x": -1.0} for token in tokens[1:])]
    probe = {"tokens": ["One", " two three", "."], "token_logprobs": [None, -1, -1]}
    probe["top_logprobs"] = [None, {"a": -1}, {"a": -1}]
    single = {"tokens": ["\t", "5", "\t", "6", "\t", "."], "token_logprobs": [None] + [-1] * 5}
    single["top_logprobs"] = [None] + [{"a": -1}] * 5
    real = {"tokens": tokens, "token_logprobs": [None] + [-1.0] * 8, "top_logprobs": tops}
    server.faults = [
        (200, {"choices": [{"text": "", "logprobs": one}]}) for one in (probe, single, real, real)
    ]
    model = endpoint(server)
    row = model.choices_inside([[text[:-1], text[-1]]], ["5", "6"])[0][0]
    np.testing.assert_allclose(row, np.exp([-0.5, -1.5]) / np.exp([-0.5, -1.5]).sum())
    assert len(model.losses([("a", text[1:])])[0]) == 6


def test_the_key_is_in_the_header_alone(server, monkeypatch, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    server.answer = lambda body: f"you sent {llm_server.KEY}"
    budget = Budget(folder=tmp_path)
    model = open_model(f"{server.url}#toy", folder=tmp_path, budget=budget)
    assert model.write(asked("a"), max_tokens=5) == [["you sent ***"]]
    model.choices(asked("a"), ["Yes", "No"])
    server.faults = ["key"]
    with pytest.raises(InputError) as error:
        model.write(asked("b"), max_tokens=5)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    captured = capsys.readouterr()
    everything = f"{error.value} {caplog.text} {captured.out} {captured.err} {model.model!r}"
    assert "HTTP" in caplog.text and len(kept) > 8192  # there was something to find it in
    assert llm_server.KEY.encode() not in kept and llm_server.KEY not in everything
    assert all(llm_server.KEY not in json.dumps(body) for _, body, _ in server.requests)


def test_which_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    endpoint(server).write(asked("a"), max_tokens=5)
    monkeypatch.delenv("SAEFAST_API_KEY")
    endpoint(server).write(asked("a"), max_tokens=5)
    monkeypatch.delenv("OPENAI_API_KEY")
    endpoint(server).write(asked("a"), max_tokens=5)
    sent = [headers["authorization"] for _, _, headers in server.requests]
    assert sent == [f"Bearer {llm_server.KEY}", "Bearer sk-other", "Bearer none"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        endpoint(server)
    assert "sk-two" not in str(error.value)


def test_addresses(tmp_path):
    for wrong in ("localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1"):
        with pytest.raises(InputError, match="url: expected http"):
            Endpoint(wrong, "toy")
    for secret in ("http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(InputError, match="for host: the key is read from") as error:
            Endpoint(secret, "toy")
        assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="#NAME"):
        open_model("http://localhost:8000/v1")
    model = open_model("http://localhost:8000/v1/#org/toy", concurrency=3)
    assert model.name == "org/toy" and model.at_once == 3
    assert repr(model) == "Endpoint('http://localhost:8000/v1', 'org/toy')"
    assert open_model("http://localhost:8000/v1", model="b").name == "b"
    with pytest.raises(InputError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"))
