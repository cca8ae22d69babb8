"""One optimizer step without an autograd graph: forward, backward, update. The same file for every backend.

Nothing here waits for the device, and every shape is known beforehand: on a GPU the whole step is one CUDA graph.
"""

from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saefast.auxk import auxk, find_dead
from saefast.reference_update import Grads, Numbers, project_rows_
from saefast.state import State
from saefast.storage import load_weight

SPARSE_BELOW, DENSE_ABOVE = 0.004, 0.008  # shares of the latents active, see `Plan.follow_density`


class Plan(NamedTuple):
    """What shapes a step. Steps with the same plan run the same kernels in the same order."""

    k: int
    compute_dtype: torch.dtype  # of the products; sums are in fp32 at least
    activation: Literal["topk", "batch_topk", "relu", "relu_dense"] = "topk"
    rescore: int = 0  # see `reference.encode_topk`
    grad_clip: float | None = None  # largest global norm of the gradient, exact; makes the gradients exist
    auxk_alpha: float = 0.0
    k_aux: int = 1
    dead_feature_threshold: int = 1
    dead_capacity: int = 0  # rows for dead latents; 0 leaves AuxK out
    code_capacity: int | None = None  # "relu": entries reserved for the code; None counts, and waits

    def follow_density(self, l0: float, d_sae: int) -> "Plan":
        """The plan for the next steps of a ReLU code, given the L0 that was measured: the same step, the cheaper way.

        Forward, a token gathers density * F rows of D 16-bit numbers, 2 * density * F * D bytes, or takes part in a
        product of 2 * F * D FLOPs: even at density = bandwidth / FLOPS. On an H200 (790 TFLOP/s) that is 0.54% from
        memory (4.3 TB/s) and 0.70% from L2 (5.5 TB/s), backward 0.8 to 1%. Two thresholds around 0.6%, so that a
        density near it does not switch at every step. Other plans stay as they are.
        """
        if self.activation not in ("relu", "relu_dense"):
            return self
        sparse = l0 / d_sae < (DENSE_ABOVE if self.activation == "relu" else SPARSE_BELOW)
        return self._replace(activation="relu" if sparse else "relu_dense")


class Hyper(NamedTuple):
    """What changes from step to step.

    Input normalisation: training on s * x, with s^2 = d_in / E||x||^2, and folding s into the weights afterwards
    leaves W_enc and W_dec as they are and divides b_enc and b_dec by s. FVU does not see s. So the same run in
    the data's own units is this one with the biases' learning rate divided by s and their epsilon multiplied by
    s: nothing has to be folded, and the SAE is usable at every step.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    input_scale: float = 1.0  # s; 1 without input normalisation
    l1: float = 0.0  # weight of the mean over tokens of the sum of activations

    def numbers(self, step: int, batch_size: int) -> Numbers:
        """For `step`, counted from 1."""
        (beta1, beta2), s = self.betas, self.input_scale
        return Numbers(
            self.lr, self.lr / s, self.eps, self.eps * s, beta1, 1 - beta1, beta2, 1 - beta2,
            1 / (1 - beta1**step), 1 / (1 - beta2**step), self.l1 / batch_size, 1 / s,
            self.lr, self.lr / s, 1.0, 1.0,
        )  # fmt: skip


class Metrics(NamedTuple):
    """Of one step, before its update: 0-dimensional tensors on the device, so that nothing waits for them."""

    loss: Tensor  # fvu + auxk_alpha * auxk_loss + l1 * mean L1; not finite: the step changed no weight
    fvu: Tensor
    l0: Tensor  # mean number of active latents per token
    dead_frac: Tensor  # share of latents not active for dead_feature_threshold tokens
    auxk_loss: Tensor  # unweighted; 0 when nothing is dead
    grad_norm: Tensor  # global, before clipping
    code_size: Tensor  # entries of the sparse code; more than code_capacity: some were left out


def train_step(ops: ModuleType, state: State, x: Tensor, plan: Plan, numbers: Tensor) -> Metrics:
    """Train on x [B, D], in place.

    Args:
        ops: a backend, see `saefast.load_backend`.
        numbers: `Hyper.numbers` as a tensor [12] on the device of the state.
    """
    weights = state.weights
    n_latents, b_dec = len(weights.b_enc.value), weights.b_dec.value
    state.counter += 1
    n_dead = (state.num_tokens_since_fired >= plan.dead_feature_threshold).sum()
    centred, variance = ops.centre(x, b_dec, plan.compute_dtype)

    code_size = None
    if plan.activation == "relu_dense":
        acts, l1, fired = ops.relu_encode(centred, weights.enc.shadow, weights.b_enc.value)
        error, squares = ops.dense_error(acts, weights.dec.shadow, centred)
    else:
        acts, indices, row_offsets = select(ops, state, centred, plan)
        if row_offsets is not None:
            code_size, row_offsets = row_offsets[-1], row_offsets.clamp(max=len(acts))
        error, squares = ops.decode_error(
            acts, indices, weights.dec.shadow, b_dec, x, plan.compute_dtype, row_offsets
        )
        groups = ops.group_by_latent(acts, indices, n_latents, row_offsets)
        fired, l1 = groups[0].diff(), acts.sum() if plan.activation == "relu" else None
    n_active = fired.sum()

    loss = fvu = squares.sum() / variance
    auxk_loss, aux = None, None
    if plan.dead_capacity:
        dead = find_dead(state.num_tokens_since_fired, plan.dead_feature_threshold, plan.dead_capacity)
        auxk_loss, aux = auxk(ops, weights, centred, error, dead, plan.k_aux, plan.auxk_alpha)
        loss = loss + plan.auxk_alpha * auxk_loss
    if l1 is not None:
        loss = loss + numbers[10] * l1  # numbers.l1
    grad_scale = 2 / variance + 0 * loss  # 0 times NaN or Inf is NaN

    if plan.activation == "relu_dense":
        squared_norm = update_dense_(ops, state, centred, error, acts, grad_scale, plan.grad_clip, numbers)
    else:
        code = acts, indices, row_offsets, groups
        if plan.grad_clip is None:
            squared_norm = ops.update_(
                weights, centred, error, *code, grad_scale, aux, numbers, state.counter
            )
        else:
            grads, squared_norm = ops.row_grads(weights, centred, error, *code, grad_scale, aux, numbers)
            factor = clip_factor(squared_norm, plan.grad_clip)
            ops.adam_rows_(weights, grads, factor, numbers, state.counter)

    state.fired += fired
    state.num_tokens_since_fired += len(x)
    state.num_tokens_since_fired.masked_fill_(fired > 0, 0)
    return Metrics(
        loss=loss,
        fvu=fvu,
        l0=n_active / max(len(x), 1),
        dead_frac=n_dead / n_latents,
        auxk_loss=torch.zeros_like(fvu) if auxk_loss is None else auxk_loss,
        grad_norm=squared_norm.sqrt(),
        code_size=n_active if code_size is None else code_size,
    )


def select(
    ops: ModuleType, state: State, centred: Tensor, plan: Plan
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The code of a batch: acts, indices and, in the ragged layout, row_offsets (see `saefast.reference`)."""
    W_enc, b_enc = state.weights.enc.shadow, state.weights.b_enc.value
    if plan.activation == "topk":
        return *ops.encode_topk(centred, W_enc, b_enc, plan.k, rescore=plan.rescore), None
    if plan.activation == "batch_topk":
        return ops.encode_batch_topk(centred, W_enc, b_enc, plan.k)
    return ops.encode_threshold(centred, W_enc, b_enc, torch.zeros_like(b_enc[0]), plan.code_capacity)


def clip_factor(squared_norm: Tensor, largest: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_."""
    return (largest / (squared_norm.sqrt() + 1e-6)).clamp(max=1)


def update_dense_(
    ops: ModuleType,
    state: State,
    centred: Tensor,
    error: Tensor,
    acts: Tensor,
    grad_scale: Tensor,
    grad_clip: float | None,
    numbers: Tensor,
) -> Tensor:
    """Backward and update from dense activations [B, F]; returns the squared norm of the gradient.

    In units of the error until the end, as the sparse path: the penalty's gradient is divided by grad_scale.
    """
    weights = state.weights
    grad_acts = ops.dense_grad_acts(error, weights.dec.shadow, acts, numbers[10] / grad_scale)
    grad_b_enc = grad_acts.sum(dim=0, dtype=weights.b_enc.value.dtype) * grad_scale
    grads: Grads = (
        ops.outer_sum(grad_acts, centred).mul_(grad_scale),
        grad_b_enc,
        project_rows_(ops.outer_sum(acts, error).mul_(grad_scale), load_weight(weights.dec)),
        error.sum(dim=0, dtype=grad_b_enc.dtype) * grad_scale - grad_b_enc @ load_weight(weights.enc),
    )
    bias_norm = numbers[11]
    norms = [g.norm() * s for g, s in zip(grads, (1, bias_norm, 1, bias_norm), strict=True)]
    squared_norm = torch.stack(norms).square().sum()
    factor = torch.ones_like(grad_scale) if grad_clip is None else clip_factor(squared_norm, grad_clip)
    ops.adam_rows_(
        weights, grads, torch.where(grad_scale.isnan(), grad_scale, factor), numbers, state.counter
    )
    return squared_norm
