"""The format in which a model multiplies: as it is, or in bf16, which is faster where the processor has instructions for it.

Only the products are rounded: what `torch.autocast` makes of them. Parameters, norms and the residual stream stay fp32.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import get_args

import torch
from torch import Tensor, nn

from saefast.activations.inputs import device_of
from saefast.config.text import ModelDtype
from saefast.errors import check

log = logging.getLogger("saefast")


def checked(model_dtype: ModelDtype, model: nn.Module) -> ModelDtype:
    """`model_dtype`; one line is logged if it is bf16, and no faster where the model is.

    Raises:
        InputError: none of `ModelDtype`.
    """
    names = list(get_args(ModelDtype))
    check(model_dtype in names, f"model_dtype: expected one of {names}, got {model_dtype!r}")
    if model_dtype == "bf16":
        say_if_slower(str(device_of(model) or "cpu"))
    return model_dtype


def products_in(model_dtype: ModelDtype, model: nn.Module) -> AbstractContextManager[object]:
    """While it lasts, and in this thread, the model multiplies in that format."""
    if model_dtype == "fp32":
        return nullcontext()
    # a weight is used once in a pass: a cache of the rounded ones would only take memory
    return torch.autocast((device_of(model) or torch.device("cpu")).type, torch.bfloat16, cache_enabled=False)


def widened(activations: Sequence[Tensor]) -> list[Tensor]:
    """In fp32 at least: some modules give what they multiplied, in bf16."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in activations]


@cache
def say_if_slower(device: str) -> None:
    """Log it, once for each device, if products in bf16 take as long as those in fp32 or longer."""
    ratio = time_of_bf16(device)
    if ratio >= 1:
        again = f"products in bf16 take {ratio:.1f} times as long as in fp32 on this {device.split(':')[0].upper()}"
        log.warning(f"model_dtype: {again}, so bf16 makes the model slower and its activations less exact")


def time_of_bf16(device: str, size: int = 512, rounds: int = 4) -> float:
    """Time of a product in bf16 over the same in fp32: the least of some, taken in turn. Milliseconds altogether."""
    least: dict[torch.dtype, float] = {}
    for _ in range(rounds):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(size, size, dtype=dtype, device=device)
            start = time.perf_counter()
            float((x @ x)[0, 0])  # a GPU is waited for
            least[dtype] = min(least.get(dtype, float("inf")), time.perf_counter() - start)
    return least[torch.bfloat16] / least[torch.float32]
