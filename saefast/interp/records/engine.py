"""What select.py and text.py specify, for many at once: by the C++ extension where it is built, else by them.

As everywhere, torch.get_num_threads() threads work; the results are the same for every number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.config.records import RecordsConfig
from saefast.errors import InputError
from saefast.interp.records import select as specification
from saefast.interp.records.select import STATISTICS, Block, Selected
from saefast.interp.records.text import Ints, Text
from saefast.storage import FP32

try:
    import saefast._C as _C  # noqa: PLR0402

    IS_NATIVE = True
except ModuleNotFoundError:
    IS_NATIVE = False


def select(blocks: Sequence[Block], first: int, end: int, text: Text, config: RecordsConfig) -> Selected:
    """As `saefast.interp.records.select.select`.

    Raises:
        InputError: the code of a latent is damaged (the extension alone looks).
    """
    if not IS_NATIVE:
        return specification.select(blocks, first, end, text, config)
    n, n_examples = end - first, len(config.places)
    selected = Selected(
        np.empty((n, len(STATISTICS))),
        np.empty((n, config.n_bins), np.int64),
        np.empty((n, n_examples), np.int64),
        np.empty((n, n_examples), np.float32),
    )
    sizes = [config.n_top, config.n_intervals, config.per_interval, config.n_quantiles, config.per_quantile]
    sizes += [config.n_random, config.n_inactive, config.n_bins, config.before, config.after]
    given = first, *_ends(text), text.n_rows, sizes, config.seed
    try:
        _C.select_examples(_tuples(blocks), *given, *selected, torch.get_num_threads())
    except ValueError as error:
        raise InputError(error) from None
    return selected


def windows(slots: Ints, text: Text, config: RecordsConfig) -> Ints:
    """`Text.window` of each slot, [n, 2] int32."""
    if not IS_NATIVE:
        found = [text.window(slot, config) for slot in slots.tolist()]
        return np.asarray(found, np.int32).reshape(-1, 2)
    out = np.empty((len(slots), 2), np.int32)
    _C.token_windows(slots, _ends(text)[0], config.before, config.after, out)
    return out


def documents(slots: Ints, text: Text) -> Ints:
    """`Text.documents`."""
    if not IS_NATIVE:
        return text.documents(slots)
    out = np.empty(len(slots), np.int64)
    _C.token_documents(slots, _ends(text)[0], text.first_document, out)
    return out


def window_acts(blocks: Sequence[Block], latents: Ints, bounds: Ints) -> tuple[Ints, Ints, Ints]:
    """As `saefast.interp.records.select.window_acts`."""
    if not IS_NATIVE:
        return specification.window_acts(blocks, latents, bounds)
    found: tuple[Ints, Ints, Ints] = _C.entries_in(_tuples(blocks), latents, bounds)
    return found


def sorted_code(
    acts: Tensor, indices: Tensor, row_offsets: Tensor, slots: Tensor, d_sae: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saefast.interp.records.codes.sorted_code`, by the extension, with no order of the entries in between."""
    offsets = torch.empty(d_sae + 1, dtype=torch.int64, device="cpu")
    found = torch.empty(len(acts), dtype=torch.int32, device="cpu"), torch.empty(len(acts), **FP32)
    arrays = (tensor.numpy() for tensor in (acts, indices, row_offsets, slots, offsets, *found))
    _C.sort_code(*arrays, torch.get_num_threads())
    return offsets, *found


def _ends(text: Text) -> tuple[Ints, Ints]:
    return text.ends.view(np.uint8), text.encoded.view(np.uint8)


def _tuples(blocks: Sequence[Block]) -> list[tuple[Any, ...]]:
    return [tuple(block) for block in blocks]
