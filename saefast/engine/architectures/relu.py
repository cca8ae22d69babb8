"""ReLU with a penalty on the activations: "Towards Monosemanticity" (l1, decoder rows of unit norm), Anthropic's April
2024 update (l1 weighted by the norm of the decoder row), p-annealing (lp).

    acts = relu(pre_acts)          loss = reconstruction + penalty(acts)
"""

import torch
from torch import Tensor

from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture, Entries, Step, Whole, threshold_code
from saefast.engine.architectures.penalties import penalty
from saefast.engine.code import Backward, Code, where
from saefast.engine.plan import Plan
from saefast.storage import load_weight, positive, row_norms


class ReLU(Architecture):
    unbounded = True

    def trained(self, extra: dict[str, Tensor], train: TrainConfig, b_enc: Tensor) -> dict[str, Tensor]:
        """p-annealing: a factor of the penalty, see `observe_`."""
        return extra | ({"penalty_scale": torch.ones_like(b_enc[0])} if train.penalty == "lp" else {})

    def restored(self, trained: dict[str, Tensor], train: TrainConfig) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in trained.items() if name != "penalty_scale"}

    def select(self, step: Step, centred: Tensor) -> Code:
        W_enc, b_enc = step.weights.enc.shadow, step.weights.b_enc.value
        if step.plan.dense:
            acts, _, _ = step.ops.relu_encode(centred, W_enc, b_enc)
            return Code(acts, None, None, acts, acts)
        pre_acts, indices, row_offsets, size = threshold_code(step, centred, torch.zeros_like(b_enc[0]))
        acts = pre_acts.relu()
        return Code(acts, indices, row_offsets, acts, acts, size)

    def update_finds_gradient(self, plan: Plan) -> bool:
        linear = plan.train.penalty in ("none", "l1") and not plan.train.norm_weighted
        return linear and plan.train.unit_norm

    def backward(self, step: Step, entries: Entries) -> Backward:
        code, slope = entries.code, entries.slope
        if step.plan.train.penalty == "lp":
            sparsity = step.c.sparsity * step.extra["penalty_scale"].value
            step = step._replace(c=step.c._replace(sparsity=sparsity))
        added = penalty(step, code, code.acts, entries.penalty_norms(step.plan))
        if added.acts is not None:
            slope = slope + added.acts
        of_norms = None if added.norms is None else entries.sums(added.norms)
        return Backward(where(code.acts > 0, slope), added.value, of_norms)

    def whole_pass(self, step: Step, centred: Tensor, target: Tensor, grad_scale: Tensor) -> Whole | None:
        """Without a penalty, or with one that is linear in the activations, which the ops add in passing: at first half
        of all latents are active, and each pass over [B, F] less counts."""
        ops, weights, plan, c = step.ops, step.weights, step.plan, step.c
        train = plan.train
        if train.penalty not in ("none", "l1"):
            return None
        if train.norm_weighted and not (ops.ADDS_PER_LATENT and plan.sae.layers == 1):
            return None
        b_enc, W_dec = weights.b_enc.value, weights.dec.shadow
        acts, total, fired = ops.relu_encode(centred, weights.enc.shadow, b_enc)
        error, squares = ops.dense_error(acts, W_dec, (target - weights.b_dec.value).to(plan.compute_dtype))
        grad_W_dec = ops.outer_sum(acts, error).mul_(grad_scale)
        slope = c.sparsity * c.scale if train.penalty == "l1" else torch.zeros_like(c.sparsity)
        weight, added = slope, slope * total
        if train.norm_weighted:
            norms, sums = row_norms(weights.dec).to(b_enc.dtype), acts.sum(dim=0, dtype=b_enc.dtype)
            weight, added = slope * norms, slope * (norms * sums).sum()
            pull = slope * sums / positive(norms)
            grad_W_dec += pull[:, None] * load_weight(weights.dec)
        in_units = ops.dense_grad_acts(error, W_dec, acts, (weight / grad_scale).to(b_enc.dtype))
        grad_W_enc = ops.outer_sum(in_units, centred).mul_(grad_scale)
        grad_b_enc = in_units.sum(dim=0, dtype=b_enc.dtype) * grad_scale
        grad_b_dec = error.sum(dim=0, dtype=b_enc.dtype) * grad_scale
        if plan.sae.pre_bias:
            grad_b_dec -= grad_b_enc @ load_weight(weights.enc)
        grads = grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec
        return Whole(error, squares.sum(), added, fired, None, {}, grads)

    def seen(self, step: Step, code: Code) -> Tensor | None:
        """[2]: sum of u^p, with the p of this step and of the next."""
        if step.plan.train.penalty != "lp":
            return None
        u = (code.acts.to(step.c.scale.dtype) * step.c.scale).flatten()
        return torch.stack([where(u > 0, u**p).sum() for p in (step.c.exponent, step.c.next_exponent)])

    def observe_(self, step: Step, seen: Tensor | None, grad_scale: Tensor) -> None:
        """p-annealing: when p falls, the weight rises so that the penalty of this batch stays what it was."""
        if seen is not None:
            scale = step.extra["penalty_scale"].value
            moves = ~grad_scale.isnan() & (seen[1] > 0)
            factor = (seen[0] / seen[1]).masked_fill(~moves, 1.0)
            scale.mul_(factor.to(scale.dtype))
