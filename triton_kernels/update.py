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
import triton
from torch import Tensor

from saefast.triton_kernels.adam_kernels import _adam_rows_kernel, _b_dec_kernel
from saefast.triton_kernels.gemm import device_capability, multiprocessors
from saefast.triton_kernels.hot_latents import chunk_kernel
from saefast.triton_kernels.occupancy import blocks_per_multiprocessor, most_registers
from saefast.triton_kernels.rows import pieces_of
from saefast.triton_kernels.storage import Weights, pointers, state_bytes
from saefast.triton_kernels.update_kernels import _update_kernel

B_DEC_COLUMNS = 32  # of a program
Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # W_enc, b_enc, W_dec, b_dec


@dataclass(frozen=True)
class UpdateConfig:
    """Launch configuration of the update kernels."""

    num_warps: int
    maxnreg: int  # registers of a thread
    programs: int  # at most; latent j belongs to program j modulo their number
    R: int  # active entries added at once
    chunk: int = 64  # active entries of a latent beyond which several programs sum it up
    stages: int = 1  # of the loops over gathered rows: 1 waits for each, 3 has the next on its way
    keep_gathered: bool = True  # gathered rows are to stay in the L2 cache
    pass_stored: bool = False  # weights and moments are to leave it first


def update_config(D: int, itemsize: int, device: torch.device, packed: bool = False) -> UpdateConfig:
    """As many programs as run at the same time, with few warps each: what a program waits for, it waits for once a latent.

    At most 24 elements of a row per thread up to D = 3072, in 168 registers: 12 warps on a multiprocessor. Beyond, 16 in 128
    registers, which let two thread blocks of 8 warps run. Packed moments take some more to unpack: 16 elements from
    D = 1536 on, and from 4096 on 8 warps of all registers, because 16 spill. So do fp32 operands on sm_80, and the compiler
    for sm_100. Rows of error and centred, of `itemsize` bytes per element, must fit in beside those of the latent: one of each
    at a time. The loops over gathered rows have as many stages, 4 at most, as cost no more than one block in eight its place.

    Args:
        D: the wider of d_in and d_out.
        packed: moments take less than fp32.
    """
    capability = device_capability(device)
    widest = 512 if packed and capability[0] >= 10 else 768  # elements of a row in a warp
    most = 8192 if packed else 4096  # of 8 warps
    num_warps = next((n for n in (1, 2, 4) if widest * n >= D), 8 if most >= D else 16)
    if packed and num_warps == 4:
        num_warps = 8
    needed = 168 if num_warps <= 4 else 255 if D > 4096 and num_warps == 8 else 128
    if num_warps <= 8 and capability[0] >= 10 and (packed or itemsize == 4):
        needed = 255
    elif num_warps <= 4 and itemsize == 4 and capability[0] < 9:
        needed = 200
    registers = most_registers(num_warps, needed, 0, capability)
    blocks = blocks_per_multiprocessor(num_warps, registers, 0, capability)

    def blocks_with(stages: int) -> int:
        shared = pipeline_bytes(D, itemsize, num_warps, 1, stages)
        return blocks_per_multiprocessor(num_warps, registers, shared, capability)

    stages = next(n for n in (4, 3, 2, 1) if n == 1 or 8 * blocks_with(n) >= 7 * blocks)
    programs = multiprocessors(device) * blocks_with(stages)
    return UpdateConfig(num_warps, registers, programs, R=1, stages=stages)


def pipeline_bytes(D: int, itemsize: int, num_warps: int, R: int, stages: int) -> int:
    """Shared memory of a block, at most: for each stage but one, two times R rows of `itemsize`, or one of fp32."""
    widths = 2 * sum(width for _, width, *_ in pieces_of(D, num_warps))
    return (stages - 1) * (widths * max(R * itemsize, 4) + 64 * R) + 1024


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
    centred, error, acts, indices, groups, grad_scale, aux, numbers = operands
    F, D, D_out = check_weights(weights)
    B, N, device = len(centred), acts.numel(), error.device
    parts = len(error) // max(B, 1) if given is not None else 1
    for name, tensor, size in (("centred", centred, (B, D)), ("error", error, (parts * B, D_out))):
        assert tensor.shape == size, f"{name}: expected {size}, got {tuple(tensor.shape)}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    for name, tensor in (("acts", acts), ("indices", indices)):
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    assert indices.numel() == N, f"indices: expected {N} entries, got {tuple(indices.shape)}"
    offsets = groups[0]
    assert offsets.shape == (F + 1,), f"offsets: expected {(F + 1,)}, got {tuple(offsets.shape)}"
    if given is not None:
        check_given(given, N, F, D, D_out)

    def fp32(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    packed = weights.enc.exp_avg.element_size() < 4
    config = config or update_config(max(D, D_out), error.element_size(), device, packed)
    P, options = min(config.programs, F), row_options(D, D_out, config)
    options |= {"R": config.R, "STAGES": config.stages, "CHUNK": config.chunk}
    enc, dec = pointers(weights.enc), pointers(weights.dec)
    C = triton.cdiv(N, config.chunk)
    chunks = fp32(C, D), fp32(C, D_out), fp32(C)
    of_given, L = ((None,) * 5, 1) if given is None else (given, given.pull.shape[1])
    rows, scalars = (centred, error, acts), (grad_scale, numbers)
    if config.chunk < N:  # else no latent can be hot
        programs = min(config.programs, C)
        of_entries = *rows, of_given[0], indices, *groups, *chunks, *scalars
        chunk_kernel[(programs,)](*dec[:2], *of_entries, F, C, programs, B, **options)
    blocks = triton.cdiv(D_out, B_DEC_COLUMNS)
    partial, squares = fp32(P, D_out), fp32(P + blocks)
    rows_of_aux = (None,) * 4 if aux is None else aux[:4]
    parameters = *enc, *dec, *weights.b_enc, *(grads or (None,) * 3)
    of_latents = *rows, *groups, *chunks, *rows_of_aux, *of_given, *scalars, step
    _update_kernel[(P,)](*parameters, *of_latents, partial, squares, F, P, B, L=L, **options)

    b_dec, aux_b_dec = (None,) * 3 if grads else weights.b_dec, None if aux is None else aux[4]
    grad_b_dec = fp32(D_out)
    of_b_dec = *b_dec, partial, aux_b_dec, grad_b_dec, squares, *scalars
    _b_dec_kernel[(blocks,)](*of_b_dec, P, D_out, ROWS=256, COLS=B_DEC_COLUMNS, num_warps=8)
    return (*(grads or (None,) * 3), grad_b_dec), squares.sum()


def row_options(D: int, D_out: int, config: UpdateConfig) -> dict[str, object]:
    hints = config.num_warps, config.keep_gathered, config.pass_stored
    return {
        "D": D,
        "PIECES": pieces_of(D, *hints),
        "D_OUT": D_out,
        "PIECES_OUT": pieces_of(D_out, *hints),
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
    operands = centred, error, acts, indices, groups, grad_scale, aux, numbers
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
    operands = centred, error, acts, indices, groups, grad_scale, aux, numbers
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
    config = config or update_config(
        max(D, D_out), 4, grads[0].device, weights.enc.exp_avg.element_size() < 4
    )
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
