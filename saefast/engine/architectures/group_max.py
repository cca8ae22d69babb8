"""GroupMax (sparsify): the dictionary in k equal parts of consecutive latents, of each the largest pre-activation."""

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.config.sae import SAEConfig
from saefast.engine.architecture import Architecture, Step
from saefast.engine.code import Code
from saefast.reference import Params


class GroupMax(Architecture):
    def select(self, step: Step, centred: Tensor) -> Code:
        weights = step.weights
        W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
        acts, indices = step.ops.encode_group_max(centred, W_enc, b_enc, step.plan.k)
        return Code(acts, indices, None, acts, acts)

    def encode(
        self,
        ops: Backend,
        centred: Tensor,
        params: Params,
        extra: dict[str, Tensor],
        sae: SAEConfig,
        norms: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return ops.encode_group_max(centred, params.W_enc, params.b_enc, sae.top_k)

    def dense_acts(
        self, pre_acts: Tensor, params: Params, extra: dict[str, Tensor], sae: SAEConfig, norms: Tensor | None
    ) -> Tensor:
        groups = pre_acts.detach().unflatten(1, (sae.top_k, -1))
        first = groups.shape[2] * torch.arange(sae.top_k, dtype=torch.int64, device=pre_acts.device)
        return pre_acts.relu() * torch.zeros_like(pre_acts).scatter_(1, groups.argmax(dim=2) + first, 1.0)
