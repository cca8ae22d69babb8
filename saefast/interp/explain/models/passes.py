"""Forward passes of a causal language model over texts of token ids, for what it says at some places of them.

Texts that begin with the same tokens, as prompts with the same examples do, share the keys and values of that beginning: it is passed
once, and kept for the next texts.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.hooks import unwrapped
from saefast.activations.inputs import device_of
from saefast.errors import check, line

WORTH = 32  # tokens; fewer are not worth sharing


class Passes:
    """
    Args:
        model: a causal language model of Hugging Face.
        batch_tokens: of a batch, padding and shared beginnings included; a longer text is a batch of its own.
    """

    def __init__(self, model: Any, batch_tokens: int) -> None:
        self.model, self.batch_tokens = model.eval(), batch_tokens
        known = inspect.signature(unwrapped(model).forward).parameters
        self._can_choose = "logits_to_keep" in known
        self._cached = "cache" if "cache" in known else "past_key_values"  # as transformers before 5.24 say
        self._shares = True  # until it gives keys and values that cannot be cut (windows, states)
        self._ids: list[int] = []  # the beginning that is kept,
        self._kept: list[tuple[Tensor, Tensor]] = []  # [1, heads, tokens, width] of each layer

    @torch.no_grad()
    def at_places(
        self,
        texts: Sequence[list[int]],
        places: Sequence[list[int]],
        take: Callable[[int, Tensor], np.ndarray],
    ) -> list[np.ndarray]:
        """What the model says after some tokens of each text.

        Args:
            texts: token ids.
            places: of each text, numbers of tokens, at least one.
            take: of the number of a text and its logits [places, V], what is kept of them.

        Raises:
            InputError: logits that are NaN or Inf, or a model that cannot take these texts.
        """
        found: dict[int, np.ndarray] = {}
        n = self._beginning(texts, places)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            size = max(
                1, self.batch_tokens // len(texts[order[-1]])
            )  # the longest first: memory fails at once
            batch, order = order[-size:], order[:-size]
            rows = [texts[i][n:] for i in batch]
            wanted = sorted({place - n for i in batch for place in places[i]})
            logits = self._logits(rows, n, wanted)
            column = {place: at for at, place in enumerate(wanted)}
            for row, i in enumerate(batch):
                some = logits[row, [column[place - n] for place in places[i]]]
                finite = bool(torch.isfinite(some).all())
                check(finite, "model: expected logits that are numbers, got NaN or Inf")
                found[i] = take(i, some)
        return [found[i] for i in range(len(texts))]

    def _logits(self, rows: list[list[int]], n: int, wanted: list[int]) -> Tensor:
        """[rows, wanted, V], after the first n tokens of the kept beginning. Padded on the right, where no token looks."""
        device, longest = device_of(self.model), max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        is_real = [[1] * (n + len(row)) + [0] * (longest - len(row)) for row in rows]
        ids, mask = (torch.tensor(some, dtype=torch.int64, device=device) for some in (padded, is_real))
        keep = torch.tensor(wanted, dtype=torch.int64, device=device)
        options: dict[str, Any] = {"logits_to_keep": keep} if self._can_choose else {}
        if n:
            options[self._cached] = self._cache(n, len(rows))
        logits: Tensor = self._called(ids, mask, use_cache=n > 0, **options).logits
        return logits if self._can_choose else logits[:, keep]

    def _called(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        try:
            return self.model(input_ids=ids, attention_mask=mask, **options)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            check(False, f"model: it could not take {list(ids.shape)} token ids: {line(error)}")

    def _beginning(self, texts: Sequence[list[int]], places: Sequence[list[int]]) -> int:
        """How many tokens of the kept beginning these texts have; it is made if it pays."""
        first = texts[0]
        n = min(min(some) for some in places)  # what is said after a token needs that token in the pass
        for text in texts[1:]:
            n = _common(first[:n], text)
        kept = _common(self._ids, first[:n])
        n = n if len(texts) > 1 else kept
        if n < WORTH or not self._shares:
            return 0
        if n > kept:
            device = device_of(self.model)
            ids = torch.tensor([first[kept:n]], dtype=torch.int64, device=device)
            mask = torch.ones(1, n, dtype=torch.int64, device=device)
            last = torch.tensor([n - kept - 1], dtype=torch.int64, device=device)
            options: dict[str, Any] = {"logits_to_keep": last} if self._can_choose else {}
            if kept:
                options[self._cached] = self._cache(kept, 1)
            made = self._called(ids, mask, use_cache=True, **options)
            layers = getattr(made.get(self._cached), "layers", None) or [None]
            self._shares = all(type(layer).__name__ == "DynamicLayer" for layer in layers)
            if not self._shares:
                return 0
            self._ids, self._kept = first[:n], [(layer.keys, layer.values) for layer in layers]
        return n

    def _cache(self, n: int, rows: int) -> Any:
        """The keys and values of the first n tokens for some rows; that of the model grows, what is kept does not."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for i, (keys, values) in enumerate(self._kept):
            shape = (rows, -1, -1, -1)
            cache.update(keys[:, :, :n].expand(shape), values[:, :, :n].expand(shape), i)
        return cache


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
