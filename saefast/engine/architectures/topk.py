"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of each token, after ReLU.

With `scale_by_norm` the selection is by pre_acts * ||W_dec row|| (SAELens' rescale_acts_by_decoder_norm), for rows that
are not kept at unit norm; the activations are the same. With `multi_topk` (the same paper, section 5.3) the code
has more entries than k: see `saefast.engine.architectures.nested`.
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.engine.architectures.code import Code, Extra
from saefast.engine.plan import Coefficients, Plan
from saefast.storage import Weights, row_norms


def select(
    ops: ModuleType, weights: Weights, extra: Extra, centred: Tensor, plan: Plan, c: Coefficients
) -> Code:
    W_enc, b_enc = weights.enc.shadow, weights.b_enc.value
    k = min(plan.k * plan.multi_topk, len(b_enc)) if plan.multi_topk else plan.k
    scale = row_norms(weights.dec) if plan.scale_by_norm else None
    options = {} if scale is None else {"scale": scale}
    acts, indices = ops.encode_topk(centred, W_enc, b_enc, k, rescore=plan.rescore, **options)
    if scale is not None:
        acts = acts / scale[indices.long()]
    return Code(acts, indices, None, acts, acts)


def seen(code: Code, plan: Plan, c: Coefficients) -> Tensor:
    """[]: the mean over the tokens of the smallest activation; Inf if a token has none."""
    return code.acts.masked_fill(code.acts <= 0, torch.inf).amin(dim=1).mean()
