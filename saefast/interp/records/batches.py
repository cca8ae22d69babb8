"""Rows and where in the text each comes from, from any source with text, some contexts at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.activations.lm import ModelSource
from saefast.activations.shards import ShardSource
from saefast.activations.sources import Source
from saefast.errors import check

ROWS = 8192  # about as many from a shard at a time


class TextRows(NamedTuple):
    """The rows of some whole contexts."""

    x: Tensor  # [n, d_in]
    contexts: Tensor  # [m, L] int32 token ids
    slots: Tensor  # [n] int64, context * L + position, ascending


def check_has_text(source: Source) -> None:
    """Raise InputError unless the tokens of the rows are known."""
    want = "activations with their text: a shard folder of `saefast cache`, or a model on text"
    kind = type(source).__name__
    check(isinstance(source, ShardSource | ModelSource), f"source: expected {want}, got {kind}")
    if isinstance(source, ShardSource):
        ok = "contexts" in source.shard(0)
        check(ok, f"source: expected a cache made from text, {source.folder} has no token ids")


def text_rows(source: Source, start: int = 0) -> Iterator[TextRows]:
    """One pass from batch number `start` on, over a source with text. The batches are always the same ones.

    Raises:
        InputError: contexts of more than one length, or more than one row of a token.
    """
    length = None
    for number, batch in enumerate(_batches(source, start), start):
        contexts, slots = batch.contexts, batch.slots
        is_ids = contexts.ndim == 2 and not contexts.is_floating_point()
        check(is_ids, f"source: expected token ids [m, L], got {contexts.dtype} {list(contexts.shape)}")
        length = length or contexts.shape[1]
        got = f"{contexts.shape[1]} in batch {number}"
        check(contexts.shape[1] == length, f"source: expected contexts of {length} tokens, got {got}")
        one = bool((slots[1:] > slots[:-1]).all())
        check(one, f"source: expected one row for each token, in their order, got others in batch {number}")
        yield batch


def _batches(source: Source, start: int) -> Iterator[TextRows]:
    if isinstance(source, ModelSource):
        for batch in source.model_batches(start):
            length = batch.contexts.shape[-1]
            yield TextRows(batch.activations, batch.contexts, batch.context.long() * length + batch.position)
        return
    assert isinstance(source, ShardSource)
    number = 0
    for i in range(len(source.index["shards"])):
        shard = source.shard(i)
        context, (m, length) = shard["context"].long(), shard["contexts"].shape
        rising = bool((context[1:] >= context[:-1]).all())
        check(
            rising,
            f"source: {source.folder}: expected rows in the order of their contexts, got others in shard {i}",
        )
        each = max(1, ROWS * m // max(len(context), 1))  # contexts in a batch
        for first in range(0, m, each):
            if number >= start:
                end = min(first + each, m)
                rows = slice(
                    *torch.searchsorted(
                        context, torch.tensor([first, end], dtype=torch.int64, device="cpu")
                    ).tolist()
                )
                slots = (context[rows] - first) * length + shard["position"][rows].long()
                yield TextRows(shard["activations"][rows], shard["contexts"][first:end], slots)
            number += 1
