"""A language model behind any server that speaks OpenAI's protocol: vLLM, llama-server, Ollama, and hosted ones.

    model = Endpoint("http://localhost:8000/v1", "Qwen/Qwen3-8B")

Whether a server gives log-probabilities of answers (`choices`) and of prompts (`choices_inside`, `losses`) is found out by a small
request, once.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from threading import RLock
from typing import Any

import numpy as np

from saefast.errors import InputError, check, shown
from saefast.interp.explain.models import CannotAnswer, Prompt, Turn
from saefast.interp.explain.models.answers import shares, without_thoughts
from saefast.interp.explain.models.budget import Budget, Cost
from saefast.interp.explain.models.client import NEVER, Client, Refused
from saefast.interp.explain.models.echo import Echo, read_echo
from saefast.interp.explain.models.threads import in_threads

log = logging.getLogger("saefast")
TOP = 20  # alternatives of a token, the most that OpenAI and vLLM give
PROBE = (Turn("user", "Answer with Yes or No: is water wet?"),)
PROBE_TEXT = "One two three"
PROBE_RETRIES = 2  # a server that cannot echo may well say so with a 500


class Endpoint:
    """
    Args:
        url: up to and with /v1. The key of a server that wants one is in the environment, SAEFAST_API_KEY or else OPENAI_API_KEY.
        model: its name there.
        concurrency: requests at once.
        timeout: seconds for one try of a request.
        retries: of what may come right: broken connections, timeouts, rate limits, errors of the server.
        budget: what may be spent, see `Budget`; default: no limit.

    Attributes:
        counts: answers by what is the matter with them: "cut off", "empty", "refused". Each kind is logged once.

    Raises (every method):
        InputError: no answer after the last try, an error status, or another answer than the protocol's; with the URL and the reason.
        BudgetReached: nothing more is asked.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 8,
        budget: Budget | None = None,
    ) -> None:
        check(bool(model), "model: expected its name on the server, got none")
        check(concurrency > 0, f"concurrency: expected at least 1, got {concurrency}")
        check(0 < timeout < float("inf"), f"timeout: expected seconds, more than 0, got {timeout}")
        check(retries >= 0, f"retries: expected 0 or more, got {retries}")
        self.budget = budget or Budget()
        self._client = Client(url, model, concurrency, timeout, retries, self.budget)
        self._concurrency = concurrency
        self._lock = RLock()
        self._gives_choices: bool | None = None
        self._top_inside: int | None = None  # alternatives at each token of a prompt, 0: it gives none
        self._single: set[str] = set()  # choices that are known to be one token
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Endpoint({self._client.url!r}, {self.name!r})"

    @property
    def name(self) -> str:
        return self._client.model

    @property
    def identity(self) -> list[str]:
        """What stands for the model in a cache."""
        return [self._client.url, self.name]

    @property
    def at_once(self) -> int:
        return self._concurrency

    @property
    def spent(self) -> Cost:
        return self.budget.spent

    @property
    def gives_choices(self) -> bool:
        with self._lock:
            if self._gives_choices is None:
                self._gives_choices = self._can(lambda: self._first(PROBE, PROBE_RETRIES) is not None)
            return self._gives_choices

    @property
    def reads_prompts(self) -> bool:
        with self._lock:
            if self._top_inside is None:
                fits = (n for n in (TOP, 5) if self._can(lambda n=n: self._echo(PROBE_TEXT, n) is not None))
                self._top_inside = next(fits, 0)
            return self._top_inside > 0

    @staticmethod
    def _can(ask: Any) -> bool:
        try:
            return bool(ask())
        except Refused as error:
            if error.status in NEVER:
                return False
            raise

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        """See `LanguageModel.write`. An empty answer, and a refusal, is ""."""
        check(n > 0, f"n: expected at least 1, got {n}")
        check(max_tokens > 0, f"max_tokens: expected at least 1, got {max_tokens}")
        check(all(prompts), "prompts: expected at least one turn in each, got none")
        numbers = range(n if temperature > 0 else 1)  # the most probable answer is the same each time
        jobs = [(prompt, seed + number) for prompt in prompts for number in numbers]

        def one(job: tuple[Prompt, int]) -> str:
            settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": job[1]}
            return self._answer(self._client.post("chat", _conversation(job[0]) | settings), job[0])

        texts = in_threads(one, jobs, self._concurrency)
        rows = [texts[i * len(numbers) : (i + 1) * len(numbers)] for i in range(len(prompts))]
        return rows if temperature > 0 else [row * n for row in rows]

    def _answer(self, body: dict[str, Any], prompt: Prompt) -> str:
        choice = self._choice(body)
        message = choice.get("message")
        content = message.get("content", "") if isinstance(message, dict) else 0
        if not isinstance(message, dict) or not isinstance(content, str | None):
            raise self._other(choice)
        text = without_thoughts(content or "")
        cut = choice.get("finish_reason") == "length"
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            self._count("refused", "it refused to answer")
        elif not text.strip():
            self._count("empty", f"an answer was empty{' at max_tokens: it was thinking?' if cut else ''}")
        elif cut:
            self._count("cut off", "an answer was cut off at max_tokens")
        begun = prompt[-1].text.strip() if prompt[-1].role == "assistant" else ""
        # a server that does not go on with what was begun begins anew
        return text.lstrip()[len(begun) :] if begun and text.lstrip().startswith(begun) else text

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            raise self._other(body)
        return first

    def _other(self, body: object) -> InputError:
        return InputError(f"{self!r}: expected an answer as OpenAI's, got {shown(body)}")

    def _count(self, kind: str, said: str) -> None:
        with self._lock:
            self.counts[kind] += 1
            if self.counts[kind] == 1:
                log.warning("%r: %s; more of these are only counted", self, said)

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """See `LanguageModel.choices`. A token is the choice that it equals or, alone among them, begins, without spaces before."""
        if not self.gives_choices:
            raise CannotAnswer(f"{self!r}: gives no log-probabilities: ask it to write its answers instead")
        check(all(prompts), "prompts: expected at least one turn in each, got none")
        bare = [choice.lstrip() for choice in choices]
        check(all(bare) and len(set(bare)) == len(bare), f"choices: expected different ones, got {choices}")

        def one(prompt: Prompt) -> list[float]:
            first = self._first(prompt)
            if first is None:
                raise CannotAnswer(f"{self!r}: gave no log-probabilities for a prompt, others it did")
            found = dict.fromkeys(bare, 0.0)
            for token, probability in first.items():
                which = [choice for choice in bare if choice == token] or [
                    choice for choice in bare if token and choice.startswith(token)
                ]
                if len(which) == 1:
                    found[which[0]] += probability
            return [found[choice] for choice in bare]

        rows = in_threads(one, prompts, self._concurrency)
        return shares(np.asarray(rows, np.float64).reshape(len(prompts), len(choices)))

    def _first(self, prompt: Prompt, retries: int | None = None) -> dict[str, float] | None:
        """Probabilities of the first token of an answer, those without spaces before; None if there are none."""
        settings = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP}
        choice = self._choice(self._client.post("chat", _conversation(prompt) | settings, retries))
        try:
            tops = choice["logprobs"]["content"][0]["top_logprobs"]
            pairs = [(str(top["token"]).lstrip(), float(np.exp(float(top["logprob"])))) for top in tops]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        found: dict[str, float] = {}
        for token, probability in pairs:
            found[token] = found.get(token, 0.0) + probability
        return found or None

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        """See `LanguageModel.choices_inside`. The server tokenizes each text as a whole: where a token reaches across the end of a
        segment, all choices are equally probable."""
        self._check_reads()
        self._check_single(choices)

        def one(parts: Sequence[str]) -> np.ndarray:
            check(len(parts) > 0, "segments: expected at least one of each text, got none")
            ends = list(accumulate(map(len, parts[:-1])))
            if not ends:
                return np.zeros((0, len(choices)))
            found = self._echoed("".join(parts)).after(ends, choices)
            if found is None:
                raise CannotAnswer(f"{self!r}: its tokens reach across the ends of all segments")
            return shares(found)

        return in_threads(one, segments, self._concurrency)

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """See `LanguageModel.losses`. The server tokenizes both as one text: a token of both counts to the second."""
        self._check_reads()

        def one(pair: tuple[str, str]) -> np.ndarray:
            before, text = pair
            check(bool(before), "losses: expected a token before each text, got none")
            if not text:
                return np.zeros(0)
            return self._echoed(before + text).losses(len(before), len(before) + len(text))

        return in_threads(one, texts, self._concurrency)

    def _check_reads(self) -> None:
        if not self.reads_prompts:
            raise CannotAnswer(
                f"{self!r}: gives no log-probabilities of prompts (echo), as vLLM and a local model do: simulation falls back on "
                "written numbers, surprisal cannot run"
            )

    def _check_single(self, choices: Sequence[str]) -> None:
        with self._lock:
            if self._single.issuperset(choices):
                return
            parts = ["\t", *(f"{choice}\t" for choice in choices)]
            starts = list(accumulate(map(len, parts[:-1])))
            tokens = self._echoed("".join(parts)).at(starts)
            for choice, token in zip(choices, tokens, strict=True):
                if token != choice:
                    raise CannotAnswer(f"{self!r}: expected choices of one token, {choice!r} is none")
            self._single |= set(choices)

    def _echoed(self, text: str) -> Echo:
        echo = self._echo(text, self._top_inside or TOP)
        if echo is None:
            raise CannotAnswer(f"{self!r}: gave no log-probabilities of a prompt, of others it did")
        return echo

    def _echo(self, text: str, top: int) -> Echo | None:
        settings = {"prompt": text, "echo": True, "logprobs": top, "max_tokens": 1, "temperature": 0.0}
        return read_echo(self._client.post("completions", settings), text)


def _conversation(prompt: Prompt) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": turn.text} for turn in prompt]
    if prompt[-1].role != "assistant":
        return {"messages": messages}
    if not prompt[-1].text:
        return {"messages": messages[:-1]}
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
