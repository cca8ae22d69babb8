"""A text with the latents that are active on each of its tokens."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from saefast.errors import check
from saefast.interp.records import Records


class ActiveText(NamedTuple):
    """Tokens, and of each the active latents."""

    tokens: list[int]
    active: list[list[tuple[int, float]]]  # of each token (latent, activation), the strongest first

    @classmethod
    def of(cls, tokens: Iterable[int], top_acts: Tensor, top_indices: Tensor) -> "ActiveText":
        """From the code of one text, as `SAE.encode` gives it.

        Args:
            tokens: [n] ids.
            top_acts, top_indices: [n, k] of its rows.

        Raises:
            InputError: another number of rows than tokens.
        """
        ids = [int(token) for token in tokens]
        ok = top_acts.shape == top_indices.shape and len(top_acts) == len(ids)
        got = f"{list(top_acts.shape)} and {list(top_indices.shape)}"
        check(ok, f"top_acts: expected rows of {len(ids)} tokens, as many as indices, got {got}")
        rows = zip(top_acts.tolist(), top_indices.tolist(), strict=True)
        return cls(ids, [_sorted(zip(indices, acts, strict=True)) for acts, indices in rows])

    @classmethod
    def recorded(cls, records: Records, context: int) -> "ActiveText":
        """One context of the text that was recorded. Tokens that have no row of activations have no latents.

        Raises:
            InputError: there is no such context.
        """
        text, n = records.text, len(records.text.contexts)
        check(0 <= context < n, f"context: expected 0 to {n - 1}, got {context!r}")
        found: list[list[tuple[int, float]]] = [[] for _ in range(text.length)]
        first = context * text.length
        for block in records.blocks:
            slots = block.slots[block.offsets[0] : block.offsets[-1]]
            begin = first - block.first_slot
            places = ((slots >= begin) & (slots < begin + text.length)).nonzero()[0] + block.offsets[0]
            latents = np.searchsorted(block.offsets, places, side="right") - 1
            for place, latent in zip(places.tolist(), latents.tolist(), strict=True):
                found[int(block.slots[place]) - begin].append((latent, float(block.acts[place])))
        return cls(text.contexts[context].tolist(), [_sorted(one) for one in found])


def _sorted(active: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(((latent, act) for latent, act in active if act > 0), key=lambda one: (-one[1], one[0]))
