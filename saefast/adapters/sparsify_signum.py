"""The step of sparsify's signum, `ScheduleFreeWrapper(SignSGD(...))`, in 5 passes over the parameters in place of 32."""

from collections.abc import Iterator
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify.sign_sgd import SignSGD
from torch import Tensor

NUMBERS_AT_ONCE = 2**17  # on a CPU: what the passes share stays in cache


def is_signum(optimizer: Any) -> bool:
    return (
        type(optimizer) is ScheduleFreeWrapper
        and type(optimizer.base) is SignSGD
        and optimizer.weight_decay_at_y == 0
    )


@torch.no_grad()
def signum_step(optimizer: Any) -> None:
    """`optimizer.step()`, to the last bit. A parameter is y = x + (1 - momentum) (z - x):

        z -= lr sign(grad);   x += c (z - x)

    where c makes x the average of all z, weighted by the square of the largest learning rate until then.
    """
    momentum = optimizer.momentum
    for group in optimizer.param_groups:
        lr, steps = group["lr"] * group.get("d", 1.0), group.get("k", 0)
        lr_max = group["lr_max"] = max(lr, group.get("lr_max", 0))
        weight = (steps + 1) ** optimizer.r * lr_max**optimizer.weight_lr_power
        group["weight_sum"] = group.get("weight_sum", 0.0) + weight
        group["k"] = steps + 1
        for param in group["params"]:
            if param.grad is None:
                continue
            state = optimizer.state[param]
            if "z" not in state:
                state["z"] = param.detach().clone()
            for y_part, z_part, grad in in_parts(param, state["z"], param.grad):
                y_part.lerp_(z_part, 1 - 1 / momentum)  # x
                z_part.add_(grad.sign(), alpha=-group["lr"])
                y_part.lerp_(z_part, weight / group["weight_sum"])
                y_part.lerp_(z_part, 1 - momentum)


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors flat, NUMBERS_AT_ONCE of each at a time."""
    size = NUMBERS_AT_ONCE if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
