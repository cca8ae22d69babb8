"""What is added to the loss for the activations of a token, as a function of u = s * act (* ||W_dec row||).

l1      sparsity * sum of u           ("Towards Monosemanticity"; times the decoder's norm: Anthropic, April 2024)
lp      sparsity * sum of u^p         p falls from 1 during training: p-annealing (Karvonen et al. 2024, arXiv 2408.00113)
tanh    sparsity * sum of tanh(c u)   (Anthropic, January 2025; c = 4)

Sums over the latents, means over the tokens. s is the scale of the input (see `saefast.engine.numbers`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast.engine.architecture import Step
from saefast.engine.code import Code, where


class Penalty(NamedTuple):
    value: Tensor  # []
    acts: Tensor | None  # its gradient with respect to each activation; None for no penalty
    norms: Tensor | None  # and with respect to the norm of its decoder row


def penalty(step: Step, code: Code, acts: Tensor, norms: Tensor | None) -> Penalty:
    """Of `acts` >= 0, in the shape of the code; the slope at 0 is that from above (which a threshold learns from), for
    "lp" 0. norms: [F], or None where they do not weigh."""
    kind, c = step.plan.train.penalty, step.c
    wide = torch.promote_types(acts.dtype, torch.float32)
    if kind not in ("l1", "lp", "tanh"):
        return Penalty(torch.zeros((), dtype=wide, device=acts.device), None, None)
    acts, weight = acts.to(wide), c.scale if norms is None else c.scale * code.of(norms)
    u = (acts * weight).clamp_min(0)
    if kind == "l1":
        value, slope = u, torch.ones_like(u)
    elif kind == "lp":
        value = where(u > 0, u**c.exponent)
        slope = where(u > 0, c.exponent * value / u.clamp_min(torch.finfo(wide).tiny))
    else:
        tanh_scale = step.plan.train.tanh_scale
        value = torch.tanh(tanh_scale * u)
        slope = tanh_scale * (1 - value.square())
    slope = c.sparsity * slope
    of_norms = None if norms is None else slope * acts * c.scale
    return Penalty(c.sparsity * value.sum(), slope * weight, of_norms)
