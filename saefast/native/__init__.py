"""The CPU backend: the ops of `saefast.reference` on the C++ extension.

The extension handles fp32 on the CPU. What has other formats, and what is dense on purpose, goes to the reference, so
every call works. Sums are in a fixed order: the same bits for every number of threads.
"""

from typing import Any

import torch
from torch import Tensor

from saefast import reference
from saefast.errors import InputError
from saefast.reference import (
    Aux,
    Given,
    Grads,
    Groups,
    Numbers,
    decode,
    dense_error,
    encode_dense,
    keep_topk,
    losses,
    outer_sum,
    relu_encode,
    tally_,
)
from saefast.storage import FP32, Matrix, Weights

try:
    import saefast._C
except ModuleNotFoundError as error:  # one that is there but does not load says itself why
    raise ImportError("the C++ extension saefast._C is not built (no compiler at install time?)") from error

from saefast.native.arrays import INT32, handles, numpy_of
from saefast.native.encode import (
    encode_batch_topk,
    encode_group_max,
    encode_threshold,
    encode_topk,
    encoder_of_thread,
)

__all__ = [
    "NAME",
    "adam_rows_",
    "centre",
    "decode",
    "decode_error",
    "dense_error",
    "dense_grad_acts",
    "encode_batch_topk",
    "encode_dense",
    "encode_group_max",
    "encode_threshold",
    "encode_topk",
    "grad_top_acts",
    "group_by_latent",
    "keep_topk",
    "losses",
    "outer_sum",
    "relu_encode",
    "row_grads",
    "sum_entries",
    "tally_",
    "topk",
    "update_",
]

NAME = "native"
NUMBERS_DTYPE, GPU_DTYPE, MAX_SELECTED = torch.float64, None, None
RECORDABLE, ADDS_PER_LATENT = False, True


def centre(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.centre`."""
    if dtype != torch.float32 or not handles(x, b_dec):
        return reference.centre(x, b_dec, dtype)
    centred = torch.empty(x.shape, **FP32)
    variance = saefast._C.centre(*numpy_of(x, b_dec, centred), torch.get_num_threads())
    return centred, torch.tensor(variance or max(x.numel(), 1), **FP32)


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.topk`, bit for bit, but a NaN in `pre_acts` raises InputError with its row."""
    # The extension records no autograd graph, the reference does.
    if pre_acts.dtype != torch.float32 or pre_acts.device.type != "cpu" or pre_acts.requires_grad:
        return reference.topk(pre_acts, k)
    try:
        top_acts, top_indices = saefast._C.topk(pre_acts.contiguous().numpy(), k, torch.get_num_threads())
    except ValueError as error:
        raise InputError(f"{error} (in training: it diverged, choose a lower lr)") from None
    return torch.from_numpy(top_acts), torch.from_numpy(top_indices)


def decode_error(
    acts: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.decode_error`."""
    if dtype != torch.float32 or not handles(acts, indices, W_dec, b_dec, x, row_offsets):
        return reference.decode_error(acts, indices, W_dec, b_dec, x, dtype, row_offsets)
    error, squares = torch.empty(x.shape, **FP32), torch.empty(len(x), **FP32)
    saefast._C.decode_error(
        *numpy_of(acts, indices, row_offsets, W_dec, b_dec, x, error, squares), torch.get_num_threads()
    )
    return error, squares


def group_by_latent(acts: Tensor, indices: Tensor, d_sae: int, row_offsets: Tensor | None = None) -> Groups:
    """As `saefast.reference.group_by_latent`."""
    if not handles(acts, indices, row_offsets):
        return reference.group_by_latent(acts, indices, d_sae, row_offsets)
    offsets = torch.empty(d_sae + 1, **INT32)
    pairs, tokens = (torch.empty(acts.numel(), **INT32) for _ in range(2))
    saefast._C.group_by_latent(
        *numpy_of(acts, indices, row_offsets, offsets, pairs, tokens), torch.get_num_threads()
    )
    return offsets, pairs, tokens


def sum_entries(groups: Groups, per_pair: Tensor) -> Tensor:
    """As `saefast.reference.sum_entries`."""
    offsets, pairs, _ = groups
    if per_pair.dtype != torch.float32 or not handles(per_pair, offsets, pairs):
        return reference.sum_entries(groups, per_pair)
    sums = torch.empty(len(offsets) - 1, **FP32)
    saefast._C.sum_entries(*numpy_of(offsets, pairs, per_pair.flatten(), sums), torch.get_num_threads())
    return sums


def grad_top_acts(
    error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """As `saefast.reference.grad_top_acts`."""
    if not handles(error, W_dec, acts, indices, row_offsets):
        return reference.grad_top_acts(error, W_dec, acts, indices, row_offsets)
    grads = torch.empty(acts.shape, **FP32)
    saefast._C.grad_top_acts(
        *numpy_of(error, W_dec, acts, indices, row_offsets, grads), torch.get_num_threads()
    )
    return grads


def dense_grad_acts(error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
    """As `saefast.reference.dense_grad_acts`, in fewer passes over [B, F]: one for the addend, one for the mask."""
    if not handles(error, W_dec, acts) or addend.dtype != torch.float32:
        return reference.dense_grad_acts(error, W_dec, acts, addend)
    grads = torch.addmm(addend.expand(len(W_dec)), error, W_dec.T)
    return torch.ops.aten.threshold_backward.grad_input(grads, acts, 0, grad_input=grads)


def update_(
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    acts: Tensor,
    indices: Tensor,
    row_offsets: Tensor | None,
    groups: Groups,
    grad_scale: Tensor,
    aux: Aux | None,
    numbers: Tensor,
    step: Tensor,
    given: Given | None = None,
) -> Tensor:
    """As `saefast.reference.update_`, in one pass over the weights; no gradient matrix exists."""
    code = acts, indices, row_offsets, groups
    if not (_is_fp32(weights) and handles(centred, error, acts, *groups, *(aux or ()), *(given or ()))):
        return reference.update_(weights, centred, error, *code, grad_scale, aux, numbers, step, given)
    squared = saefast._C.update(
        _params(weights),
        numpy_of(centred, error, acts.flatten(), *groups),
        float(grad_scale),
        aux and numpy_of(*aux),
        _given(given),
        _numbers(numbers),
        torch.get_num_threads(),
        encoder=encoder_of_thread(),
    )
    return torch.tensor(squared, **FP32)


def row_grads(
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    acts: Tensor,
    indices: Tensor,
    row_offsets: Tensor | None,
    groups: Groups,
    grad_scale: Tensor,
    aux: Aux | None,
    numbers: Tensor,
    given: Given | None = None,
) -> tuple[Grads, Tensor]:
    """As `saefast.reference.row_grads`."""
    code = acts, indices, row_offsets, groups
    if not (_is_fp32(weights) and handles(centred, error, acts, *groups, *(aux or ()), *(given or ()))):
        return reference.row_grads(weights, centred, error, *code, grad_scale, aux, numbers, given)
    enc, dec, b_enc, b_dec = weights
    grads = tuple(torch.empty(t.shape, **FP32) for t in (enc.weight, b_enc.value, dec.weight, b_dec.value))
    squared = saefast._C.row_grads(
        _params(weights),
        numpy_of(centred, error, acts.flatten(), *groups),
        float(grad_scale),
        aux and numpy_of(*aux),
        _given(given),
        _numbers(numbers),
        numpy_of(*grads),
        torch.get_num_threads(),
    )
    return grads, torch.tensor(squared, **FP32)  # type: ignore[return-value]


def adam_rows_(weights: Weights, grads: Grads, factor: Tensor, numbers: Tensor, step: Tensor) -> None:
    """As `saefast.reference.adam_rows_`."""
    if not (_is_fp32(weights) and handles(*grads)):
        return reference.adam_rows_(weights, grads, factor, numbers, step)
    saefast._C.adam_rows(
        _params(weights),
        numpy_of(*grads),
        float(factor),
        _numbers(numbers),
        torch.get_num_threads(),
        encoder=encoder_of_thread(),
    )


def _is_fp32(weights: Weights) -> bool:
    return all(part.exp_avg.dtype == torch.float32 for part in weights) and all(
        matrix.shadow is matrix.weight and handles(*matrix) for matrix in weights[:2]
    )


def _numbers(numbers: Tensor) -> list[float]:
    return numbers[: len(Numbers._fields)].tolist()


def _given(given: Given | None) -> tuple[Any, ...] | None:
    return given and numpy_of(given.grad_pre.flatten(), *given[1:])


def _params(weights: Weights) -> tuple[tuple[Any, ...], ...]:
    """(W_enc, b_enc, W_dec, b_dec), each with its moments, as numpy arrays over the same memory."""

    def of(part: Any) -> tuple[Any, ...]:
        value = part.weight if isinstance(part, Matrix) else part.value
        return numpy_of(value, part.exp_avg, part.exp_avg_sq)

    enc, dec, b_enc, b_dec = weights
    return of(enc), of(b_enc), of(dec), of(b_dec)
