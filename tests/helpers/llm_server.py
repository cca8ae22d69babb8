"""A server that speaks OpenAI's protocol as servers do: slow, with limits, breaking off, with nonsense. Its model is a table.

    with FakeServer() as server:
        server.faults += ["rate limit", "broken"]  # what the next two requests get
        Endpoint(server.url, "toy")

The model cuts text into words, digits and single signs. After a text of n tokens the k-th of its VOCABULARY has a probability by a
formula, see `probabilities`, so that tests can say what it must answer.
"""

import json
import re
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

VOCABULARY = ["Yes", "No", *(str(i) for i in range(11)), "\t", "\n", " unknown", " "]
CUT = re.compile(r"<s>|10(?!\d)| ?[^\W\d]+|\d|.", re.DOTALL)
KEY = "sk-test-a-key-that-nobody-has"


def tokens(text):
    return CUT.findall(text)


def probabilities(before):
    """Of VOCABULARY after a text, by its tokens: [V], sum below 1 (there are other tokens)."""
    values = (
        np.random.default_rng(zlib.crc32("\0".join(tokens(before)).encode())).random(len(VOCABULARY)) ** 4
        + 1e-6
    )
    return 0.9 * values / values.sum()


def logprobs_of(before, top):
    """{token: log-probability} of the most probable ones."""
    values = probabilities(before)
    order = np.argsort(-values, kind="stable")[:top]
    return {VOCABULARY[i]: float(np.log(values[i])) for i in order}


class FakeServer:
    """
    Attributes:
        requests: (path, body, headers by their names in small letters) of all, in order.
        faults: of the next requests, first come first: "rate limit", "error", "slow", "broken", "no json", "other fields", "key",
            "unauthorized", or (status, JSON object).
        answer: the message of a chat, of the body; a string, or a choice as a dict.
        top, usage, echo, begin: whether and how many log-probabilities it gives, whether it says what it used, echoes prompts, and
            what special token it puts before a prompt.
        refuses: settings that it does not know, which are an error.
        most_at_once: requests under way at the same time, at most.
    """

    def __init__(self):
        self.requests, self.faults = [], []
        self.answer = lambda body: f"answer to {body['messages'][-1]['content']}"
        self.top, self.usage, self.echo, self.begin, self.refuses, self.delay = 20, True, True, "", (), 0.0
        self.under_way = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.handle(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append((handler.path, body, headers))
            fault = self.faults.pop(0) if self.faults else None
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            time.sleep(self.delay + 1.0 * (fault == "slow"))
            self.respond(handler, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            with self.lock:
                self.under_way -= 1

    def respond(self, handler, body, fault):
        quick = {"retry-after-ms": "10"}  # for the client, so that tests do not wait
        if fault == "rate limit":
            send(handler, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"})
        elif fault == "far limit":
            send(handler, 429, {"error": {"message": "tomorrow"}}, {"Retry-After": "86400"})
        elif fault == "error":
            send(handler, 500, {"error": {"message": "out of memory"}}, quick)
        elif fault == "no json":
            send(handler, 200, b"<html>the proxy is down</html>")
        elif fault == "other fields":
            send(handler, 200, {"result": "fine"})
        elif fault == "key":  # that of the request, in the answer
            send(handler, 400, {"error": {"message": f"wrong: {handler.headers['Authorization']}"}})
        elif fault == "unauthorized":
            send(handler, 401, {"error": {"message": f"no such key: {handler.headers['Authorization']}"}})
        elif isinstance(fault, tuple):
            send(handler, fault[0], fault[1], quick)
        elif refused := [name for name in self.refuses if name in body]:
            send(handler, 400, {"error": {"message": f"unknown setting: {refused[0]}"}})
        else:
            chat = handler.path.endswith("/chat/completions")
            made = self.chat(body) if chat else self.completion(body)
            if made is None:
                send(handler, 400, {"error": {"message": "only no echo is supported"}})
            else:
                send(handler, 200, made, broken=fault == "broken")

    def chat(self, body):
        said = self.answer(body)
        choice = said if isinstance(said, dict) else {"message": {"role": "assistant", "content": said}}
        choice = {"index": 0, "finish_reason": "stop"} | choice
        if body.get("logprobs") and self.top:
            last = body["messages"][-1]["content"]
            tops = logprobs_of(last, min(self.top, body["top_logprobs"]))
            choice["logprobs"] = {
                "content": [
                    {"token": "?", "top_logprobs": [{"token": t, "logprob": p} for t, p in tops.items()]}
                ]
            }
        text = "".join(turn["content"] for turn in body["messages"])
        return self.with_usage({"choices": [choice]}, text, str(choice.get("message")))

    def completion(self, body):
        if body.get("echo") and not self.echo:
            return None
        parts = tokens(self.begin + body["prompt"]) + ["\n"]
        found = {"tokens": parts, "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for i, token in enumerate(parts):
            before = "".join(parts[:i]).removeprefix(self.begin)
            tops = logprobs_of(before, body["logprobs"])
            all_of = logprobs_of(before, len(VOCABULARY))
            found["token_logprobs"].append(None if i == 0 else all_of.get(token, float(np.log(0.001))))
            found["top_logprobs"].append(None if i == 0 else tops)
        choice = {"text": "".join(parts), "logprobs": found if self.top else None}
        return self.with_usage({"choices": [choice]}, body["prompt"], "\n")

    def with_usage(self, made, asked, said):
        if self.usage:
            made["usage"] = {"prompt_tokens": len(tokens(asked)), "completion_tokens": len(tokens(said))}
        return made


def send(handler, status, body, headers=(), broken=False):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in dict(headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2] if broken else data)
    if broken:
        handler.close_connection = True
