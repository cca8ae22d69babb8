"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of each token, after ReLU.

With `scale_by_norm` the selection is by pre_acts * ||W_dec row|| (SAELens' rescale_acts_by_decoder_norm), for rows that
are not kept at unit norm; the activations are the same. With `multi_topk` (the same paper, section 5.3) the code
has more entries than k: see `saefast.engine.nested`.
"""

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.config.sae import SAEConfig
from saefast.engine.architecture import Architecture, Step
from saefast.engine.code import Code
from saefast.reference import Params, topk
from saefast.storage import positive, row_norms


class TopK(Architecture):
    def select(self, step: Step, centred: Tensor) -> Code:
        weights, plan = step.weights, step.plan
        W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
        k = min(plan.k * (plan.train.multi_topk or 1), len(b_enc))
        scale = row_norms(weights.dec) if plan.sae.scale_by_norm else None
        acts, indices = step.ops.encode_topk(centred, W_enc, b_enc, k, scale, plan.train.rescore)
        if scale is not None:
            acts = acts / positive(scale)[indices.long()]
        return Code(acts, indices, None, acts, acts)

    def smallest(self, code: Code) -> Tensor:
        """[]: the mean over the tokens of the smallest activation; Inf if a token has none."""
        return code.acts.masked_fill(code.acts <= 0, torch.inf).amin(dim=1).mean()

    def encode(
        self,
        ops: Backend,
        centred: Tensor,
        params: Params,
        extra: dict[str, Tensor],
        sae: SAEConfig,
        norms: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        acts, indices = ops.encode_topk(centred, params.W_enc, params.b_enc, sae.top_k, norms)
        return (acts if norms is None else acts / positive(norms)[indices.long()]), indices

    def dense_acts(
        self, pre_acts: Tensor, params: Params, extra: dict[str, Tensor], sae: SAEConfig, norms: Tensor | None
    ) -> Tensor:
        scaled = pre_acts if norms is None else pre_acts * norms
        chosen = topk(scaled.detach(), sae.top_k)[1].long()
        active = torch.zeros_like(pre_acts).scatter_(1, chosen, 1.0)
        return pre_acts.relu() * (active if norms is None else active * (norms > 0))
