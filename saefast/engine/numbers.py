"""The numbers of one step: what the schedules and the config make of them, in one tensor that a CUDA graph can hold.

`saefast.reference.Numbers` names those that the update's kernels read; `Coefficients` below names those that follow, which
the architectures read. Both are read by name: `number(numbers, "l1")`, `coefficients(numbers).sparsity`.

Input normalisation: training on s * x, with s^2 = d_in / E||x||^2, and folding s into the weights afterwards leaves W_enc
and W_dec as they are and divides b_enc and b_dec by s. FVU does not see s. So the same run in the data's own units is this
one with the biases' learning rate divided by s and their epsilon multiplied by s: nothing has to be folded, and the SAE is
usable at every step. Likewise for thresholds; losses and penalties get their powers of s. The output has a scale of its own
where the target is not the input.
"""

from typing import NamedTuple

from torch import Tensor

from saefast.engine.plan import Plan
from saefast.reference import Numbers


class Scheduled(NamedTuple):
    """What changes over a run, at one step, see `saefast.train.schedules`. Everything else is in the config."""

    lr: float
    sparsity: float = 0.0  # weight of the penalty
    exponent: float = 1.0  # p of the penalty "lp"
    next_exponent: float = 1.0  # that of the next step
    input_scale: float = 1.0  # s; 1 without input normalisation
    output_scale: float | None = None  # that of a transcoder's target; None: s


class Coefficients(NamedTuple):
    """The numbers that architectures need, 0-dimensional tensors on the device, in the units of the data. B is the batch
    size."""

    loss: Tensor  # of a squared error: s^2 / B, or s^2 / (B d_out); with an FVU loss it is not used
    sparsity: Tensor  # weight of the penalty / B
    scale: Tensor  # s
    exponent: Tensor  # p of the penalty "lp"
    next_exponent: Tensor  # that of the next step
    bandwidth: Tensor  # of JumpReLU's straight-through gradient, / s
    inactive: Tensor  # preact_coefficient / B
    lr: Tensor  # of extra parameters without a unit (gains, logarithms) or with that of a matrix
    lr_bias: Tensor  # of extra parameters in the units of the data


N_NUMBERS = len(Numbers._fields) + len(Coefficients._fields)


def numbers_of(plan: Plan, now: Scheduled, step: int, batch_size: int) -> list[float]:
    """The fields of `Numbers`, then those of `Coefficients`. step: counted from 1; batch_size: in tokens."""
    train, lr, s, B = plan.train, now.lr, now.input_scale, max(batch_size, 1)
    (beta1, beta2), out = train.betas, now.output_scale or s

    def of(name: str) -> float:
        return 0.0 if name in plan.frozen else lr * getattr(train, f"lr_{name}")

    numbers = Numbers(
        lr=of("W_enc"),
        lr_bias=of("b_enc") / s,
        eps=train.eps,
        eps_bias=train.eps * s,
        beta1=beta1,
        beta1_rest=1 - beta1,
        beta2=beta2,
        beta2_rest=1 - beta2,
        correction1=1 / (1 - beta1**step),
        correction2=1 / (1 - beta2**step),
        l1=now.sparsity * s / B if train.penalty == "l1" else 0.0,
        bias_norm=1 / s,
        lr_dec=of("W_dec"),
        lr_b_dec=of("b_dec") / out,
        unit=float(train.unit_norm),
        tied=float(plan.sae.pre_bias),
    )
    following = {
        "loss": out**2 / B / (plan.sae.width_out if train.loss == "mse_mean" else 1),
        "sparsity": now.sparsity / B,
        "scale": s,
        "exponent": now.exponent,
        "next_exponent": now.next_exponent,
        "bandwidth": train.bandwidth_of(plan.sae.d_in) / s,
        "inactive": train.preact_coefficient / B,
        "lr": lr * train.lr_extra,
        "lr_bias": lr * train.lr_extra / s,
    }
    return [*numbers, *(following[name] for name in Coefficients._fields)]


def number(numbers: Tensor, name: str) -> Tensor:
    """One of `Numbers`, 0-dimensional."""
    return numbers[Numbers._fields.index(name)]


def coefficients(numbers: Tensor) -> Coefficients:
    return Coefficients(*numbers[len(Numbers._fields) :].unbind())
