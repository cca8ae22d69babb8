"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the B * k largest pre-activations of the batch, after ReLU.

Outside training there is no batch to compare with: active is what passes one threshold, the mean over the batches of
the smallest activation that was kept. Matryoshka SAEs (arXiv 2503.17547) select in the same way.
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.engine.architectures.code import Code, Extra, where
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights, row_norms


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
    scale = row_norms(weights.dec) if plan.scale_by_norm else None
    arguments = (plan.k,) if scale is None else (plan.k, scale)
    acts, indices, row_offsets = ops.encode_batch_topk(centred, W_enc, b_enc, *arguments)
    if scale is None:
        return Code(acts, indices, row_offsets, acts, acts)
    unscaled = acts / scale[indices.long()]
    return Code(unscaled, indices, row_offsets, acts, unscaled)


def seen(code: Code, plan: Plan, c: Coefficients) -> Tensor:
    """[]: the smallest activation kept (scaled by the norm, if the selection is); Inf if there is none."""
    return code.pre_acts.masked_fill(code.pre_acts <= 0, torch.inf).min()


def observe_(smallest: Tensor, extra: Extra, plan: Plan, counter: Tensor, valid: Tensor) -> None:
    """Move the threshold towards the smallest activation kept: the plain mean of the first batches, then an average
    that forgets at plan.threshold_rate. valid []: False changes nothing."""
    if "threshold" not in extra:  # a state around the four parameters alone
        return
    threshold = extra["threshold"].value
    smallest = smallest.to(threshold.dtype)
    rate = (1 / counter.to(threshold.dtype)).clamp_min(plan.threshold_rate)
    threshold.add_(where(valid & smallest.isfinite(), rate * (smallest - threshold)))
