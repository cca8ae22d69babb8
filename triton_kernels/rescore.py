"""Rescore: the K best of K' candidates per token by pre-activations in fp32, where 16 bits chose the candidates.

    score[j] = (<centred[b], W_enc[indices[b, j]]> + b_enc[indices[b, j]]) * scale[indices[b, j]]
    acts, indices = relu of the K largest scores of each token, the smaller latent first among equals

Two FLOPs per element of W_enc gathered, so memory bandwidth bounds it: `rescore_bytes`. Descending order of score.
Spec: the rescoring in `saefast.reference.encode_topk`, with NaN as +inf.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.triton_kernels.topk import relu_of_key, sort_key


@triton.jit
def _rescore_kernel(
    centred_ptr,  # [B, D]
    W_enc_ptr,  # [F, D]
    b_enc_ptr,  # [F]
    scale_ptr,  # [F], or None
    indices_ptr,  # [B, N]
    acts_ptr,  # [B, K] out
    out_ptr,  # [B, K] out
    D,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK_N)
    f = tl.load(indices_ptr + b * N + j, mask=j < N, other=0)
    row_ptrs = W_enc_ptr + f.to(tl.int64)[:, None] * D  # F * D passes 2^31

    # Summed apart from each other until the end: no reduction in the loop.
    partial = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(centred_ptr + b * D + d, mask=d < D, other=0.0).to(tl.float32)
        inside = (j < N)[:, None] & (d < D)[None, :]
        partial += tl.load(row_ptrs + d[None, :], mask=inside, other=0.0).to(tl.float32) * x[None, :]
    score = tl.sum(partial, axis=1) + tl.load(b_enc_ptr + f).to(tl.float32)
    if scale_ptr is not None:
        score *= tl.load(scale_ptr + f).to(tl.float32)

    # The candidate in one integer: score above, then the complement of the latent, which is unique.
    packed = (sort_key(score).to(tl.int64) << 32) | (0x7FFFFFFF - f).to(tl.int64)
    packed = tl.sort(tl.where(j < N, packed, -(2**63)), descending=True)
    act = relu_of_key((packed >> 32).to(tl.int32), tl.float32)
    tl.store(acts_ptr + b * K + j, act.to(acts_ptr.dtype.element_ty), mask=j < K)
    tl.store(out_ptr + b * K + j, 0x7FFFFFFF - (packed & 0x7FFFFFFF).to(tl.int32), mask=j < K)


@dataclass(frozen=True)
class RescoreConfig:
    """Launch configuration of `_rescore_kernel`."""

    BLOCK_N: int  # candidates, padded
    BLOCK_D: int  # columns per iteration
    num_warps: int


def rescore_config(N: int, D: int) -> RescoreConfig:
    """32 products per thread and iteration; BLOCK_D pads D by at most an eighth where 32 columns or more can."""
    BLOCK_N = triton.next_power_of_2(N)
    widest = min(8192 // BLOCK_N, 512, triton.next_power_of_2(D))
    narrower = (block for block in (512, 256, 128, 64) if block <= widest and -D % block <= D // 8)
    BLOCK_D = next(narrower, min(32, widest))
    return RescoreConfig(BLOCK_N, BLOCK_D, max(1, BLOCK_N * BLOCK_D // 1024))


def rescore_bytes(B: int, N: int, D: int, itemsize: int) -> int:
    """Bytes that `rescore` reads when no row of W_enc is found in a cache, without scale."""
    return B * D * itemsize + B * N * (D * itemsize + 8)


def rescore(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, scale: Tensor | None, indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """[B, D], [F, D], [F], [F] or None, candidates [B, N] int32 -> acts [B, K] in b_enc's dtype, indices [B, K]."""
    (B, N), (_, D) = indices.shape, W_enc.shape
    assert centred.shape == (B, D), f"centred: expected {(B, D)}, got {tuple(centred.shape)}"
    assert k <= N <= 256, f"indices: expected {k} to 256 candidates, got {N}"
    tensors = {"centred": centred, "W_enc": W_enc, "b_enc": b_enc, "scale": scale, "indices": indices}
    for name, tensor in tensors.items():
        contiguous = tensor is None or tensor.is_contiguous()
        assert contiguous, f"{name}: expected contiguous memory, got strides {tensor.stride()}"
    acts = torch.empty(B, k, dtype=b_enc.dtype, device=b_enc.device)
    out = torch.empty(B, k, dtype=torch.int32, device=b_enc.device)
    if B == 0:
        return acts, out
    config = rescore_config(N, D)
    _rescore_kernel[(B,)](
        centred,
        W_enc,
        b_enc,
        scale,
        indices,
        acts,
        out,
        D,
        N,
        k,
        BLOCK_N=config.BLOCK_N,
        BLOCK_D=config.BLOCK_D,
        num_warps=config.num_warps,
    )
    return acts, out
