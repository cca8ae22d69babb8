"""The update in CUDA: the rows of the next latents come into shared memory by bulk copies while one is computed.

A prototype beside `saefast.triton_kernels.update`, for the plain step on GPUs of compute capability 9: SAEFAST_UPDATE=cuda. It
becomes the default only if a GPU shows it faster. Spec: `saefast.reference.update_`, with which tests/kernels/test_update_cuda.py
compares the same source (csrc/update) on the host.

A block has the latents p, p + P, ... One warp of it issues cp.async.bulk into a ring of slots of 4 D bytes, each a row of fp32
state, or one of error beside one of centred; offsets, pairs, tokens and activations are loaded a latent ahead. The other warps
take the slots in order, four entries to a reduction. b_dec's partial row stays in registers, and has sum_b error[b] too.
A hot latent's entries between multiples of `window` are summed by other blocks first, and come as rows of the ring.

Why this and not a ping-pong encoder (all times are estimates for an H200: 4.2 TB/s, L2 5.5 TB/s; none is measured):
loads that the Triton kernel waits for, one after the other, per latent with n entries: offsets, W_dec, three for each two
entries (tokens, error, centred), then chunks, moments, W_enc, moments: at A (n 10.7) 16 of .35 us and 6 of .6 us are 9 us, 7 blocks
to a multiprocessor. Here none is exposed as long as the ring holds what the memory's latency needs, 4.2 TB/s / 132 * 1 us = 32 KB:

    shape         blocks per SM   slots   ring per SM   HBM bytes, ms    Triton today / tuned   goal here
    A                  5            14      210 KB       .98 GB    .23      .39 / .33              .29
    B                  2            12      216 KB       7.8 GB   1.9       3.5 / 3.0             2.6
    C                  1            14      224 KB        56 GB  13.3      17.5 / 17.0           15.8
    D 1024, F 131072   4            13      208 KB       7.0 GB   1.7                              2.0
    D 5120, F 65536    1            11      220 KB        17 GB   4.2                              9 (gathers of 21 GB)

What then may bound A is issue: 6.8 k warp instructions a latent by SASS (two warps of 1.0 k + 1.6 k for 10.7 entries, 1.6 k of the
one that fills the ring), 1.3 M a multiprocessor: .18 ms at four a cycle, .29 at 2.5, so that the goal is not sure. The encoder's net gain over its own cheap package is .05 / .3 / 3.0 ms against .04 / .4 /
1.2 here, but Gluon has no interpreter: its parity cannot be checked without a GPU, and this one's is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.triton_kernels.gemm import multiprocessors
from saefast.triton_kernels.occupancy import LIMITS, RESERVED, WARP, blocks_per_multiprocessor
from saefast.triton_kernels.storage import Weights, pointers
from saefast.triton_kernels.update import UpdateConfig
from saefast.triton_kernels.update import update_ as triton_update_

LARGEST = 5120  # D
OF_THREAD = 12  # columns of a row
REGISTERS = 128  # of a thread, at most
FIXED, OF_STAGE = 1088, 40  # bytes of a block, and of a slot of the ring beside its rows: csrc/update/ring.h
MOST_STAGES, LEAST_STAGES = 32, 6


@dataclass(frozen=True)
class Config:
    """Launch configuration of the kernels."""

    blocks: int  # at most; latent j belongs to block j modulo their number
    stages: int  # slots of the ring: each has a row of state, or one of error and one of centred
    window: int  # a latent with more active entries is hot: other blocks sum some, those between multiples of this


def warps_of(D: int) -> int:
    """Of a block: those that compute, and one that fills the ring."""
    return -(-D // (WARP * OF_THREAD)) + 1


def shared_bytes(D: int, stages: int) -> int:
    return FIXED + stages * (4 * D + OF_STAGE)


def config_of(D: int, device: torch.device) -> Config:
    """As many blocks as registers allow, and all of the shared memory for their rings. The sums of a window take 8 D bytes,
    so that with long rows windows are longer."""
    n = blocks_per_multiprocessor(warps_of(D), REGISTERS)
    room = LIMITS[9, 0].shared_bytes // n - RESERVED - FIXED
    stages = max(LEAST_STAGES, min(MOST_STAGES, room // (4 * D + OF_STAGE)))
    return Config(n * multiprocessors(device), stages, 64 if D <= 1024 else 128 if D <= 2304 else 256)


def left_to_triton(weights: Weights, centred: Tensor, error: Tensor, acts: Tensor, aux, given) -> str | None:
    """Why this call is one that the kernels do not know; None: they do."""
    (_, D), enc, dec = weights.enc.weight.shape, weights.enc, weights.dec
    if aux is not None or given is not None:
        return "gradients from elsewhere (AuxK, a penalty)"
    if dec.weight.shape != enc.weight.shape:
        return "W_dec is of another shape than W_enc"
    int8 = enc.scales is not None
    if D % (16 if int8 else 8) or LARGEST < D:
        return f"rows of {D}"
    wanted = torch.bfloat16, torch.bfloat16, torch.float32
    if (centred.dtype, error.dtype, acts.dtype) != wanted:
        return f"{centred.dtype}, {error.dtype}, {acts.dtype} in place of {wanted}"
    moments = {torch.int8, torch.uint8} if int8 else {torch.float32}
    for matrix in (enc, dec):
        split = matrix.low is not None
        if not split and (matrix.weight.dtype, matrix.shadow.dtype) != (torch.float32, torch.bfloat16):
            return f"weights in {matrix.weight.dtype} with a copy in {matrix.shadow.dtype}"
        if matrix.low is not None and matrix.low.dtype != torch.int16:
            return f"weights with {matrix.low.dtype} below bf16"
        if {matrix.exp_avg.dtype, matrix.exp_avg_sq.dtype} != moments:
            return f"moments in {matrix.exp_avg.dtype}"
    rows = *pointers(enc)[:5], *pointers(dec)[:5], centred, error
    if any(t is not None and (t.data_ptr() % 16 or not t.is_contiguous()) for t in rows):
        return "rows that do not begin at multiples of 16 bytes"
    return None


def extension():
    """The compiled module beside this one, imported on first use."""
    try:
        from saefast.triton_kernels import _update_cuda
    except ImportError as error:
        raise ImportError(
            f"the update in CUDA is not built ({error}): `pip install -e .` where nvcc is"
        ) from error
    return _update_cuda


def stream_of(device: torch.device) -> int:
    major = torch.cuda.get_device_capability(device)[0]
    if major < 9:
        raise RuntimeError(f"the update in CUDA needs a GPU of compute capability 9, {device} has {major}")
    return torch.cuda.current_stream(device).cuda_stream


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def launch(
    weights, centred, error, acts, indices, groups, grad_scale, numbers, step, config: Config
) -> Tensor:
    """-> squared norm []. The arguments are as in `update_`."""
    (F, D), (B, N), device = weights.enc.weight.shape, (len(centred), acts.numel()), error.device
    expected = {
        "centred": (centred, torch.bfloat16, (B, D)),
        "error": (error, torch.bfloat16, (B, D)),
        "indices": (indices, torch.int32, acts.shape),
        "offsets": (groups[0], torch.int32, (F + 1,)),
        "pairs": (groups[1], torch.int32, groups[1].shape),
        "tokens": (groups[2], torch.int32, groups[1].shape),
        "grad_scale": (grad_scale, torch.float32, ()),
        "step": (step, torch.int64, ()),
        "numbers": (numbers, torch.float32, numbers.shape),
    }
    for name, (tensor, dtype, shape) in expected.items():
        assert tensor.dtype == dtype, f"{name}: expected {dtype}, got {tensor.dtype}"
        assert tensor.shape == shape, f"{name}: expected {tuple(shape)}, got {tuple(tensor.shape)}"
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    assert acts.is_contiguous(), f"acts: expected contiguous memory, got strides {acts.stride()}"
    assert numbers.numel() >= 16, f"numbers: expected 16 or more, got {numbers.numel()}"

    def fp32(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    P, W = min(config.blocks, F), -(-N // config.window)
    sums = fp32(W, D), fp32(W, D), fp32(W), fp32(P, D)
    squares = fp32(P + D // 8)
    tensors = [*pointers(weights.enc), *pointers(weights.dec), *weights.b_enc, *weights.b_dec]
    tensors += [centred, error, acts, indices, *groups, grad_scale, numbers, step, *sums, squares]
    sizes = F, D, B, N, config.window, P, config.stages
    extension().update([address(tensor) for tensor in tensors], sizes, stream_of(device))
    return squares.sum()


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
    config: Config | UpdateConfig | None = None,
) -> Tensor:
    """`saefast.triton_kernels.update.update_`, which makes the step where `left_to_triton` says why.

    Args:
        config: of these kernels, or of Triton's, which then make the step.

    Raises:
        ImportError: the extension is not built.
        RuntimeError: the GPU is too old, or the launch fails.
    """
    if isinstance(config, UpdateConfig) or left_to_triton(weights, centred, error, acts, aux, given):
        code = acts, indices, row_offsets, groups
        of_triton = config if isinstance(config, UpdateConfig) else None
        operands = weights, centred, error, *code, grad_scale, aux, numbers, step, given
        return triton_update_(*operands, config=of_triton)
    config = config or config_of(weights.enc.weight.shape[1], error.device)
    return launch(weights, centred, error, acts, indices, groups, grad_scale, numbers, step, config)


def __getattr__(name: str):
    """Every other op is that of `saefast.triton_kernels`: this module is a backend, see `saefast.load_backend`."""
    if name.startswith("__"):
        raise AttributeError(name)
    import saefast.triton_kernels as ops

    return getattr(ops, name)
