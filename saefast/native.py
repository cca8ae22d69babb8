"""The CPU backend: the ops of `saefast.reference`, with those that the C++ extension has in its place.

The extension handles fp32 on the CPU; other dtypes and devices go to the reference, so every call works.
"""

import torch
from torch import Tensor

from saefast import reference
from saefast.errors import InputError
from saefast.reference import (
    adam_rows_,
    centre,
    decode,
    decode_error,
    dense_error,
    dense_grad_acts,
    encode_batch_topk,
    encode_threshold,
    grad_top_acts,
    group_by_latent,
    keep_topk,
    outer_sum,
    relu_encode,
    row_grads,
    update_,
)

try:
    import saefast._C
except ModuleNotFoundError as error:  # one that is there but does not load says itself why
    raise ImportError("the C++ extension saefast._C is not built (no compiler at install time?)") from error

__all__ = [
    "NAME", "adam_rows_", "centre", "decode", "decode_error", "dense_error", "dense_grad_acts",
    "encode_batch_topk", "encode_threshold", "encode_topk", "grad_top_acts", "group_by_latent", "keep_topk",
    "outer_sum", "relu_encode", "row_grads", "topk", "update_",
]  # fmt: skip

NAME = "native"


def encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None, rescore: int = 0
) -> tuple[Tensor, Tensor]:
    """As `saefast.reference.encode_topk`."""
    if scale is not None or rescore or centred.dtype != b_enc.dtype:
        return reference.encode_topk(centred, W_enc, b_enc, k, scale, rescore)
    return topk(torch.addmm(b_enc, centred, W_enc.T), k)


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
