"""Tally: which latents were active in a batch, and what the step found, in one tensor.

    n_dead = latents with silent_for >= threshold before the batch    fired_before += fired
    silent_for = 0 where a latent was active, else silent_for + n_tokens

Memory bandwidth bounds the first kernel, `tally_bytes`; the second adds up its programs' counts and stores the metrics.
Spec: `saefast.reference.tally_`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # latents of a program, one for each thread: it reads and writes the same place


@triton.jit
def _count_latents_kernel(
    # [F] in and out
    silent_for_ptr,
    fired_before_ptr,
    fired_ptr,  # [F]
    # [programs] out
    n_active_ptr,
    n_dead_ptr,
    F,
    threshold,
    n_tokens,
    BLOCK: tl.constexpr,
):
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    silent_for = tl.load(silent_for_ptr + f, mask=inside, other=0)
    fired = tl.load(fired_ptr + f, mask=inside, other=0).to(tl.int64)
    before = tl.load(fired_before_ptr + f, mask=inside, other=0)
    tl.store(fired_before_ptr + f, before + fired, mask=inside)
    tl.store(silent_for_ptr + f, tl.where(fired > 0, 0, silent_for + n_tokens), mask=inside)
    tl.store(n_active_ptr + tl.program_id(0), tl.sum(fired, axis=0))
    dead = inside & (silent_for >= threshold)
    tl.store(n_dead_ptr + tl.program_id(0), tl.sum(dead.to(tl.int32), axis=0))


@triton.jit
def _metrics_kernel(
    n_active_ptr,  # [n]
    n_dead_ptr,  # [n]
    # []
    loss_ptr,
    fvu_ptr,
    squared_ptr,
    # [], or None
    auxk_loss_ptr,
    penalty_ptr,
    code_size_ptr,
    out_ptr,  # [8] out
    n,
    F,
    n_tokens,
    BLOCK: tl.constexpr,
):
    actives, deads = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        actives += tl.load(n_active_ptr + i, mask=i < n, other=0)
        deads += tl.load(n_dead_ptr + i, mask=i < n, other=0)
    n_active = tl.sum(actives, axis=0).to(tl.float32)
    n_dead = tl.sum(deads, axis=0).to(tl.float32)
    auxk_loss, penalty, code_size = 0.0, 0.0, n_active
    if auxk_loss_ptr is not None:
        auxk_loss = tl.load(auxk_loss_ptr).to(tl.float32)
    if penalty_ptr is not None:
        penalty = tl.load(penalty_ptr).to(tl.float32)
    if code_size_ptr is not None:
        code_size = tl.load(code_size_ptr).to(tl.float32)
    tl.store(out_ptr, tl.load(loss_ptr).to(tl.float32))
    tl.store(out_ptr + 1, tl.load(fvu_ptr).to(tl.float32))
    tl.store(out_ptr + 2, n_active / n_tokens)
    tl.store(out_ptr + 3, n_dead / F)
    tl.store(out_ptr + 4, auxk_loss)
    tl.store(out_ptr + 5, penalty)
    tl.store(out_ptr + 6, tl.sqrt(tl.load(squared_ptr).to(tl.float32)))
    tl.store(out_ptr + 7, code_size)


def tally_bytes(F: int) -> int:
    """Bytes that `tally_` moves with `fired` in int32."""
    return F * (4 * 8 + 4)


def tally_(
    silent_for: Tensor,
    fired_before: Tensor,
    fired: Tensor,
    threshold: int,
    n_tokens: int,
    loss: Tensor,
    fvu: Tensor,
    squared: Tensor,
    auxk_loss: Tensor | None = None,
    penalty: Tensor | None = None,
    code_size: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """silent_for, fired_before [F] int64 in place, fired [F] integers -> the eight metrics of the step, [] fp32."""
    F, device = len(fired), fired.device
    for name, tensor in {"silent_for": silent_for, "fired_before": fired_before, "fired": fired}.items():
        assert tensor.shape == (F,), f"{name}: expected {(F,)}, got {tuple(tensor.shape)}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    n = triton.cdiv(F, BLOCK)
    n_active = torch.empty(n, dtype=torch.int64, device=device)
    n_dead = torch.empty(n, dtype=torch.int32, device=device)
    counts = silent_for, fired_before, fired, n_active, n_dead
    _count_latents_kernel[(n,)](*counts, F, threshold, n_tokens, BLOCK=BLOCK, num_warps=BLOCK // 32)
    out = torch.empty(8, dtype=torch.float32, device=device)
    found = loss, fvu, squared, auxk_loss, penalty, code_size
    _metrics_kernel[(1,)](n_active, n_dead, *found, out, n, F, max(n_tokens, 1), BLOCK=1024)
    return out.unbind()
