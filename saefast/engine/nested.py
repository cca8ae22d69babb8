"""Several reconstructions from one code, each of a prefix of its entries.

Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): prefixes of the dictionary, m_1 < ... < m_G = d_sae.
Multi-TopK (Gao et al. 2024, arXiv 2406.04093, section 5.3): the k largest, and the multi_topk * k largest.

    P_g = sum over the entries of part g of act * W_dec row         e_g = b_dec + P_1 + ... + P_g - x
    loss = sum over g of w_g ||e_g||^2                              E_g = w_g e_g + ... + w_G e_G

An entry of part g is in the reconstructions g to G, so its gradient is that of a plain reconstruction with the error
E_g, and b_dec's is the sum of E_1. A code whose rows are (part, token) in place of tokens, with the errors E stacked in
the same way, therefore goes through the ops of any code; only the encoder's gradient has to know that row g * B + t is
token t.
"""

import torch
from torch import Tensor

from saefast.engine.architecture import Step
from saefast.engine.code import Code
from saefast.engine.plan import Plan


def part_of_entry(code: Code, plan: Plan) -> tuple[Tensor, tuple[float, ...], int]:
    """The part of each entry, flat; the weights w_g; which reconstruction counts."""
    assert code.indices is not None
    sizes, train = plan.sae.group_sizes, plan.train
    if sizes:
        weights, part = train.group_weights or (1.0,) * len(sizes), torch.zeros_like(code.indices)
        for size in sizes[:-1]:  # a tensor of the sizes would have to be copied to the device
            part = part + (code.indices >= size)
        return part.flatten().long(), weights, -1
    by_index = code.indices.argsort(dim=1)  # of equal activations those of smaller indices are the k largest
    order = code.acts.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    smaller = torch.ones_like(code.indices, dtype=torch.int64)
    smaller.scatter_(1, by_index.gather(1, order[:, : plan.k]), 0)
    return smaller.flatten(), (1.0, train.multi_topk_weight), 0


def by_part(code: Code, part: Tensor, n_parts: int, n_tokens: int) -> Code:
    """The same entries, ordered by part, then token, then as they were."""
    assert code.indices is not None
    key = part * n_tokens + code.tokens()
    order = key.argsort(stable=True)
    counts = key.new_zeros(n_parts * n_tokens + 1).scatter_add_(0, key + 1, torch.ones_like(key))
    acts, indices = code.acts.flatten()[order], code.indices.flatten()[order]
    pre_acts = code.pre_acts.flatten()[order]
    return Code(acts, indices, counts.cumsum(0).to(torch.int32), pre_acts, acts)


def nested(step: Step, code: Code, target: Tensor) -> tuple[Code, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """target [B, D] -> the fields of `saefast.engine.reconstruct.Forward`: the code of G * B rows; E [G * B, D]; e of the
    reconstruction that counts and its squared norm; the loss; whether an entry counts as active."""
    plan, W_dec, b_dec = step.plan, step.weights.dec.shadow, step.weights.b_dec.value
    part, weights, counts = part_of_entry(code, plan)
    n_parts, n_tokens = len(weights), len(target)
    parted = by_part(code, part, n_parts, n_tokens)
    assert parted.indices is not None and parted.row_offsets is not None
    sums = step.ops.decode(parted.acts, parted.indices, W_dec, torch.zeros_like(b_dec), parted.row_offsets)
    errors = sums.view(n_parts, n_tokens, -1)
    errors[0] += b_dec - target
    suffixes = torch.empty_like(errors)
    for g in range(1, n_parts):  # sums of neighbours: cumsum along the first axis is several times as slow
        errors[g] += errors[g - 1]
    torch.mul(errors[-1], weights[-1], out=suffixes[-1])
    for g in reversed(range(n_parts - 1)):
        torch.add(suffixes[g + 1], errors[g], alpha=weights[g], out=suffixes[g])
    suffixes = suffixes.flatten(0, 1)
    squares = errors.square().sum(dim=(1, 2))
    fires = parted.acts > 0
    if not plan.sae.group_sizes:
        fires = fires & (
            torch.arange(len(fires), dtype=torch.int64, device=fires.device) < parted.row_offsets[n_tokens]
        )
    to = plan.compute_dtype
    loss = torch.zeros_like(squares[0])
    for weight, of_part in zip(weights, squares, strict=True):
        loss = loss + weight * of_part
    whole = errors[counts].to(to).contiguous()
    return parted, suffixes.to(to).contiguous(), whole, squares[counts], loss, fires
