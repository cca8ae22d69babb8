"""GroupMax (sparsify): the dictionary in k equal parts of consecutive latents, of each the largest pre-activation.

The products are taken of as many tokens at a time as keep their pre-activations below 256 MiB.
"""

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.config.sae import SAEConfig
from saefast.engine.architecture import Architecture, Step
from saefast.engine.code import Code
from saefast.reference import Params

MAX_BYTES = 2**28


class GroupMax(Architecture):
    def select(self, step: Step, centred: Tensor) -> Code:
        weights = step.weights
        acts, indices = group_max(step.ops, weights.enc.shadow, weights.b_enc.value, centred, step.plan.k)
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
        return group_max(ops, params.W_enc, params.b_enc, centred, sae.top_k)

    def dense_acts(
        self, pre_acts: Tensor, params: Params, extra: dict[str, Tensor], sae: SAEConfig, norms: Tensor | None
    ) -> Tensor:
        groups = pre_acts.detach().unflatten(1, (sae.top_k, -1))
        first = groups.shape[2] * torch.arange(sae.top_k, dtype=torch.int64, device=pre_acts.device)
        return pre_acts.relu() * torch.zeros_like(pre_acts).scatter_(1, groups.argmax(dim=2) + first, 1.0)


def group_max(ops: Backend, W_enc: Tensor, b_enc: Tensor, centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """centred [B, D], W_enc [F, D], b_enc [F] -> acts [B, K] after ReLU, indices [B, K] int32, one of each group."""
    rows = max(1, MAX_BYTES // (len(W_enc) * centred.element_size()))
    first = torch.arange(0, len(W_enc), len(W_enc) // k, dtype=torch.int64, device=W_enc.device)
    acts, indices = [], []
    for part in centred.split(rows):
        values, places = ops.encode_dense(part, W_enc, b_enc).unflatten(1, (k, -1)).max(dim=2)
        acts.append(values.relu().to(b_enc.dtype))
        indices.append((places + first).to(torch.int32))
    return torch.cat(acts), torch.cat(indices)
