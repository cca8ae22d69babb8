"""What shapes a step, and the numbers that change from step to step."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saefast.reference import Numbers

# Shares of the latents active between which a code may be sparse or dense, see `Plan.follow_density`.
GPU_DENSITY = 0.004, 0.008
CPU_DENSITY = 0.18, 0.25


class Plan(NamedTuple):
    """Steps with the same plan run the same kernels in the same order."""

    k: int
    compute_dtype: torch.dtype  # of the products; sums are in fp32 at least
    activation: str = "topk"  # see `saefast.engine.architectures`
    dense: bool = False  # a code [B, F] in place of a list of entries
    micro_batch_size: int = 0  # rows at a time of what is as wide as the dictionary; 0: all
    rescore: int = 0  # see `reference.encode_topk`
    grad_clip: float | None = None  # largest global norm of the gradient, exact; makes the gradients exist
    auxk_alpha: float = 0.0
    k_aux: int = 1
    auxk_scale: Literal["residual", "loss"] = "residual"
    auxk_ramp: bool = False
    auxk_relu: bool = True
    auxk_detached: bool = True
    count_before_auxk: bool = False
    dead_feature_threshold: int = 1
    dead_capacity: int = 0  # rows for dead latents; 0 leaves AuxK out
    code_capacity: int | None = None  # entries reserved for a list without bound; None counts, and waits
    loss: Literal["fvu", "mse", "mse_mean"] = "fvu"
    pre_bias: bool = True  # b_dec is subtracted from the input
    unit_norm: bool = True  # rows of W_dec keep unit norm
    skip: bool = False
    layers: int = 1  # equal parts of a decoder row, whose norms are summed
    penalty: str = "none"  # see `saefast.engine.architectures.penalties` and `jumprelu`
    norm_weighted: bool = False
    tanh_scale: float = 4.0
    target_l0: float = 1.0
    straight_through: Literal["threshold", "all", "acts", "positive"] = "threshold"
    log_threshold: bool = False
    preact: Literal["none", "all", "dead"] = "none"
    scale_by_norm: bool = False
    threshold_rate: float = 0.001
    group_sizes: tuple[int, ...] = ()
    group_weights: tuple[float, ...] = ()
    multi_topk: int = 0
    multi_topk_weight: float = 0.125

    @property
    def nested(self) -> bool:
        return bool(self.group_sizes or self.multi_topk)

    @property
    def plain(self) -> bool:
        """Whether the gradient of an entry is that of the reconstruction and at most a constant: the update finds it
        by itself."""
        if not self.unit_norm:
            return False
        if self.activation == "relu":
            return self.penalty in ("none", "l1") and not self.norm_weighted
        return self.activation not in ("jumprelu", "gated") and not self.nested

    def follow_density(self, l0: float, d_sae: int, between: tuple[float, float] = GPU_DENSITY) -> "Plan":
        """The plan for the next steps of a code without bound, given the L0 that was measured: the same step, the
        cheaper way.

        Forward, a token gathers density * F rows of D 16-bit numbers, 2 * density * F * D bytes, or takes part in a
        product of 2 * F * D FLOPs: even at density = bandwidth / FLOPS. On an H200 (790 TFLOP/s) that is 0.54% from
        memory (4.3 TB/s) and 0.70% from L2 (5.5 TB/s), backward 0.8 to 1%. On a CPU it was measured
        (benchmarks/LOG.md). Two thresholds, so that a density between them does not switch at every step.
        """
        if self.activation not in ("relu", "jumprelu", "gated"):
            return self
        below, above = between
        return self._replace(dense=l0 / d_sae >= (below if self.dense else above))


class Coefficients(NamedTuple):
    """The numbers of one step that architectures need, 0-dimensional tensors on the device. B is the batch size.

    With normalize_input the run is that of the input times s; here everything is in the units of the data.
    """

    loss: Tensor  # of a squared error: s^2 / B, or s^2 / (B d_out); with an FVU loss it is not used
    sparsity: Tensor  # sparsity_coefficient of this step / B
    scale: Tensor  # s
    exponent: Tensor  # p of the penalty "lp"
    next_exponent: Tensor  # that of the next step
    bandwidth: Tensor  # of JumpReLU's straight-through gradient, / s
    inactive: Tensor  # preact_coefficient / B
    lr: Tensor  # of parameters without a unit (gains, logarithms) or with that of a matrix
    lr_bias: Tensor  # of parameters in the units of the data
    eps: Tensor
    eps_bias: Tensor


class Hyper(NamedTuple):
    """What changes from step to step.

    Input normalisation: training on s * x, with s^2 = d_in / E||x||^2, and folding s into the weights afterwards
    leaves W_enc and W_dec as they are and divides b_enc and b_dec by s. FVU does not see s. So the same run in
    the data's own units is this one with the biases' learning rate divided by s and their epsilon multiplied by
    s: nothing has to be folded, and the SAE is usable at every step. Likewise for thresholds; losses and penalties
    get their powers of s. The output has a scale of its own where the target is not the input.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    input_scale: float = 1.0  # s; 1 without input normalisation
    sparsity: float = 0.0  # weight of the penalty
    output_scale: float | None = None  # None: s
    lr_W_enc: float = 1.0  # multipliers of lr
    lr_b_enc: float = 1.0
    lr_W_dec: float = 1.0
    lr_b_dec: float = 1.0
    lr_extra: float = 1.0
    exponent: float = 1.0
    next_exponent: float = 1.0
    bandwidth: float = 0.001
    inactive: float = 0.0

    def numbers(self, step: int, batch_size: int, plan: Plan | None = None, d_out: int = 1) -> list[float]:
        """Of `step`, counted from 1: `Numbers`, which the update reads, then `Coefficients`.

        plan: None is that of a plain step, with unit norm, b_dec subtracted and an L1 penalty of weight `sparsity`.
        """
        plan = plan or Plan(1, torch.float32, activation="relu", penalty="l1")
        (beta1, beta2), s, lr = self.betas, self.input_scale, self.lr
        out, B = self.output_scale or s, max(batch_size, 1)
        plain_l1 = self.sparsity * s / B if plan.plain and plan.penalty == "l1" else 0.0
        numbers = Numbers(
            lr * self.lr_W_enc, lr * self.lr_b_enc / s, self.eps, self.eps * s, beta1, 1 - beta1, beta2, 1 - beta2,
            1 / (1 - beta1**step), 1 / (1 - beta2**step), plain_l1, 1 / s,
            lr * self.lr_W_dec, lr * self.lr_b_dec / out, float(plan.unit_norm), float(plan.pre_bias),
        )  # fmt: skip
        loss = out**2 / B / (d_out if plan.loss == "mse_mean" else 1)
        return [
            *numbers, loss, self.sparsity / B, s, self.exponent, self.next_exponent, self.bandwidth / s, self.inactive / B,
            lr * self.lr_extra, lr * self.lr_extra / s, self.eps, self.eps * s,
        ]  # fmt: skip


N_NUMBERS = len(Numbers._fields) + len(Coefficients._fields)


def coefficients(numbers: Tensor) -> Coefficients:
    return Coefficients(*numbers[len(Numbers._fields) :].unbind())
