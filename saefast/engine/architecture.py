"""What makes one kind of SAE different from another, as methods with defaults: a file in `saefast.engine.architectures`
overrides what differs, and everything else (decoding, the gradients of rows, Adam) is shared.

The defaults are those of an SAE with the four parameters of every SAE, whose entries get the gradient of the reconstruction.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.code import Backward, Code, Extra, where
from saefast.engine.numbers import Coefficients
from saefast.engine.plan import Plan
from saefast.reference import Params
from saefast.storage import Weights


class Step(NamedTuple):
    """What every stage of one step reads."""

    ops: Backend
    weights: Weights
    extra: Extra  # the parameters that the architecture has besides
    plan: Plan
    numbers: Tensor  # see `saefast.engine.numbers`
    c: Coefficients
    silent_for: Tensor  # [F] int64: tokens since each latent was active
    counter: Tensor  # [] int64: the number of the step, from 1


class Entries(NamedTuple):
    """The entries of a code on the way back, with what their gradients are made of."""

    code: Code
    slope: Tensor  # gradient of the reconstruction with respect to each activation, in the shape of the code
    n_tokens: int
    target: Tensor  # [B, D_out]
    grad_scale: Tensor  # [] gradient of the loss with respect to half of a squared error
    sums: Callable[[Tensor], Tensor]  # per entry -> per latent [F]
    sum_of_rows: Tensor  # [D]: of centred
    # [F]: of the decoder rows, of a crosscoder the sum over its parts; None where nobody asks for them
    row_norms: Tensor | None

    def penalty_norms(self, plan: Plan) -> Tensor | None:
        """The norms that the penalty weighs activations with; None: it does not."""
        return self.row_norms if plan.train.norm_weighted else None


class Whole(NamedTuple):
    """Forward and backward of rows whose code is kept as a matrix: sums over the tokens, but for `error`."""

    error: Tensor  # x_hat - target [B, D_out]
    squares: Tensor  # [] its squared norm
    penalty: Tensor  # []
    fired: Tensor  # [F]: tokens in which the latent is active
    seen: Tensor | None  # what the architecture observes
    extra: dict[str, Tensor]  # gradients of the extra parameters
    grads: tuple[Tensor, Tensor, Tensor, Tensor]  # of the four, without AuxK, before the projection


class Architecture:
    """One kind of SAE, in training and trained."""

    unbounded = False  # how many latents of a token are active has no bound: the code may be kept as a matrix
    measures = False  # whether `measured` finds something

    # -- parameters

    def extra_parameters(self, sae: SAEConfig, device: str | torch.device) -> dict[str, Tensor]:
        """Those besides W_enc, b_enc, W_dec and b_dec, fp32, at the values of a fresh SAE."""
        return {}

    def trained(self, extra: dict[str, Tensor], train: TrainConfig, b_enc: Tensor) -> dict[str, Tensor]:
        """What is trained in place of `extra`, and what a recipe needs besides, in the dtype and on the device of b_enc."""
        return extra

    def restored(self, trained: dict[str, Tensor], train: TrainConfig) -> dict[str, Tensor]:
        """The parameters that `trained` was made of."""
        return trained

    def begin_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, scale: float) -> None:
        """Bring parameters of a fresh SAE that are given in units of the scaled input into those of the data.

        Raises:
            InputError: an SAE that was made before cannot be trained so.
        """

    def enlarge_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, norms: Tensor) -> None:
        """Follow W_enc and b_enc, whose rows were multiplied by norms [F], and W_dec, whose rows were divided by them."""

    def in_data_units(self, name: str, train: TrainConfig) -> bool:
        """Whether an extra parameter grows with the activations."""
        return False

    def smallest_value(self, name: str, train: TrainConfig) -> float | None:
        """What an extra parameter must not fall below."""
        return None

    # -- a training step

    def select(self, step: Step, centred: Tensor) -> Code:
        """centred [B, D] -> the code of a batch, in training."""
        raise NotImplementedError

    def update_finds_gradient(self, plan: Plan) -> bool:
        """Whether the gradient of an entry is that of the reconstruction and at most the constant `Numbers.l1`, so that
        the update finds it by itself and `backward` is not called."""
        return plan.train.unit_norm and not plan.nested

    def backward(self, step: Step, entries: Entries) -> Backward:
        """The gradients of the entries, with those of what the architecture adds to the loss."""
        slope = where(entries.code.acts > 0, entries.slope)
        return Backward(slope, torch.zeros_like(entries.grad_scale))

    def whole_pass(self, step: Step, centred: Tensor, target: Tensor, grad_scale: Tensor) -> Whole | None:
        """A cheaper way to forward and backward of rows whose code is kept as a matrix; None: the general one."""
        return None

    def mean_l0(self, step: Step, centred: Tensor, rows: int) -> Tensor | None:
        """[]: the mean L0 of a batch that is taken `rows` at a time, where the loss of a part depends on it."""
        return None

    def smallest(self, code: Code) -> Tensor:
        """[]: the smallest activation of a top k, for `State.smallest`."""
        raise NotImplementedError

    def seen(self, step: Step, code: Code) -> Tensor | None:
        """Numbers of a code which add up over the parts of a batch where it may be cut, for `observe_`."""
        return None

    def observe_(self, step: Step, seen: Tensor | None, grad_scale: Tensor) -> None:
        """Move what follows the batches without a gradient. grad_scale []: NaN changes nothing."""

    def measured(
        self, ops: Backend, params: Params, sae: SAEConfig, batches: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Parameters that no gradient finds, for the SAE of `params`, on batches [B, d_in] like those of training."""
        return {}

    # -- a trained SAE, where no batch decides what is active

    def bound(self, extra: dict[str, Tensor], norms: Tensor | None, b_enc: Tensor) -> Tensor:
        """What a pre-activation must pass, [] or [F]. norms [F]: of the decoder rows, where the selection is by them."""
        return torch.zeros_like(b_enc[0])

    def acts_of(
        self, pre_acts: Tensor, extra: dict[str, Tensor], b_enc: Tensor, latents: Tensor | None
    ) -> Tensor:
        """The activations of pre-activations that passed. latents: that of each entry; None for [B, F]."""
        return pre_acts.relu()

    def encode(
        self,
        ops: Backend,
        centred: Tensor,
        params: Params,
        extra: dict[str, Tensor],
        sae: SAEConfig,
        norms: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """centred [B, D] -> acts, indices [B, L] by the ops of a backend."""
        bound = self.bound(extra, norms, params.b_enc)
        pre_acts, indices, row_offsets = ops.encode_threshold(centred, params.W_enc, params.b_enc, bound)
        return padded(self.acts_of(pre_acts, extra, params.b_enc, indices.long()), indices, row_offsets)

    def dense_acts(
        self, pre_acts: Tensor, params: Params, extra: dict[str, Tensor], sae: SAEConfig, norms: Tensor | None
    ) -> Tensor:
        """pre_acts [B, F] -> acts [B, F], in plain torch: differentiable where the function is."""
        active = pre_acts > self.bound(extra, norms, params.b_enc)
        return torch.where(active, self.acts_of(pre_acts, extra, params.b_enc, None), 0)


def padded(acts: Tensor, indices: Tensor, row_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The ragged layout -> [B, L] both, L the longest row; the rest is activation 0 of latent 0."""
    counts = row_offsets.diff().long()
    longest = int(counts.max()) if len(counts) else 0
    inside = torch.arange(longest, dtype=torch.int64, device=acts.device) < counts[:, None]
    out_acts, out_indices = acts.new_zeros(inside.shape), indices.new_zeros(inside.shape)
    out_acts[inside], out_indices[inside] = acts[: int(row_offsets[-1])], indices[: int(row_offsets[-1])]
    return out_acts, out_indices


def threshold_code(step: Step, centred: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries with pre_acts > threshold ([] or [F]): pre_acts (-inf past the end), indices, row_offsets, size."""
    W_enc, b_enc, capacity = step.weights.enc.shadow, step.weights.b_enc.value, step.plan.code_capacity
    pre_acts, indices, row_offsets = step.ops.encode_threshold(centred, W_enc, b_enc, threshold, capacity)
    size, row_offsets = row_offsets[-1], row_offsets.clamp(max=len(pre_acts))
    if capacity is not None:
        past = torch.arange(len(pre_acts), dtype=torch.int64, device=pre_acts.device) >= size
        pre_acts = pre_acts.masked_fill(past, -torch.inf)
    return pre_acts, indices, row_offsets, size
