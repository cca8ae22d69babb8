"""Requests to a server that speaks OpenAI's protocol, by its own client: which retries, waits and pools connections.

The key is read from the environment and goes into the header of requests, nowhere else: what a server sends is searched for it before
anything is made of it.
"""

import json
import logging
import os
from threading import Semaphore
from typing import Any
from urllib.parse import urlsplit

from saefast.errors import InputError, check, line, shown
from saefast.interp.explain.models.budget import TURN, Budget, Cost, estimated_tokens

log = logging.getLogger("saefast")
KEYS = ("SAEFAST_API_KEY", "OPENAI_API_KEY")  # the first that is set
NEVER = frozenset({400, 404, 405, 413, 422, 500, 501})  # statuses of a request that this server cannot do
# What some models refuse to be told, and what is said instead; None: nothing.
INSTEAD: dict[str, tuple[str, Any] | None] = {
    "max_tokens": ("max_completion_tokens", None),  # OpenAI's reasoning models
    "temperature": None,
    "seed": None,
    "top_logprobs": ("top_logprobs", 5),
    "continue_final_message": None,
    "add_generation_prompt": None,
}


class Refused(InputError):
    """The server answered with an error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """
    Args:
        url: up to and with /v1.
        concurrency: requests at once, of all threads.
        timeout: seconds for one try.
        retries: of broken connections, timeouts, 408, 409, 429 and 5xx, after what Retry-After says or longer and longer waits.

    Raises:
        InputError: a URL of another form, a key that cannot be one, or the extra `llm` (openai) is missing.
    """

    def __init__(
        self, url: str, model: str, concurrency: int, timeout: float, retries: int, budget: Budget
    ) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("model: an endpoint needs `pip install 'saefast[llm]'`") from None
        self.url, self.model, self.retries, self.budget = checked_url(url), model, retries, budget
        self._key = _key()
        self._openai: Any = openai
        self._client: Any = openai.OpenAI(
            base_url=self.url, api_key=self._key or "none", timeout=timeout, max_retries=retries
        )
        self._slots = Semaphore(concurrency)
        self._refused: set[str] = set()

    def post(self, to: str, body: dict[str, Any], retries: int | None = None) -> dict[str, Any]:
        """The JSON that is answered.

        Args:
            to: "chat" or "completions".
            body: of the request, but for the model. Settings that this server was found to refuse are left out.

        Raises:
            Refused: an error status, after the last retry.
            BudgetReached: it could cost more than is left; nothing was asked.
            InputError: no connection, no answer in time, or one that is no JSON object.
        """
        retries = self.retries if retries is None else retries
        while True:
            sent = self._adapted(body)
            try:
                with self._slots:
                    return self._paid(to, sent, retries)
            except Refused as error:
                if error.status not in (400, 422) or not self._learned(str(error), body, sent):
                    raise

    def _paid(self, to: str, sent: dict[str, Any], retries: int) -> dict[str, Any]:
        texts = [turn["content"] for turn in sent["messages"]] if to == "chat" else [sent["prompt"]]
        most = sum(len(text.encode("utf-8", "replace")) + TURN for text in texts)
        more = int(sent.get("max_completion_tokens", sent.get("max_tokens", 0)))
        worst = self.budget.cost(most, more)
        self.budget.reserve(worst)
        used = worst  # if it never comes: a server may have worked on it all the same
        try:
            answer = self._json(self._sent(to, sent, retries))
            used = self._used(answer, texts, more)
            problem = answer.get("error")
            check(not problem, f"{self.url}: model {self.model!r}: {shown(problem)}")
            return answer
        except Refused:
            used = self.budget.cost(0, 0)
            raise
        finally:
            self.budget.settle(worst, used)

    def _sent(self, to: str, sent: dict[str, Any], retries: int) -> str:
        client = self._client.with_options(max_retries=retries)
        made = client.chat.completions if to == "chat" else client.completions
        what = "messages" if to == "chat" else "prompt"
        settings = {name: value for name, value in sent.items() if name != what}
        try:  # settings in extra_body: the client's own checks know OpenAI's only
            got = made.with_raw_response.create(model=self.model, **{what: sent[what]}, extra_body=settings)
            return self._clean(got.http_response.content.decode("utf-8", "replace"))
        except self._openai.APIStatusError as error:
            status, reason = error.status_code, line(error)
            wait = error.response.headers.get("retry-after")
            hints = {
                401: f"; the key is read from {' or '.join(KEYS)}",
                404: "; is it the model's name there, and does the URL end in /v1?",
                429: f"; it says to wait {wait} s" if wait else "",
            }
            said = f"{self._line(reason)}{self._clean(hints.get(status, ''))}"
        except self._openai.OpenAIError as error:
            raise InputError(
                f"{self.url}: no answer of model {self.model!r} in {retries + 1} tries: {self._reason(error)}"
            ) from None
        raise Refused(f"{self.url}: model {self.model!r}: {said}", status) from None

    def _reason(self, error: Exception) -> str:
        cause = error.__cause__
        if isinstance(error, self._openai.APITimeoutError) or cause is None:
            return self._line(line(error))
        return self._line(f"{type(cause).__name__}: {line(cause)}" if isinstance(cause, Exception) else "")

    def _json(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        want = f"{self.url}: model {self.model!r}: expected a JSON object as OpenAI's"
        check(isinstance(found, dict), f"{want}, got {shown(text)}")
        return dict(found or {})

    def _used(self, answer: dict[str, Any], texts: list[str], most: int) -> Cost:
        """What the server says, and where it says nothing an estimate."""
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        asked = sum(estimated_tokens(text) + TURN for text in texts)
        written = min(most, estimated_tokens(json.dumps(answer.get("choices"))))
        numbers = [(usage.get("prompt_tokens"), asked), (usage.get("completion_tokens"), written)]
        return self.budget.cost(
            *(said if isinstance(said, int) and said >= 0 else guessed for said, guessed in numbers)
        )

    def _adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        sent = dict(body)
        for name in self._refused & sent.keys():
            value, instead = sent.pop(name), INSTEAD[name]
            if instead is not None:
                sent[instead[0]] = value if instead[1] is None else instead[1]
            if name == "continue_final_message":
                sent["messages"] = _in_words(sent["messages"])
        return sent

    def _learned(self, reason: str, body: dict[str, Any], sent: dict[str, Any]) -> bool:
        """Whether an error names a setting that can be left out."""
        new = {name for name in INSTEAD if name in body and sent.get(name) == body[name] and name in reason}
        for name in sorted(new - self._refused):
            log.warning(
                "%s: model %r refuses the setting %s: it is asked without", self.url, self.model, name
            )
        self._refused |= new
        return bool(new)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _line(self, text: str) -> str:
        return " ".join(self._clean(text).split())


def _in_words(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """For a server that cannot go on with an answer: it is asked to begin with that text."""
    *before, last = messages
    if last["role"] != "assistant" or not before:
        return messages
    asked = f"{before[-1]['content']}\n\nBegin your answer with exactly this text: {last['content']}"
    return [*before[:-1], {"role": before[-1]["role"], "content": asked}]


def checked_url(url: str) -> str:
    """Without slashes at the end.

    Raises:
        InputError: not http(s)://host[:port]/path; what is wrong with it is not shown if it could be a password.
    """
    try:
        parts = urlsplit(url.strip())
        ok, _ = parts.scheme in ("http", "https") and bool(parts.hostname), parts.port
    except ValueError:
        ok = False
    check(ok, "url: expected http://host:port/v1 or https://host/v1")
    secret = "@" in parts.netloc or bool(parts.query)
    check(
        not secret,
        f"url: expected no password and nothing after a ?, for {parts.hostname}: "
        f"the key is read from {' or '.join(KEYS)}",
    )
    return url.strip().partition("#")[0].rstrip("/")


def _key() -> str:
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if key:
            check(key.isascii() and key.isprintable(), f"{name}: expected a key of printable ASCII signs")
            return key
    return ""
