"""Some contexts with all latents that are active on each of their tokens: the sparse code, by token again."""

from collections.abc import Iterator

import numpy as np

from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records


def chosen(n_contexts: int, n: int) -> np.ndarray:
    """At most n contexts, evenly spaced over all, ascending."""
    n = min(n, n_contexts)
    return np.arange(n, dtype=np.int64) * n_contexts // max(n, 1)


def pages(
    records: Records, contexts: np.ndarray, latents: np.ndarray, shown: Shown
) -> Iterator[dict[str, np.ndarray]]:
    """For each context its tokens [L], how many latents are active on each [L], which ones (the strongest first) and their
    activations. Latents that the site does not show are left out."""
    text, length = records.text, records.text.length
    slots, owners, acts = _entries(records, contexts)
    if len(latents) < records.d_sae:
        keep = np.isin(owners, latents)
        slots, owners, acts = slots[keep], owners[keep], acts[keep]
    order = np.lexsort((owners, -acts, slots))
    slots, owners, acts = slots[order], owners[order], acts[order]
    bounds = np.searchsorted(slots, np.stack([contexts, contexts + 1]) * length)
    for context, begin, end in zip(contexts.tolist(), *bounds.tolist(), strict=True):
        yield {
            "tokens": shown(text.contexts[context]),
            "encoded": text.encoded[context].astype(np.uint8),
            "n_active": np.bincount(slots[begin:end] - context * length, minlength=length).astype(np.uint32),
            "latents": owners[begin:end].astype(np.uint32),
            "acts": acts[begin:end].astype(np.float32),
        }


def _entries(records: Records, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All activations in these contexts: slots [n] int64, latents [n] int64, acts [n] float32."""
    length = records.text.length
    wanted = np.zeros(len(records.text.contexts), bool)
    wanted[contexts] = True
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for block in records.blocks:
        for first in range(0, len(block.slots), 2**24):  # bounds the memory that a block takes
            slots = block.slots[first : first + 2**24].astype(np.int64) + block.first_slot
            inside = wanted[slots // length].nonzero()[0]
            owners = np.searchsorted(block.offsets, inside + first, side="right") - 1
            found.append((slots[inside], owners, np.asarray(block.acts[first : first + 2**24])[inside]))
    empty = np.zeros(0, np.int64)
    columns = list(zip(*found, strict=True)) or [(empty,), (empty,), (empty.astype(np.float32),)]
    slots, owners, acts = (np.concatenate(column) for column in columns)
    return slots, owners, acts
