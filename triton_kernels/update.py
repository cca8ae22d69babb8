"""Update: backward, projection, Adam and unit norm in one pass over the weights, latent by latent.

For latent f with the active entries p of token t[p] and activation a[p], with error = x_hat - x:

    dz[p]    = grad_scale * <error[t[p]], W_dec[f]> + l1
    dW_dec   = sum_p grad_scale * a[p] * error[t[p]], without its part along W_dec[f]
    dW_enc   = sum_p dz[p] * centred[t[p]]          db_enc = sum_p dz[p]
    db_dec   = grad_scale * sum_b error[b] - sum_f db_enc[f] * W_enc[f]

then Adam on all of it, and W_dec[f] scaled to unit norm. What an architecture with a penalty computes beforehand comes
as `saefast.reference.Given`; then no product with W_dec is taken, and

    dz[p]    = given, once per entry                centred of token t[p] modulo B
    dW_dec   + pull[f] * W_dec[f]                   pull may differ between equal parts of the row
    dW_enc   + push[f] * push_row                   db_enc + push[f] * B + bias[f], the last not seen by db_dec

Two of the numbers switch: `unit` (with Given only) the projection and the norm, `tied` the second term of db_dec. A program
keeps the rows of its latent in registers, so the gradients never are in memory: what is moved is the state, read and
written once, and the gathered rows (`update_bytes`). Memory bandwidth bounds it. `row_grads` stores the gradients instead
and `adam_rows_` reads them, which costs 16 bytes per pair of parameters more and gives their norm before they are used.

Sums have a fixed order: the same inputs give the same bits. Rows of more than 8192 do not fit into the registers of
a thread block; part of them waits in its L1 cache. Rows of W_enc and W_dec may differ in length. Spec: `saefast.reference.update_`, `row_grads`, `adam_rows_`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.triton_kernels.adam_kernels import _adam_rows_kernel, _b_dec_kernel
from saefast.triton_kernels.gemm import multiprocessors
from saefast.triton_kernels.hot_latents import chunk_kernel, chunk_offsets, most_chunks
from saefast.triton_kernels.rows import pieces_of
from saefast.triton_kernels.storage import Weights, pointers, state_bytes
from saefast.triton_kernels.update_kernels import _update_kernel

Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # W_enc, b_enc, W_dec, b_dec


@dataclass(frozen=True)
class UpdateConfig:
    """Launch configuration of the update kernels."""

    num_warps: int
    maxnreg: int  # registers of a thread
    programs: int  # at most; latent j belongs to program j modulo their number
    R: int  # active entries loaded at once
    chunk: int  # active entries of a latent that one program sums up


def update_config(D: int, itemsize: int, device: torch.device, int8: bool = False) -> UpdateConfig:
    """At most 16 elements of a row per thread up to D = 8192, and as many programs as run at the same time.

    128 registers let two thread blocks of 8 warps run on a multiprocessor; smaller blocks have no such step. Rows of
    error and centred, of `itemsize` bytes per element, must fit in beside those of the latent. int8 moments take some
    more to unpack.
    """
    num_warps = next((n for n in (1, 2, 4, 8) if 512 * n >= D), 16)
    maxnreg = 128 if num_warps >= 8 else 152 if int8 else 144
    programs = multiprocessors(device) * (65536 // (32 * maxnreg) // num_warps)
    return UpdateConfig(num_warps, maxnreg, programs, R=max(1, 4 // itemsize), chunk=256)


def update_bytes(weights: Weights, n_entries: int, itemsize: int, pulls: int = 0) -> int:
    """Bytes that `update_` moves with `n_entries` active entries and error and centred of `itemsize`.

    fp32 weights and moments with a bf16 copy take 52 bytes per pair of parameters, split with int8 moments 24, bf16
    with int8 16. Gathered rows count in full: where error and centred fit into the L2 cache, less is read.

    Args:
        pulls: columns of `Given.pull`, 0 without Given. `push_row` is read from the cache by latents that have a push.
    """
    (F, D), D_out = weights.enc.weight.shape, weights.dec.weight.shape[1]
    state = F * (D * state_bytes(weights.enc) + D_out * state_bytes(weights.dec) + 24)
    given = 4 * n_entries + F * (8 + 4 * pulls) if pulls else 0
    return state + n_entries * ((D + D_out) * itemsize + 12) + given


def check_weights(weights: Weights) -> tuple[int, int, int]:
    """-> F, D, D_out."""
    (F, D), D_out = weights.enc.weight.shape, weights.dec.weight.shape[1]
    for name, matrix, size in (("W_enc", weights.enc, D), ("W_dec", weights.dec, D_out)):
        for tensor in pointers(matrix):
            assert tensor is None or tensor.is_contiguous(), f"{name}: expected contiguous memory"
        shape = tuple(matrix.weight.shape)
        assert shape == (F, size), f"{name}: expected {(F, size)}, got {shape}"
    return F, D, D_out


def check_given(given, N: int, F: int, D: int, D_out: int) -> None:
    assert given.grad_pre.numel() == N, f"grad_pre: expected {N} entries, got {tuple(given.grad_pre.shape)}"
    L = given.pull.shape[-1]
    assert D_out % L == 0, f"pull: expected a number of columns that divides {D_out}, got {L}"
    sizes = {"bias": (F,), "push": (F,), "push_row": (D,), "pull": (F, L)}
    for name, size in sizes.items():
        tensor = getattr(given, name)
        assert tensor.shape == size, f"{name}: expected {size}, got {tuple(tensor.shape)}"
    for name, tensor in given._asdict().items():
        assert tensor.dtype == torch.float32, f"{name}: expected float32, got {tensor.dtype}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"


def launch_update(weights, operands, step, given, grads, config) -> tuple[Grads, Tensor]:
    """With `grads` of W_enc, b_enc, W_dec to fill in, or None to apply them at once -> all four, squared norm."""
    centred, error, acts, groups, grad_scale, aux, numbers = operands
    F, D, D_out = check_weights(weights)
    B, N, device = len(centred), acts.numel(), error.device
    parts = len(error) // max(B, 1) if given is not None else 1
    for name, tensor, size in (("centred", centred, (B, D)), ("error", error, (parts * B, D_out))):
        assert tensor.shape == size, f"{name}: expected {size}, got {tuple(tensor.shape)}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    assert acts.is_contiguous(), f"acts: expected contiguous memory, got strides {acts.stride()}"
    offsets = groups[0]
    assert offsets.shape == (F + 1,), f"offsets: expected {(F + 1,)}, got {tuple(offsets.shape)}"
    if given is not None:
        check_given(given, N, F, D, D_out)

    def fp32(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    config = config or update_config(
        max(D, D_out), error.element_size(), device, weights.enc.scales is not None
    )
    P, options = min(config.programs, F), row_options(D, D_out, config)
    options |= {"R": config.R, "CHUNK": config.chunk}
    enc, dec = pointers(weights.enc), pointers(weights.dec)
    C = most_chunks(N, F, config.chunk)
    starts = chunk_offsets(offsets, config.chunk)
    chunks = fp32(C, D), fp32(C, D_out), fp32(C)
    of_given, n_tokens, L = ((None,) * 5, None, 1) if given is None else (given, B, given.pull.shape[1])
    rows, lists, scalars = (centred, error, acts), (*groups, starts), (grad_scale, numbers)
    if C:
        of_latents = *rows, of_given[0], *lists, *chunks, *scalars
        steps = (F - 1).bit_length()
        chunk_kernel[(C,)](*dec[:2], *of_latents, F, n_tokens, STEPS=steps, **options)
    partial, squares = fp32(P, D) if D_out == D else None, fp32(P)
    rows_of_aux = (None,) * 4 if aux is None else aux[:4]
    parameters = *enc, *dec, *weights.b_enc, *(grads or (None,) * 3)
    of_latents = *rows, *lists, *chunks, *rows_of_aux, *of_given, *scalars, step
    _update_kernel[(P,)](*parameters, *of_latents, partial, squares, F, P, n_tokens, L=L, **options)

    b_dec = (None,) * 3 if grads else weights.b_dec
    errors = error[:B].sum(dim=0, dtype=torch.float32)
    of_b_dec = None if partial is None else partial.sum(dim=0), None if aux is None else aux[4]
    grad_b_dec, squared = fp32(D_out), fp32()
    out = squares, grad_b_dec, squared
    _b_dec_kernel[(1,)](*b_dec, errors, *of_b_dec, *out, *scalars, P, D_out, BLOCK=1024)
    return (*(grads or (None,) * 3), grad_b_dec), squared


def row_options(D: int, D_out: int, config: UpdateConfig) -> dict[str, object]:
    return {
        "D": D,
        "PIECES": pieces_of(D, config.num_warps),
        "D_OUT": D_out,
        "PIECES_OUT": pieces_of(D_out, config.num_warps),
        "num_warps": config.num_warps,
        "maxnreg": config.maxnreg,
    }


def update_(
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    acts: Tensor,
    indices: Tensor,
    row_offsets: Tensor | None,
    groups,
    grad_scale: Tensor,
    aux,
    numbers: Tensor,
    step: Tensor,
    given=None,
    *,
    config: UpdateConfig | None = None,
) -> Tensor:
    """Backward and optimizer step in place -> squared norm of the gradients []. A grad_scale of NaN changes nothing.

    Args:
        weights: `saefast.storage.Weights`.
        centred, error: [B, D], [B, D_out] of one dtype; with `given` error may have a multiple of B rows.
        acts, indices, row_offsets: a code; what is active in it is taken from `groups`, of `group_by_latent`.
        aux: `saefast.reference.Aux` or None.
        numbers: [16] fp32 or longer, `saefast.reference.Numbers`; where D_out is not D, `tied` counts as 0.
        step: [] int64.
        given: `saefast.reference.Given` in fp32, or None.
    """
    operands = centred, error, acts, groups, grad_scale, aux, numbers
    return launch_update(weights, operands, step, given, None, config)[1]


def row_grads(
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    acts: Tensor,
    indices: Tensor,
    row_offsets: Tensor | None,
    groups,
    grad_scale: Tensor,
    aux,
    numbers: Tensor,
    given=None,
    *,
    config: UpdateConfig | None = None,
) -> tuple[Grads, Tensor]:
    """As `update_` without the step -> fp32 gradients of W_enc, b_enc, W_dec (projected), b_dec; squared norm []."""
    (F, D), D_out = weights.enc.weight.shape, weights.dec.weight.shape[1]
    sizes = (F, D), (F,), (F, D_out)
    grads = [torch.empty(size, dtype=torch.float32, device=error.device) for size in sizes]
    operands = centred, error, acts, groups, grad_scale, aux, numbers
    return launch_update(weights, operands, None, given, grads, config)


def adam_rows_(
    weights: Weights,
    grads: Grads,
    factor: Tensor,
    numbers: Tensor,
    step: Tensor,
    *,
    config: UpdateConfig | None = None,
) -> None:
    """One Adam step with the gradients times `factor` [], unit norm for W_dec. A factor of NaN changes nothing."""
    F, D, D_out = check_weights(weights)
    for name, grad in zip(("W_enc", "b_enc", "W_dec", "b_dec"), grads, strict=True):
        assert grad.dtype == torch.float32, f"gradient of {name}: expected float32, got {grad.dtype}"
        assert grad.is_contiguous(), f"gradient of {name}: expected contiguous memory, got {grad.stride()}"
    config = config or update_config(max(D, D_out), 4, grads[0].device, weights.enc.scales is not None)
    P = min(config.programs, F)
    _adam_rows_kernel[(P,)](
        *pointers(weights.enc),
        *pointers(weights.dec),
        *weights.b_enc,
        *weights.b_dec,
        *grads,
        factor,
        numbers,
        step,
        F,
        P,
        **row_options(D, D_out, config),
    )
