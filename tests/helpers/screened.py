"""Selections by `saefast._C.ScreenedEncoder` as tensors, and rows that are hard to screen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INT32: dict[str, Any] = {"dtype": torch.int32, "device": "cpu"}
FP32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def top_k(encoder: Any, x: Tensor, W: Tensor, b: Tensor, k: int, n_threads: int = 2, **options: Any) -> Any:
    """Each of these: the outputs, or what the encoder said instead."""
    out = torch.empty(len(x), k, **FP32), torch.empty(len(x), k, **INT32)
    status = encoder.top_k(*arrays(x, W, b), k, *arrays(*out), n_threads, **options)
    return out if status == -1 else status


def batch_topk(
    encoder: Any, x: Tensor, W: Tensor, b: Tensor, k: int, n_threads: int = 2, **options: Any
) -> Any:
    out = torch.empty(len(x) * k, **FP32), torch.empty(len(x) * k, **INT32), torch.empty(len(x) + 1, **INT32)
    status = encoder.batch_topk(*arrays(x, W, b), k, *arrays(*out), n_threads, **options)
    return out if status == -1 else status


def above(
    encoder: Any, x: Tensor, W: Tensor, b: Tensor, bounds: Tensor, n_threads: int = 2, **options: Any
) -> Any:
    row_offsets = torch.empty(len(x) + 1, **INT32)
    status = encoder.above(*arrays(x, W, b, bounds, row_offsets), n_threads, **options)
    if status != -1:
        return status
    acts = torch.empty(int(row_offsets[-1]), **FP32)
    indices = torch.empty(len(acts), **INT32)
    assert encoder.write_above(*arrays(acts, indices)) == len(acts)
    return acts, indices, row_offsets


def group_max(
    encoder: Any, x: Tensor, W: Tensor, b: Tensor, k: int, n_threads: int = 2, **options: Any
) -> Any:
    out = torch.empty(len(x), k, **FP32), torch.empty(len(x), k, **INT32)
    status = encoder.group_max(*arrays(x, W, b), k, *arrays(*out), n_threads, **options)
    return out if status == -1 else status


def thresholds(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """[F]: about k pre-activations of a row are above; some latents always are, some never, and one has a NaN."""
    pre_acts = torch.addmm(b, x, W.T)
    bounds = pre_acts.flatten().topk(min(pre_acts.numel(), len(x) * k)).values[-1] * torch.linspace(
        0.9, 1.1, len(W)
    )
    for first, value in enumerate((-torch.inf, torch.inf, torch.nan)):
        bounds[first + 5 :: 300] = value
    return bounds


SELECTIONS: dict[str, Callable[..., Any]] = {
    "top_k": top_k,
    "batch_topk": batch_topk,
    "above": lambda encoder, x, W, b, k, *n, **options: above(
        encoder, x, W, b, thresholds(x, W, b, k), *n, **options
    ),
    "group_max": group_max,
}
HARD = ("outlier", "one-hot", "scales", "close", "heavy", "denormal")


def hard(kind: str, x: Tensor, W: Tensor) -> None:
    """Rows that are hard to round to 8 bits, in place."""
    D = x.shape[1]
    if kind == "outlier":
        x[:, D // 3] *= 1000
    elif kind == "one-hot":
        x *= 0
        x[torch.arange(len(x)), torch.arange(len(x)) % D] = torch.linspace(-3, 3, len(x))
    elif kind == "scales":
        x *= 10.0 ** torch.linspace(-30, 10, len(x))[:, None]
        W *= 10.0 ** torch.linspace(-12, 3, len(W))[:, None]
    elif kind == "close":  # many latents within rounding of each other
        W[:] = W[0] + 1e-5 * W
    elif kind == "heavy":
        x.pow_(5)
        W.pow_(3)
    elif kind == "denormal":
        x *= 1e-42
