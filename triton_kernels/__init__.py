"""The Triton backend: the functions of `saefast.reference`, one file each, for NVIDIA GPUs.

Imported as `saefast.triton_kernels`. Depends on torch and triton only: tensors and numbers in, tensors out.
"""

import torch

from saefast.triton_kernels.batch_topk import batch_topk
from saefast.triton_kernels.centre import centre
from saefast.triton_kernels.decode import decode, decode_error
from saefast.triton_kernels.dense import dense_error, dense_grad_acts, outer_sum, relu_encode
from saefast.triton_kernels.encode import (
    encode_batch_topk,
    encode_dense,
    encode_group_max,
    encode_threshold,
    encode_topk,
)
from saefast.triton_kernels.grad_top_acts import grad_top_acts
from saefast.triton_kernels.group import group_by_latent
from saefast.triton_kernels.keep_topk import keep_topk
from saefast.triton_kernels.losses import losses
from saefast.triton_kernels.sum_entries import sum_entries
from saefast.triton_kernels.sum_rows import sum_rows
from saefast.triton_kernels.tally import tally_
from saefast.triton_kernels.threshold import above_threshold
from saefast.triton_kernels.topk import topk
from saefast.triton_kernels.update import adam_rows_, row_grads, update_

# What differs from the other backends, see `saefast.backend.Backend`.
NAME = "triton"
NUMBERS_DTYPE, GPU_DTYPE = torch.float32, torch.bfloat16
MAX_SELECTED = 256  # what `rescore` sorts in one tile
RECORDABLE, ADDS_PER_LATENT = True, False

__all__ = [
    "above_threshold",
    "adam_rows_",
    "batch_topk",
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
    "sum_rows",
    "tally_",
    "topk",
    "update_",
]
