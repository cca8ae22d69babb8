"""The selection in C++ (csrc/cpu/records.cpp): what `select` and `tables` say in numpy, for all latents at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import saefast._C
from saefast.config.records import RecordsConfig
from saefast.errors import InputError
from saefast.interp.records.select import STATISTICS, Block, Selected
from saefast.interp.records.text import Ints, Text
from saefast.native.arrays import INT32, numpy_of
from saefast.storage import FP32


def select(blocks: Sequence[Block], first: int, end: int, text: Text, config: RecordsConfig) -> Selected:
    """As `saefast.interp.records.select.select`; sums of the statistics are in another order.

    Raises:
        InputError: the code of a latent is not one: damaged files.
    """
    n, n_examples = end - first, len(config.places)
    selected = Selected(
        np.empty((n, len(STATISTICS))),
        np.empty((n, config.n_bins), np.int64),
        np.empty((n, n_examples), np.int64),
        np.empty((n, n_examples), np.float32),
    )
    try:
        saefast._C.select_records(
            _blocks(blocks, text),
            first,
            end,
            _text(text),
            _numbers(config),
            *selected,
            torch.get_num_threads(),
        )
    except ValueError as error:
        raise InputError(f"records: the code is damaged: {error}") from None
    return selected


def windows(slots: Ints, text: Text, config: RecordsConfig) -> tuple[Ints, Ints]:
    """`Text.window` [n, 2] int32 and `Text.documents` [n] int64 of each slot."""
    found, documents = np.empty((len(slots), 2), np.int32), np.empty(len(slots), np.int64)
    saefast._C.record_windows(_text(text), _numbers(config), text.first_document, slots, found, documents)
    return found, documents


def window_acts(
    latents: Ints, slots: Ints, windows: Ints, blocks: Sequence[Block], text: Text
) -> tuple[Ints, Ints, Ints]:
    """As `saefast.interp.records.tables.window_acts`."""
    which = (_blocks(blocks, text), text.n_slots, text.length, latents.astype(np.int32), slots, windows)
    counts, threads = np.empty(len(slots), np.int32), torch.get_num_threads()
    saefast._C.window_acts(*which, counts, None, None, threads)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    at, acts = np.empty(offsets[-1], np.int16), np.empty(offsets[-1], np.float32)
    saefast._C.window_acts(*which, offsets, at, acts, threads)
    return offsets, at, acts


def sorted_code(
    acts: Tensor, indices: Tensor, row_offsets: Tensor, slots: Tensor, d_sae: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saefast.interp.records.codes.sorted_code`, without an order of the entries in between."""
    offsets = torch.empty(d_sae + 1, dtype=torch.int64, device="cpu")
    found = torch.empty(len(acts), **INT32), torch.empty(len(acts), **FP32)
    arrays = numpy_of(acts, indices, row_offsets, slots, offsets, *found)
    saefast._C.sort_code(*arrays, torch.get_num_threads())
    return offsets, *found


def _blocks(blocks: Sequence[Block], text: Text) -> list[tuple[Any, ...]]:
    ends = [block.first_slot for block in blocks[1:]] + [text.n_slots]
    return [
        (block.first_slot, end - block.first_slot, block.offsets, block.slots, block.acts)
        for block, end in zip(blocks, ends, strict=True)
    ]


def _text(text: Text) -> tuple[Any, ...]:
    separators = np.asarray(text.separators, np.int32).reshape(-1)
    return text.contexts, text.encoded.view(np.uint8), separators, text.n_rows


def _numbers(config: RecordsConfig) -> list[int]:
    sizes = [config.n_top, config.n_intervals, config.per_interval, config.n_quantiles, config.per_quantile]
    return sizes + [
        config.n_random,
        config.n_inactive,
        config.n_bins,
        config.before,
        config.after,
        config.seed,
    ]
