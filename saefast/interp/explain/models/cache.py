"""Answers of a language model that are kept on disk: nothing is asked, waited or paid for twice.

    model = Cached(Endpoint("http://localhost:8000/v1", "qwen"), "runs/mine/models")

Each prompt is an entry of its own, by all that the answer depends on, and is kept the moment it is answered. So a run goes on after a
kill at any moment, and with other batches.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saefast.interp.explain.models import LanguageModel, Prompt
from saefast.interp.explain.models.store import Store
from saefast.interp.explain.models.threads import in_threads

FILE = "answers.sqlite"
TABLES = """
    CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer TEXT NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
"""
AT_ONCE = 500  # questions in a query, of the 999 that SQLite promises


class Cached:
    """Another language model, of which every answer is kept.

    An entry is found by the SHA-256 of the model's `identity` (its name, and its URL, or its path and the state of its files), the
    method, the prompt and all settings.

    Args:
        folder: with the file answers.sqlite, which several threads and processes may use at once.

    Raises:
        InputError: the file is damaged; the message names it. Also by every method.
    """

    def __init__(self, model: LanguageModel, folder: str | Path) -> None:
        self.model = model
        self._identity = getattr(model, "identity", model.name)
        self._store = Store(Path(folder) / FILE, TABLES)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def at_once(self) -> int:
        return self.model.at_once

    @property
    def gives_choices(self) -> bool:
        return self._can("gives_choices")

    @property
    def reads_prompts(self) -> bool:
        return self._can("reads_prompts")

    def _can(self, what: str) -> bool:
        """Found out once; only that it can is kept, for a server may be started again with other settings."""
        key = self._key(what, {}, "")
        if not self._found([key]):
            if not getattr(self.model, what):
                return False
            self._keep(key, True)
        return True

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": float(temperature),
            "n": n,
            "seed": seed,
        }
        return self._answers("write", settings, prompts, lambda some: self.model.write(some, **settings))

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        settings = {"choices": list(choices)}
        found = self._answers(
            "choices", settings, prompts, lambda some: self.model.choices(some, choices).tolist()
        )
        return np.asarray(found, np.float64).reshape(len(prompts), len(choices))

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        def ask(some: list[Any]) -> list[Any]:
            return [one.tolist() for one in self.model.choices_inside(some, choices)]

        found = self._answers("choices_inside", {"choices": list(choices)}, segments, ask)
        return [np.asarray(one, np.float64).reshape(-1, len(choices)) for one in found]

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        def ask(some: list[Any]) -> list[Any]:
            return [one.tolist() for one in self.model.losses(some)]

        return [np.asarray(one, np.float64) for one in self._answers("losses", {}, texts, ask)]

    def _answers(
        self,
        method: str,
        settings: dict[str, Any],
        items: Sequence[Any],
        ask: Callable[[list[Any]], list[Any]],
    ) -> list[Any]:
        keys = [self._key(method, settings, item) for item in items]
        found = self._found(keys)
        missing = list({key: item for key, item in zip(keys, items, strict=True) if key not in found}.items())
        size = getattr(
            self.model, "batch", 1
        )  # what is answered together is kept, or lost in a kill, together

        def one(batch: list[tuple[bytes, Any]]) -> None:
            answers = ask([item for _, item in batch])
            for (key, _), answer in zip(batch, answers, strict=True):
                found[key] = self._keep(key, answer)

        batches = [missing[begin : begin + size] for begin in range(0, len(missing), size)]
        in_threads(one, batches, self.model.at_once)
        return [json.loads(found[key]) for key in keys]

    def _key(self, method: str, settings: dict[str, Any], item: Any) -> bytes:
        text = json.dumps([self._identity, method, settings, item], sort_keys=True)
        return hashlib.sha256(text.encode()).digest()

    def _found(self, keys: list[bytes]) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            query = f"SELECT * FROM answers WHERE question IN ({', '.join('?' * len(some))})"
            for key, answer, checksum in self._store.read(query, some):
                if _checksum(key, answer) != checksum:
                    raise self._store.damaged("an answer has changed since it was kept")
                found[key] = answer
        return found

    def _keep(self, key: bytes, answer: Any) -> str:
        text = json.dumps(answer)
        with self._store.changing() as db:
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, text, _checksum(key, text)))
        return text


def _checksum(key: bytes, answer: str) -> bytes:
    """SQLite finds damage to its own structure, not to what is in it."""
    return hashlib.blake2b(key + str(answer).encode(), digest_size=8).digest()
