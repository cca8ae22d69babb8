"""The encoder of `saefast.native`: products of torch in blocks that stay in cache, each selected from at once.

A worker takes a block of rows, multiplies it by 1024 latents at a time into memory of its own, which it uses again and
again, and selects from that in C++. So the pre-activations of all latents never exist, no worker waits for another,
and rows and latents are read from cache. Products are of torch on one thread; their bits do not depend on how
the rows are cut as long as a block has more than a few of them (`tests/test_native_encode.py`).
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import saefast._C
import torch
from torch import Tensor

from saefast.errors import InputError

LATENTS = 1024  # in a product, or 8 k if that is more: enough for a good bound on the k-th largest at once
MIN_ROWS, MAX_ROWS = 64, 512  # in a product
MAX_CANDIDATES = 2**23  # that the rows of a block keep, 8 bytes each
_arena = threading.local()


def encode_topk(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.encode_topk`, fp32, bit for bit given the same products."""
    top_acts = torch.empty(len(centred), k)
    top_indices = torch.empty(len(centred), k, dtype=torch.int32)

    def block(start: int, end: int) -> None:
        found = saefast._C.TopkBlock(end - start, k)
        for pre_acts, _ in products(centred[start:end], W_enc, b_enc, max(LATENTS, 8 * k)):
            raise_for_nan(found.feed(pre_acts.numpy()), start)
        found.finish(top_acts[start:end].numpy(), top_indices[start:end].numpy())

    for_blocks(block, len(centred), max(1, MAX_CANDIDATES // (2 * k + 128)))
    return top_acts, top_indices


def encode_batch_topk(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `saefast.reference.encode_batch_topk`, fp32."""
    B, F = len(centred), len(W_enc)
    acts, indices = torch.empty(B * k), torch.empty(B * k, dtype=torch.int32)
    row_offsets = torch.zeros(B + 1, dtype=torch.int32)
    if B == 0:
        return acts, indices, row_offsets
    parts: dict[int, Any] = {}  # by thread; which of them found an entry makes no difference

    def block(start: int, end: int) -> None:
        found = parts.setdefault(threading.get_ident(), saefast._C.BatchTopk(B * k, F))
        for pre_acts, first in products(centred[start:end], W_enc, b_enc):
            raise_for_nan(found.feed(pre_acts.numpy(), start, first), start)

    for_blocks(block, B)
    whole, *others = parts.values()
    for other in others:
        whole.merge(other)
    whole.finish(acts.numpy(), indices.numpy(), row_offsets.numpy())
    return acts, indices, row_offsets


def encode_threshold(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saefast.reference.encode_threshold`, fp32."""
    B = len(centred)
    bounds = threshold.to(torch.float32).expand(len(W_enc)).contiguous()
    counts = torch.zeros(B + 1, dtype=torch.int32)  # of each row, after a 0
    parts: dict[int, tuple[Tensor, Tensor]] = {}  # by first row

    def block(start: int, end: int) -> None:
        found = saefast._C.AboveBlock(end - start)
        for pre_acts, first in products(centred[start:end], W_enc, b_enc):
            piece = bounds[first : first + pre_acts.shape[1]]
            raise_for_nan(found.feed(pre_acts.numpy(), piece.numpy()), start)
        part = torch.empty(found.size()), torch.empty(found.size(), dtype=torch.int32)
        found.finish(*(tensor.numpy() for tensor in part), counts[start + 1 : end + 1].numpy())
        parts[start] = part

    for_blocks(block, B)
    row_offsets = counts.cumsum(0)
    n_found = int(row_offsets[-1])
    acts = torch.zeros(n_found if capacity is None else capacity)
    indices = torch.zeros(len(acts), dtype=torch.int32)
    place = 0
    for start in sorted(parts):
        for out, part in zip((acts, indices), parts[start], strict=True):
            fits = part[: max(0, len(out) - place)]
            out[place : place + len(fits)] = fits
        place += len(parts[start][0])
    return acts, indices, row_offsets.to(torch.int32)


def products(rows: Tensor, W_enc: Tensor, b_enc: Tensor, latents: int = LATENTS):  # type: ignore[no-untyped-def]
    """Yields pre-activations [len(rows), n], valid until the next, and the number of their first latent."""
    if getattr(_arena, "memory", None) is None or len(_arena.memory) < len(rows) * latents:
        _arena.memory = torch.empty(len(rows) * latents)
    for first in range(0, len(W_enc), latents):
        W, b = W_enc[first : first + latents], b_enc[first : first + latents]
        pre_acts = _arena.memory[: len(rows) * len(b)].view(len(rows), len(b))
        yield torch.addmm(b, rows, W.T, out=pre_acts), first


def raise_for_nan(row: int, start: int) -> None:
    if row >= 0:
        raise InputError(
            f"pre_acts: expected no NaN, got one in row {start + row} (in training: it diverged, choose a lower lr)"
        )


def for_blocks(work: Callable[[int, int], None], n_rows: int, max_rows: int = MAX_ROWS) -> None:
    """Call work(start, end) for blocks of rows on `torch.get_num_threads()` threads; the first error is raised."""
    threads = torch.get_num_threads()
    rows = min(MAX_ROWS, max_rows, max(MIN_ROWS, n_rows // (2 * threads) // MIN_ROWS * MIN_ROWS))
    starts = list(range(0, n_rows, rows))
    if len(starts) > 1 and n_rows - starts[-1] < min(MIN_ROWS, rows):
        starts.pop()  # a few last rows go with the block before them
    spans = list(zip(starts, [*starts[1:], n_rows], strict=True))
    if threads == 1 or len(spans) < 2:
        for span in spans:
            _block(work, span)
    else:
        list(_workers(os.getpid(), threads).map(lambda span: _block(work, span), spans))


def _block(work: Callable[[int, int], None], span: tuple[int, int]) -> None:
    with torch.no_grad():
        work(*span)


@cache
def _workers(pid: int, threads: int) -> ThreadPoolExecutor:
    """Threads on which torch itself takes one thread; of this process, for after a fork they are gone."""
    all_there = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # else the first product would set the thread up again
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(threads, "saefast", start)
    for _ in range(threads):
        pool.submit(lambda: None)
    all_there.wait()
    torch.set_num_threads(threads)  # what threads to come will take; this one's own number was never changed
    return pool
