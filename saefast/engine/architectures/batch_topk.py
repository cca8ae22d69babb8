"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the B * k largest pre-activations of the batch, after ReLU.

Outside training there is no batch to compare with: active is what passes one threshold, the mean over the batches of
the smallest activation that was kept. Matryoshka SAEs (arXiv 2503.17547) select in the same way.
"""

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.engine.architecture import Architecture, Step
from saefast.engine.code import Code, where
from saefast.storage import row_norms


class BatchTopK(Architecture):
    def extra_parameters(self, sae: SAEConfig, device: str | torch.device) -> dict[str, Tensor]:
        return {"threshold": torch.zeros((), device=device)}

    def select(self, step: Step, centred: Tensor) -> Code:
        weights, plan = step.weights, step.plan
        W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
        scale = row_norms(weights.dec) if plan.sae.scale_by_norm else None
        acts, indices, row_offsets = step.ops.encode_batch_topk(centred, W_enc, b_enc, plan.k, scale)
        if scale is None:
            return Code(acts, indices, row_offsets, acts, acts)
        unscaled = acts / scale[indices.long()]
        return Code(unscaled, indices, row_offsets, acts, unscaled)

    def smallest(self, code: Code) -> Tensor:
        """[]: the smallest activation kept (scaled by the norm, if the selection is); Inf if there is none."""
        return code.pre_acts.masked_fill(code.pre_acts <= 0, torch.inf).min()

    def seen(self, step: Step, code: Code) -> Tensor:
        return self.smallest(code)

    def observe_(self, step: Step, seen: Tensor | None, valid: Tensor) -> None:
        """Move the threshold towards the smallest activation kept: the plain mean of the first batches, then an average
        that forgets at threshold_rate."""
        if "threshold" not in step.extra or seen is None:  # a state around the four parameters alone
            return
        threshold = step.extra["threshold"].value
        smallest = seen.to(threshold.dtype)
        rate = (1 / step.counter.to(threshold.dtype)).clamp_min(step.plan.train.threshold_rate)
        threshold.add_(where(valid & smallest.isfinite(), rate * (smallest - threshold)))

    def bound(self, extra: dict[str, Tensor], norms: Tensor | None, b_enc: Tensor) -> Tensor:
        bound = extra["threshold"].clamp_min(0)
        return bound if norms is None else bound / norms
