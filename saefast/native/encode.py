"""The encoder of `saefast.native`: screened in 8 bits where the processor can, else torch's products in blocks.

Where it multiplies bytes (AVX2 and more, Arm's dot product), `saefast._C.ScreenedEncoder` multiplies all latents in 7 or 8
bits, a fraction of the work, with a proven bound of each error, and scores in fp32 only those that the bounds do not exclude
from the selection: what is selected is that of all scores, exactly (docs/engine.md).

Else, and where the bounds exclude too little (MOST: a code that is not sparse, equal latents), products of torch are taken
in blocks that stay in cache, each selected from at once. Which of the two depends on the operands alone. A worker takes a block of rows, multiplies it by 1024 latents at a time into memory of its own, which it uses again and
again, and selects from that in C++. So the pre-activations of all latents never exist, no worker waits for another, and
rows and latents are read from cache. Their bits do not depend on how rows and latents are cut as long as each piece has
more than a few of them (`tests/native/test_encode.py`).
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import saefast._C
from saefast import reference
from saefast.errors import InputError
from saefast.native.arrays import INT32, handles, numpy_of
from saefast.storage import FP32

LATENTS = 1024  # in a product, or 8 k if that is more: enough for a good bound on the k-th largest at once
LEAST, MAX_ROWS = 64, 512  # rows in a product
MAX_CANDIDATES = 2**23  # that the rows of a block keep, 8 bytes each
SCREENED_ROWS = 32  # for fewer it does not pay to round all of W_enc (measured, benchmarks/LOG.md)
MOST = 5  # of so many entries at most one is scored in fp32; else torch's product is faster (measured, benchmarks/LOG.md)
_arena = threading.local()
Scratch = dict[str, Tensor]


def encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None, rescore: int = 0
) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.encode_topk`, in fp32 bit for bit given the same products."""
    if rescore or not handles(centred, W_enc, b_enc, scale):
        return reference.encode_topk(centred, W_enc, b_enc, k, scale, rescore)
    top_acts = torch.empty(len(centred), k, **FP32)
    top_indices = torch.empty(len(centred), k, **INT32)
    if can_screen(len(centred), len(W_enc), W_enc.shape[1], k):
        screen = screened_encoder()
        operands = numpy_of(centred, *_scaled(W_enc, b_enc, scale))
        row = screen.top_k(*operands, k, *numpy_of(top_acts, top_indices), torch.get_num_threads())
        raise_for_nan(row, 0)
        if row != screen.BAD_WEIGHTS:  # W_enc or b_enc hold numbers that are not finite, or huge
            return top_acts, top_indices

    def block(start: int, end: int, scratch: Scratch) -> None:
        found = saefast._C.TopkBlock(end - start, k)
        for pre_acts, _ in products(centred[start:end], W_enc, b_enc, scratch, max(LATENTS, 8 * k), scale):
            raise_for_nan(found.feed(pre_acts.numpy()), start)
        found.finish(top_acts[start:end].numpy(), top_indices[start:end].numpy())

    for_blocks(block, len(centred), max(8, MAX_CANDIDATES // (2 * k + 128)))
    return top_acts, top_indices


def screens() -> str | None:
    """The instruction set by which bytes are multiplied here; None: torch's products are taken, as on Apple's processors,
    whose matrix unit Accelerate uses, and on one that multiplies no bytes."""
    isa: str = saefast._C.isas()[0]
    return None if isa == "plain" else isa


def can_screen(B: int, d_sae: int, d_in: int, k: int) -> bool:
    """k: of a selection that takes so many of d_sae latents; 0 for one that takes what passes a threshold."""
    encoder = saefast._C.ScreenedEncoder
    return (
        screens() is not None
        and B >= SCREENED_ROWS
        and encoder.MIN_D <= d_in <= encoder.MAX_D
        and encoder.LATENTS_PER_K * k <= d_sae <= encoder.MAX_F
    )


def screened_encoder() -> Any:
    """That of this thread, which keeps its memory."""
    if not hasattr(_arena, "encoder"):
        _arena.encoder = saefast._C.ScreenedEncoder()
    return _arena.encoder


def encoder_of_thread() -> Any:
    """It if there is one: an update of the weights that it has rounded rounds them again while they are in cache."""
    return getattr(_arena, "encoder", None)


def screened(selection: str, centred: Any, W_enc: Any, *arguments: Any) -> bool:
    """Whether the screened encoder made this selection; else torch's product is faster, or needed."""
    most = len(centred) * len(W_enc) // MOST
    run = getattr(screened_encoder(), selection)
    row = run(centred, W_enc, *arguments, torch.get_num_threads(), most=most)
    raise_for_nan(row, 0)
    return row not in (saefast._C.ScreenedEncoder.BAD_WEIGHTS, saefast._C.ScreenedEncoder.TOO_MANY)


def _scaled(W_enc: Tensor, b_enc: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """With the scale in the weights, which is one rounding of each; afterwards it would be one of each pre-activation. Into
    memory that the next call uses again."""
    if scale is None:
        return W_enc, b_enc
    if getattr(_arena, "scaled", None) is None or _arena.scaled.shape != W_enc.shape:
        _arena.scaled = torch.empty_like(W_enc)
    return torch.mul(W_enc, scale[:, None], out=_arena.scaled), b_enc * scale


def encode_batch_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saefast.reference.encode_batch_topk`."""
    if not handles(centred, W_enc, b_enc, scale):
        return reference.encode_batch_topk(centred, W_enc, b_enc, k, scale)
    B, F = len(centred), len(W_enc)
    acts, indices = torch.empty(B * k, **FP32), torch.empty(B * k, **INT32)
    row_offsets = torch.zeros(B + 1, **INT32)
    if B == 0:
        return acts, indices, row_offsets
    if can_screen(B, F, W_enc.shape[1], k):
        operands, out = numpy_of(centred, *_scaled(W_enc, b_enc, scale)), numpy_of(acts, indices, row_offsets)
        if screened("batch_topk", *operands, k, *out):
            return acts, indices, row_offsets
        row_offsets.zero_()
    parts: dict[int, Any] = {}  # by thread; which of them found an entry makes no difference

    def block(start: int, end: int, scratch: Scratch) -> None:
        if id(scratch) not in parts:
            parts[id(scratch)] = saefast._C.BatchTopk(B * k, F)
        found = parts[id(scratch)]
        for pre_acts, first in products(centred[start:end], W_enc, b_enc, scratch, scale=scale):
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
    """As `saefast.reference.encode_threshold`."""
    threshold = threshold.contiguous()  # one number may come expanded to [F]
    if not handles(centred, W_enc, b_enc, threshold):
        return reference.encode_threshold(centred, W_enc, b_enc, threshold, capacity)
    B = len(centred)
    # nothing is above a NaN, nor above Inf
    bounds = threshold.to(torch.float32).expand(len(W_enc)).nan_to_num(torch.inf, torch.inf, -torch.inf)
    if can_screen(B, len(W_enc), W_enc.shape[1], 0):
        row_offsets = torch.empty(B + 1, **INT32)
        if screened("above", *numpy_of(centred, W_enc, b_enc, bounds, row_offsets)):
            acts = torch.zeros(int(row_offsets[-1]) if capacity is None else capacity, **FP32)
            indices = torch.zeros(len(acts), **INT32)
            screened_encoder().write_above(*numpy_of(acts, indices))
            return acts, indices, row_offsets
    counts = torch.zeros(B + 1, **INT32)  # of each row, after a 0
    parts: dict[int, tuple[Tensor, Tensor]] = {}  # by first row

    def block(start: int, end: int, scratch: Scratch) -> None:
        found = saefast._C.AboveBlock(end - start)
        for pre_acts, first in products(centred[start:end], W_enc, b_enc, scratch):
            piece = bounds[first : first + pre_acts.shape[1]]
            raise_for_nan(found.feed(pre_acts.numpy(), piece.numpy()), start)
        part = torch.empty(found.size(), **FP32), torch.empty(found.size(), **INT32)
        found.finish(*(tensor.numpy() for tensor in part), counts[start + 1 : end + 1].numpy())
        parts[start] = part

    for_blocks(block, B)
    row_offsets = counts.cumsum(0)
    n_found = int(row_offsets[-1])
    acts = torch.zeros(n_found if capacity is None else capacity, **FP32)
    indices = torch.zeros(len(acts), **INT32)
    place = 0
    for start in sorted(parts):
        for out, part in zip((acts, indices), parts[start], strict=True):
            fits = part[: max(0, len(out) - place)]
            out[place : place + len(fits)] = fits
        place += len(parts[start][0])
    return acts, indices, row_offsets.to(torch.int32)


def encode_group_max(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.encode_group_max`."""
    if not handles(centred, W_enc, b_enc):
        return reference.encode_group_max(centred, W_enc, b_enc, k)
    B = len(centred)
    if can_screen(B, len(W_enc), W_enc.shape[1], k):
        acts, indices = torch.empty(B, k, **FP32), torch.empty(B, k, **INT32)
        if screened("group_max", *numpy_of(centred, W_enc, b_enc), k, *numpy_of(acts, indices)):
            return acts, indices
    acts, indices = reference.encode_group_max(centred, W_enc, b_enc, k)
    bad = acts.isnan().any(dim=1)
    raise_for_nan(int(bad.int().argmax()) if bad.any() else -1, 0)
    return acts, indices


def products(
    rows: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    scratch: Scratch,
    latents: int = LATENTS,
    scale: Tensor | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Yields pre-activations [len(rows), n] (times scale [F]), valid until the next, and the first latent of them."""
    spans = cut(len(W_enc), latents)
    needed = len(rows) * max(end - first for first, end in spans)
    if len(scratch.get("pre_acts", ())) < needed:
        scratch["pre_acts"] = torch.empty(needed, **FP32)
    for first, end in spans:
        pre_acts = scratch["pre_acts"][: len(rows) * (end - first)].view(len(rows), end - first)
        torch.addmm(b_enc[first:end], rows, W_enc[first:end].T, out=pre_acts)
        yield (pre_acts if scale is None else pre_acts.mul_(scale[first:end])), first


def cut(n: int, size: int) -> list[tuple[int, int]]:
    """[0, n) in spans of `size`; fewer than LEAST left over go with the span before them.

    For a few rows or latents the library multiplies in another way, which rounds otherwise.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] < min(LEAST, size):
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True)) if n else []


def raise_for_nan(row: int, start: int) -> None:
    if row >= 0:
        raise InputError(
            f"pre_acts: expected no NaN, got one in row {start + row} (in training: it diverged, choose a lower lr)"
        )


def for_blocks(work: Callable[[int, int, Scratch], None], n_rows: int, max_rows: int = MAX_ROWS) -> None:
    """Call work(start, end, scratch) for blocks of rows on `torch.get_num_threads()` threads; the first error is raised.

    scratch: memory that no other block uses at the same time, to be used again by later ones.
    """
    threads = torch.get_num_threads()
    rows = max(LEAST, n_rows // (2 * threads) // LEAST * LEAST)
    spans = cut(n_rows, min(MAX_ROWS, max_rows, rows))
    scratch = _arena.__dict__.setdefault("scratch", defaultdict(dict))  # by thread of the engine

    def block(item: int, thread: int) -> None:
        with torch.no_grad():
            work(*spans[item], scratch[thread])

    if threads == 1 or len(spans) < 2:
        for item in range(len(spans)):
            block(item, 0)
    else:
        saefast._C.parallel_for(len(spans), threads, block)
