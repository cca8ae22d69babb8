"""What a trainer refuses to train on, or to train, each in one line."""

import math

import torch
from torch import Tensor

from saefast.engine.state import State
from saefast.errors import check
from saefast.sae import SAE


def check_range(x: Tensor) -> None:
    """Raise InputError unless the squares of x, and the sums of them that a step takes, neither overflow nor vanish."""
    low, high = x.detach().aminmax()  # in one pass, without |x|
    largest = float(torch.maximum(-low, high))
    check(math.isfinite(largest), "x: expected finite values, got NaN or Inf")
    most = torch.finfo(torch.promote_types(x.dtype, torch.float32)).max ** (1 / 3)
    ok = largest == 0 or 1 / most < largest < most
    wanted = f"expected the largest |x| between {1 / most:.0e} and {most:.0e}, or 0"
    check(ok, f"x: {wanted}, got {largest:.3g}: scale the rows")


def check_trainable(sae: SAE) -> None:
    """Raise InputError unless the parameters are fp32 or fp64 (the matrices may be bf16), in contiguous memory."""
    for name, param in sae.params._asdict().items():
        ok, strides = param.is_contiguous(), param.stride()
        check(ok, f"sae: {name}: expected contiguous memory, got strides {strides}")
    whole = sae.b_dec.dtype in (torch.float32, torch.float64)
    for name, param in sae.tensors.items():
        # a matrix may be bf16; the thresholds of SAELens are fp32 in an fp64 SAE, too
        also = (
            torch.bfloat16
            if name in ("W_enc", "W_dec")
            else None
            if name in sae.params._fields
            else torch.float32
        )
        ok = whole and param.dtype in (sae.b_dec.dtype, also)
        how = "sae.float() makes them so (TrainConfig.param_dtype keeps the matrices in bf16)"
        check(ok, f"sae: {name}: expected parameters of float32 or all of float64, got {param.dtype}; {how}")


def check_mode(state: State) -> None:
    """Raise InputError where torch.inference_mode() was on when tensors of the state were made, and is off now."""
    ok = torch.is_inference_mode_enabled() or not (
        state.weights.enc.weight.is_inference() or state.counter.is_inference()
    )
    check(
        ok, "sae: expected tensors that can change, got an SAE or a Trainer made under torch.inference_mode()"
    )
