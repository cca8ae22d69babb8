"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the B * k largest pre-activations of the batch, after ReLU.

Outside training there is no batch to compare with: active is what passes one threshold, the mean over the batches of
the smallest activation that was kept. Matryoshka SAEs (arXiv 2503.17547) select in the same way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture, Step
from saefast.engine.code import Code, Extra, where
from saefast.reference import Params
from saefast.storage import positive, row_norms

RECENT = 9  # the mean of n batches is about that of the last n / (1 + RECENT)
SETTLED = 20  # batches


class BatchTopK(Architecture):
    measures = True

    def extra_parameters(self, sae: SAEConfig, device: str | torch.device) -> dict[str, Tensor]:
        return {"threshold": torch.zeros((), dtype=torch.float32, device=device)}

    def enlarge_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, norms: Tensor) -> None:
        if not sae.scale_by_norm:  # all norms are about the same
            extra["threshold"].value.mul_(norms.mean())

    def select(self, step: Step, centred: Tensor) -> Code:
        weights = step.weights
        scale = row_norms(weights.dec) if step.plan.sae.scale_by_norm else None
        return code_of(step.ops, centred, weights.enc.shadow, weights.b_enc.value, step.plan.k, scale)

    def smallest(self, code: Code) -> Tensor:
        """[]: the smallest activation kept (scaled by the norm, if the selection is); Inf if there is none."""
        return code.pre_acts.masked_fill(code.pre_acts <= 0, torch.inf).min()

    def seen(self, step: Step, code: Code) -> Tensor:
        return self.smallest(code)

    def observe_(self, step: Step, seen: Tensor | None, grad_scale: Tensor) -> None:
        """Move the threshold to the mean of the smallest activation kept over the last batches: of the last tenth at first,
        while the SAE changes fast, then an average that forgets at threshold_rate. A threshold that was there before
        the run stays until SETTLED batches have been seen, and with a learning rate of 0."""
        if "threshold" not in step.extra or seen is None:  # a state around the four parameters alone
            return
        threshold, mean, _ = step.extra[
            "threshold"
        ]  # it has no gradient: the first moment is free for the mean
        smallest, n = seen.to(threshold.dtype), step.counter.to(threshold.dtype)
        follows = (threshold == mean) | (n >= SETTLED)
        mean.copy_(
            torch.where((mean == 0) & (n > 1), threshold, mean)
        )  # a checkpoint of saefast 0.2 has no mean
        rate = ((1 + RECENT) / (n + RECENT)).clamp_min(step.plan.train.threshold_rate)
        known = ~grad_scale.isnan() & smallest.isfinite() & (step.c.lr > 0)
        mean.add_(where(known, rate * (smallest - mean)))
        threshold.copy_(torch.where(known & follows, mean, threshold))

    def measured(
        self, ops: Backend, params: Params, sae: SAEConfig, batches: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The threshold that k activations a row pass on average: as if all batches were one. Of each, twice as many are
        looked at."""
        W_enc, b_enc, W_dec, b_dec = params
        norms = W_dec.norm(dim=1, dtype=b_enc.dtype) if sae.scale_by_norm else None
        subtracted, found = b_dec if sae.pre_bias else b_dec.new_zeros(sae.d_in), []
        for batch in batches:
            centred, _ = ops.centre(batch, subtracted, W_enc.dtype)
            code = code_of(ops, centred, W_enc, b_enc, min(2 * sae.top_k, sae.d_sae), norms)
            found.append(code.pre_acts[code.pre_acts > 0])
        passing, n = torch.cat(found), sae.top_k * sum(map(len, batches))
        if len(passing) <= n:  # all that are positive
            return {"threshold": b_enc.new_zeros(())}
        return {"threshold": passing.kthvalue(len(passing) - n).values.to(b_enc.dtype)}

    def bound(self, extra: dict[str, Tensor], norms: Tensor | None, b_enc: Tensor) -> Tensor:
        bound = extra["threshold"].clamp_min(0)
        return bound if norms is None else torch.where(norms > 0, bound / norms, torch.inf)


def code_of(
    ops: Backend, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, norms: Tensor | None
) -> Code:
    """norms [F]: of the decoder rows, where the selection is by them."""
    acts, indices, row_offsets = ops.encode_batch_topk(centred, W_enc, b_enc, k, norms)
    if norms is None:
        return Code(acts, indices, row_offsets, acts, acts)
    unscaled = acts / positive(norms)[indices.long()]
    return Code(unscaled, indices, row_offsets, acts, unscaled)
