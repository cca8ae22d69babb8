"""A causal language model of Hugging Face on this machine.

    model = LocalModel("data/smollm2-135m")
    model.write([(Turn("user", "What is the capital of France?"),)], max_tokens=20)

Prompts that begin alike share one pass of that beginning, see passes.py.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saefast.activations.lm import load_model, n_positions
from saefast.errors import check
from saefast.interp.explain.models import CannotAnswer, Prompt
from saefast.interp.explain.models.answers import shares
from saefast.interp.explain.models.conversation import Conversations
from saefast.interp.explain.models.passes import Passes
from saefast.interp.steering import sample


class LocalModel:
    """
    How conversations are written: see `Conversations`.

    Args:
        model: a folder or a name on the Hub, which is loaded in fp32; or a model, which is taken as it is, on its device.
        tokenizer: that of `model`; needed with a model.
        device: where a loaded model goes; default: the GPU if there is one.
        batch_tokens: at once, prompts and padding. Answers are the same for each, up to rounding.

    Raises:
        InputError: no such model, or no tokenizer.
    """

    at_once = 1
    batch = 16  # prompts that a cache has answered together
    gives_choices = True
    reads_prompts = True

    def __init__(
        self,
        model: "str | os.PathLike[str] | nn.Module",
        tokenizer: Any = None,
        device: str | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        check(batch_tokens > 0, f"batch_tokens: expected at least 1, got {batch_tokens}")
        self.path: str | None = None
        if isinstance(model, nn.Module):
            check(tokenizer is not None, "tokenizer: expected that of the model, got none")
            self.model: Any = model
        else:
            self.path = os.fspath(model)
            self.model, own = load_model(
                self.path, device or ("cuda" if torch.cuda.is_available() else "cpu")
            )
            tokenizer = tokenizer or own
        self.tokenizer, self.batch_tokens = tokenizer, batch_tokens
        self._limit, self._lock = n_positions(self.model), Lock()
        self._passes = Passes(self.model, batch_tokens)
        self._texts = Conversations(tokenizer)

    @property
    def name(self) -> str:
        config = getattr(self.model, "config", None)
        given = self.path or getattr(config, "_name_or_path", "") or type(self.model).__name__
        return Path(given).resolve().name if Path(given).exists() else given

    @cached_property
    def identity(self) -> list[Any]:
        """What stands for the weights and the tokenizer in a cache: the path and its files, or all values of a model."""
        if self.path is None:
            sha = hashlib.sha256()
            for name, tensor in self.model.state_dict().items():
                sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            return [self.name, sha.hexdigest(), len(self.tokenizer)]
        folder = Path(self.path)
        if folder.is_dir():
            files = sorted(path for path in folder.iterdir() if path.is_file())
            stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
            return [str(folder.resolve()), stats]
        return [self.path, getattr(self.model.config, "_commit_hash", None)]

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        """See `LanguageModel.write`. Samples are drawn by the seed and the prompt, not by its place among others.

        Raises:
            InputError: a prompt that, with max_tokens, is longer than the model's context.
        """
        check(n > 0, f"n: expected at least 1, got {n}")
        check(max_tokens > 0, f"max_tokens: expected at least 1, got {max_tokens}")
        ids = [self._texts.ids(prompt) for prompt in prompts]
        for one in ids:
            self._check_length(len(one), max_tokens)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: dict[int, list[str]] = {}
        while order:
            # at a temperature each prompt has a seed of its own, which `sample` has one of
            per_prompt = n * (len(ids[order[-1]]) + max_tokens)
            size = max(1, self.batch_tokens // per_prompt) if temperature == 0 else 1
            batch, order = order[-size:], order[:-size]
            some = [ids[i] for i in batch]
            at_once = max(1, self.batch_tokens * n // per_prompt)
            with self._lock:
                found = sample(
                    self.model,
                    self.tokenizer,
                    some,
                    n=n if temperature > 0 else 1,  # the most probable one is the same each time
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    seed=_seed(seed, some[0]) if temperature > 0 else 0,
                    batch_size=at_once,
                )
            for i, prompt in enumerate(batch):
                texts = [self._texts.answer(one.text, prompts[prompt]) for one in found if one.prompt == i]
                answers[prompt] = texts if temperature > 0 else texts * n
        return [answers[i] for i in range(len(ids))]

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """See `LanguageModel.choices`.

        Raises:
            InputError: choices with the same first token; a prompt that is longer than the model's context.
        """
        if not len(prompts):
            return np.zeros((0, len(choices)))
        ids = [self._texts.ids(prompt) for prompt in prompts]
        firsts = [
            [self._texts.pieces(self._texts.lead(prompt) + choice)[:1] for choice in choices]
            for prompt in prompts
        ]
        for one in firsts:
            different = all(one) and len({token for (token,) in one}) == len(choices)
            check(different, f"choices: expected ones with different first tokens, got {list(choices)}")
        columns = [[token for (token,) in one] for one in firsts]
        found = self._at_places(
            ids, [[len(one) - 1] for one in ids], lambda i, logits: _softmax(logits[:, columns[i]])
        )
        return np.concatenate(found)

    def choices_inside(self, segments: Sequence[Sequence[str]], choices: Sequence[str]) -> list[np.ndarray]:
        """See `LanguageModel.choices_inside`. One pass for each text."""
        columns = []
        for choice in choices:
            pieces = self._texts.pieces(choice)
            if len(pieces) != 1:
                raise CannotAnswer(
                    f"model {self.name}: expected choices of one token, {choice!r} is {len(pieces)}"
                )
            columns += pieces
        texts, places = [], []
        for parts in segments:
            check(len(parts) > 0, "segments: expected at least one of each text, got none")
            ids, ends = list(self._texts.begin), []
            for part in parts[:-1]:
                ids += self._texts.pieces(part)
                ends.append(len(ids) - 1)
            check(not ends or ends[0] >= 0, "segments: expected a token before the first choice, got none")
            texts.append(ids)
            places.append(ends)
        return self._at_places(
            texts, places, lambda i, logits: _softmax(logits[:, columns]), empty=(0, len(choices))
        )

    def losses(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """See `LanguageModel.losses`. Both parts are tokenized by themselves: `text` has the same tokens after any other."""
        ids, places, after = [], [], []
        for before, text in texts:
            head, tail = self._texts.begin + self._texts.pieces(before), self._texts.pieces(text)
            check(len(head) > 0, "losses: expected a token before each text, got none")
            ids.append(head + tail)
            places.append(list(range(len(head) - 1, len(head) + len(tail) - 1)))
            after.append(tail)

        def take(i: int, logits: Tensor) -> np.ndarray:
            target = torch.tensor(after[i], dtype=torch.int64, device=logits.device)[:, None]
            found: np.ndarray = -logits.double().log_softmax(dim=1).gather(1, target)[:, 0].cpu().numpy()
            return found

        return self._at_places(ids, places, take, empty=(0,))

    def _at_places(
        self, ids: list[list[int]], places: list[list[int]], take: Any, empty: tuple[int, ...] = (0,)
    ) -> list[np.ndarray]:
        for one in ids:
            self._check_length(len(one), 0)
        found = [np.zeros(empty) for _ in ids]
        some = [i for i, place in enumerate(places) if place]
        if some:
            with self._lock:
                values = self._passes.at_places(
                    [ids[i] for i in some],
                    [places[i] for i in some],
                    lambda row, logits: take(some[row], logits),
                )
            for i, value in zip(some, values, strict=True):
                found[i] = value
        return found

    def _check_length(self, length: int, more: int) -> None:
        ok = self._limit is None or length + more <= self._limit
        written = f" and {more} to write" if more else ""
        check(ok, f"model {self.name}: a prompt of {length} tokens{written}, its context is {self._limit}")


def _softmax(logits: Tensor) -> np.ndarray:
    """Over the choices alone: what the model gives other tokens does not count."""
    return shares(logits.double().softmax(dim=1).cpu().numpy())


def _seed(seed: int, ids: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {ids}".encode()).digest()[:7], "big")
