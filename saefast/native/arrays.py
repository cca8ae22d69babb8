"""Tensors as the C++ extension takes them: NumPy arrays over the same memory."""

from typing import Any

import torch
from torch import Tensor

INT32: dict[str, Any] = {"dtype": torch.int32, "device": "cpu"}


def handles(*tensors: Tensor | None) -> bool:
    """Whether the extension can take these: fp32 (or indices) on the CPU, contiguous, no autograd graph to record."""
    return all(
        t is None
        or (
            t.dtype in (torch.float32, torch.int32)
            and t.device.type == "cpu"
            and t.is_contiguous()
            and not t.requires_grad
        )
        for t in tensors
    )


def numpy_of(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.numpy() for tensor in tensors)
