"""GroupMax (sparsify): the dictionary in k equal parts of consecutive latents, of each the largest pre-activation.

The products are taken of as many tokens at a time as keep their pre-activations below 256 MiB.
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.engine.architectures.code import Code, Extra
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights

MAX_BYTES = 2**28


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    return group_max(ops, weights.enc.shadow, weights.b_enc.value, centred, plan.k)


def group_max(ops: ModuleType, W_enc: Tensor, b_enc: Tensor, centred: Tensor, k: int) -> Code:
    rows = max(1, MAX_BYTES // (len(W_enc) * centred.element_size()))
    first = torch.arange(0, len(W_enc), len(W_enc) // k, device=W_enc.device)
    acts, indices = [], []
    for part in centred.split(rows):
        values, places = ops.encode_dense(part, W_enc, b_enc).unflatten(1, (k, -1)).max(dim=2)
        acts.append(values.relu().to(b_enc.dtype))
        indices.append((places + first).to(torch.int32))
    found = torch.cat(acts)
    return Code(found, torch.cat(indices), None, found, found)
