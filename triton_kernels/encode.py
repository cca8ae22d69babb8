"""Encode: pre-activations of all latents and the selection of the active ones.

    encode_topk        the K largest of each token
    encode_batch_topk  the B * K largest of the batch
    encode_threshold   those above a threshold
    encode_group_max   the largest of each of K groups of latents
    encode_dense       no selection

Exactness. What is selected is exactly the K largest (B * K largest, above the threshold) of the pre-activations rounded
to the operands' dtype, the smaller index first among equals: `pre_acts_and_maxima` gives the maxima of the rounded
values, and a group whose maximum is smaller than the k-th largest maximum holds no entry that could be missing. In
bf16 the k-th largest often equals its neighbours, so against pre-activations kept in fp32 the choice among those is
arbitrary. `rescore` removes that: K + rescore are selected by rounded values, and the K largest of these by fp32
products. Let e bound the rounding error of a row, half an ulp of its largest pre-activation. A latent that was left out
has a pre-activation of at most v + e, where v is the (K + rescore)-th largest rounded one; so the selection is that of
fp32 if the K-th largest in fp32 exceeds v + e.

Bytes and FLOPs: those of `pre_acts` and of the selection. Specs: the functions of these names in `saefast.reference`.
"""

import torch
import triton
from torch import Tensor

from saefast.triton_kernels.batch_topk import batch_topk
from saefast.triton_kernels.gemm import device_capability
from saefast.triton_kernels.group_maxima import GROUP
from saefast.triton_kernels.pre_acts import (
    encode_route,
    fused_pre_acts,
    pre_acts_and_maxima,
    products_and_maxima,
)
from saefast.triton_kernels.rescore import rescore as rescore_topk
from saefast.triton_kernels.threshold import above_threshold
from saefast.triton_kernels.topk import select_topk, topk

MAX_PRE_ACTS_BYTES, GROUP_MAX_BYTES = 8 * 2**30, 2**28


def latents_per_chunk(B: int, F: int, itemsize: int) -> int:
    """As many as their pre-activations fit into MAX_PRE_ACTS_BYTES, in whole groups."""
    return min(F, max(GROUP, MAX_PRE_ACTS_BYTES // (max(B, 1) * itemsize) // GROUP * GROUP))


def _route(centred: Tensor, W_enc: Tensor) -> str:
    return encode_route(*centred.shape, len(W_enc), centred.dtype, device_capability(centred.device))


def encode_topk(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    scale: Tensor | None = None,
    rescore: int = 0,
    *,
    route: str | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> acts [B, K] in b_enc's dtype, indices [B, K] int32.

    Args:
        scale: [F], multiplies the pre-activations.
        rescore: how many more than k are selected by rounded pre-activations, of which fp32 products choose; 0: none.
        route: of the product, see `pre_acts_and_maxima`.
        chunk: latents whose pre-activations are kept at a time; None: as many as MAX_PRE_ACTS_BYTES hold.
    """
    B, F = len(centred), len(W_enc)
    assert 1 <= k <= F, f"k: expected 1 to {F}, got {k}"
    n_selected = min(k + rescore, F)
    chunk = chunk or latents_per_chunk(B, F, centred.element_size())
    route = route or _route(centred, W_enc)
    assert route in ("triton", "cublas"), f"route: expected 'triton' or 'cublas', got {route!r}"
    if chunk >= F and route == "cublas":
        products, maxima = products_and_maxima(centred, W_enc, b_enc, scale)
        acts, indices = select_topk(products, maxima, n_selected, b_enc, scale, b_enc.dtype)
    elif chunk >= F:
        maxima = torch.empty(B, triton.cdiv(F, GROUP), dtype=centred.dtype, device=centred.device)
        pre_acts = fused_pre_acts(centred, W_enc, b_enc, scale, maxima)
        acts, indices = select_topk(pre_acts, maxima, n_selected, dtype=b_enc.dtype)
    else:
        acts, indices = _topk_of_chunks(centred, W_enc, b_enc, n_selected, scale, route, chunk)
    if rescore:
        acts, indices = rescore_topk(centred, W_enc, b_enc, scale, indices, k)
    return acts.to(b_enc.dtype), indices


def _topk_of_chunks(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    scale: Tensor | None,
    route: str | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The k largest of the k largest of each chunk. Candidates are in ascending order of index, as `select_topk` leaves
    them, so the smaller position is the smaller index."""
    values, indices = [], []
    for first in range(0, len(W_enc), chunk):
        part = slice(first, first + chunk)
        of_part = None if scale is None else scale[part]
        candidates = _chunk_candidates(centred, W_enc[part], b_enc[part], k, of_part, route)
        values.append(candidates[0])
        indices.append(candidates[1] + first)
    acts, slots = topk(torch.cat(values, dim=1), k)
    return acts, torch.cat(indices, dim=1).gather(1, slots.long())


def _chunk_candidates(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None, route: str | None
) -> tuple[Tensor, Tensor]:
    """A function, so that the pre-activations of one chunk are free before the next one allocates its own."""
    pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, b_enc, scale, route)
    _, indices = select_topk(pre_acts, maxima, min(k, len(W_enc)))
    # Before ReLU: among negative ones the larger still wins.
    return pre_acts.gather(1, indices.long()), indices


def _whole_pre_acts(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, what: str, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    n_bytes = len(centred) * len(W_enc) * centred.element_size()
    if n_bytes > MAX_PRE_ACTS_BYTES:
        raise ValueError(
            f"{what}: expected pre-activations of at most {MAX_PRE_ACTS_BYTES} bytes, got {n_bytes}; use a smaller batch"
        )
    return pre_acts_and_maxima(centred, W_enc, b_enc, scale)


def encode_batch_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-> acts [B * K] in b_enc's dtype, indices [B * K] int32, row_offsets [B + 1] int32; scale [F] as in `encode_topk`."""
    pre_acts, maxima = _whole_pre_acts(centred, W_enc, b_enc, "encode_batch_topk", scale)
    acts, indices, row_offsets = batch_topk(pre_acts, k, maxima)
    return acts.to(b_enc.dtype), indices, row_offsets


def encode_threshold(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-> acts [N] in b_enc's dtype, indices [N] int32, row_offsets [B + 1] int32; threshold [] or [F].

    Args:
        capacity: N, see `above_threshold`. None waits for the device to count.
    """
    pre_acts, maxima = _whole_pre_acts(centred, W_enc, b_enc, "encode_threshold")
    groups = maxima if threshold.ndim == 0 else None
    acts, indices, row_offsets = above_threshold(pre_acts, threshold, capacity, groups)
    return acts.to(b_enc.dtype), indices, row_offsets


def encode_dense(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> pre_acts [B, F] in centred's dtype; NaN becomes +inf."""
    if _route(centred, W_enc) == "triton":
        return fused_pre_acts(centred, W_enc, b_enc)
    return products_and_maxima(centred, W_enc, b_enc, write=True)[0]


def encode_group_max(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """-> acts [B, K] in b_enc's dtype, indices [B, K] int32, by torch from `encode_dense` of some tokens at a time."""
    first = torch.arange(0, len(W_enc), len(W_enc) // k, dtype=torch.int64, device=W_enc.device)
    acts, indices = [], []
    for part in centred.split(max(1, GROUP_MAX_BYTES // (len(W_enc) * centred.element_size()))):
        values, places = (
            encode_dense(part, W_enc, b_enc).unflatten(1, (k, -1)).max(dim=2)
        )  # the first of equal ones
        acts.append(values.relu().to(b_enc.dtype))
        indices.append((places + first).to(torch.int32))
    return torch.cat(acts), torch.cat(indices)
