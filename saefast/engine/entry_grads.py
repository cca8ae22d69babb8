"""The backward pass of a step between the error and the update: gradients of the entries of a code, with the penalties.

Where an entry's gradient is just that of the reconstruction (`Architecture.update_finds_gradient`), the update finds it by
itself and nothing here runs. Otherwise the slopes <error, W_dec row> of all entries are taken first, the architecture makes
of them the gradients of pre-activations and extra parameters, and what belongs to a latent is summed up.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.backend import Backend
from saefast.engine.architecture import Architecture, Entries, Step
from saefast.engine.code import Code
from saefast.engine.reconstruct import Forward
from saefast.reference import Given, Groups
from saefast.storage import positive, row_norms


class EntryGrads(NamedTuple):
    given: Given | None  # None: the update finds the gradients by itself
    groups: Groups | None  # None for a dense code
    fired: Tensor  # [F]: tokens in which the latent is active
    extra: dict[str, Tensor]  # gradients of the extra parameters
    penalty: Tensor | None  # [] added to the loss


def entry_grads(
    step: Step, arch: Architecture, run: Forward, centred: Tensor, target: Tensor, grad_scale: Tensor
) -> EntryGrads:
    """centred [B, D_in], target [B, D_out]; grad_scale []: gradient of the loss with respect to half of the error's
    square."""
    weights, plan, code = step.weights, step.plan, run.code
    b_enc = weights.b_enc.value
    asked = plan.train.norm_weighted or plan.train.preact != "none"
    parts = row_norms(weights.dec, plan.sae.layers) if asked else None
    groups = None
    if code.indices is not None:
        groups = step.ops.group_by_latent(code.listed, code.indices, len(b_enc), code.row_offsets)
    sums = latent_sums(step.ops, groups)
    entries = Entries(
        code=code,
        slope=grad_scale * slopes(step, code, run.error),
        n_tokens=len(centred),
        target=target,
        grad_scale=grad_scale,
        sums=sums,
        sum_of_rows=centred.sum(dim=0, dtype=b_enc.dtype),
        row_norms=parts.sum(dim=1) if parts is not None and parts.ndim == 2 else parts,
    )
    back = arch.backward(step, entries)
    none = torch.zeros_like(b_enc)
    pull = none[:, None]
    if back.norms is not None and parts is not None:
        pull = back.norms[:, None] / positive(parts).view(len(b_enc), -1)
    given = Given(
        grad_pre=back.grad_pre.contiguous(),
        bias=none if back.bias is None else back.bias.to(b_enc.dtype),
        push=none if back.push is None else back.push,
        push_row=entries.sum_of_rows,
        pull=pull.to(b_enc.dtype).contiguous(),
    )
    fired = sums(run.active().to(entries.slope.dtype)).to(torch.int32)
    return EntryGrads(given, groups, fired, dict(back.extra or {}), back.penalty)


def latent_sums(ops: Backend, groups: Groups | None) -> Callable[[Tensor], Tensor]:
    """Per entry -> per latent [F]: over the list of each latent, or over the column of a dense code (None)."""
    if groups is None:
        return lambda per_entry: per_entry.sum(
            dim=0, dtype=torch.promote_types(per_entry.dtype, torch.float32)
        )
    return lambda per_entry: ops.sum_entries(groups, per_entry.contiguous())


def slopes(step: Step, code: Code, error: Tensor) -> Tensor:
    """<error[token], W_dec[latent]> of each listed entry, in at least fp32; 0 elsewhere."""
    ops, W_dec, wide = step.ops, step.weights.dec.shadow, torch.promote_types(error.dtype, torch.float32)
    if code.indices is None:
        none = torch.zeros((), dtype=wide, device=error.device)
        return ops.dense_grad_acts(error, W_dec, code.listed, none).to(wide)
    return ops.grad_top_acts(error, W_dec, code.listed, code.indices, code.row_offsets).to(wide)
