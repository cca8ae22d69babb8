"""Decode: rebuild each token from its K active latents.

    x_hat[b] = b_dec + sum_j top_acts[b, j] * W_dec[top_indices[b, j]]

Two FLOPs per element of W_dec gathered, so memory bandwidth bounds it; `decode_bytes` counts that traffic. Rows used
by several tokens may come from the L2 cache, down to one read of each row. Spec: `saefast.reference.decode`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _decode_kernel(
    top_acts_ptr,  # [B, K]
    top_indices_ptr,  # [B, K]
    W_dec_ptr,  # [F, D]
    b_dec_ptr,  # [D]
    x_hat_ptr,  # [B, D] out
    K,
    D,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Tokens vary fastest, so the programs running together read one slice of columns of W_dec: less L2 to miss.
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = d < D

    # BLOCK_K rows are in flight at a time, each summed apart from the others until the end: no reduction in the loop.
    partial = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, K, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        act = tl.load(top_acts_ptr + b * K + j, mask=j < K, other=0.0).to(tl.float32)
        f = tl.load(top_indices_ptr + b * K + j, mask=j < K, other=0).to(tl.int64)  # F * D passes 2^31
        row_ptrs = W_dec_ptr + f[:, None] * D + d[None, :]
        active = act != 0  # the row of an inactive slot is not read
        rows = tl.load(row_ptrs, mask=active[:, None] & in_row[None, :], other=0.0).to(tl.float32)
        partial += act[:, None] * rows

    b_dec = tl.load(b_dec_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    x_hat = b_dec + tl.sum(partial, axis=0)
    tl.store(x_hat_ptr + b * D + d, x_hat.to(x_hat_ptr.dtype.element_ty), mask=in_row)


@dataclass(frozen=True)
class DecodeConfig:
    """Launch configuration of `_decode_kernel`."""

    BLOCK_K: int  # rows of W_dec loaded per iteration
    BLOCK_D: int  # columns of a program
    num_warps: int


def decode_config(K: int, D: int, itemsize: int) -> DecodeConfig:
    """Tiles for W_dec of `itemsize` bytes per element.

    BLOCK_D is the widest tile that pads D by at most an eighth. A thread reads 16 bytes of a row, and where a row fills
    the warps it does so for every row of the tile, so that the rows are summed inside the thread. BLOCK_K gives each
    thread four such loads to wait for at once.
    """
    BLOCK_D = next((block for block in (512, 256) if -D % block <= D // 8), 128)
    BLOCK_D = min(BLOCK_D, triton.next_power_of_2(D))
    num_warps = max(1, BLOCK_D * itemsize // (32 * 16))
    BLOCK_K = num_warps * 32 * 16 * 4 // (BLOCK_D * itemsize)
    return DecodeConfig(min(BLOCK_K, triton.next_power_of_2(K)), BLOCK_D, num_warps)


def decode_bytes(B: int, K: int, D: int, itemsize: int) -> int:
    """Bytes that `decode` moves when no row of W_dec is found in a cache, with int32 indices."""
    return B * K * (itemsize + 4) + B * K * D * itemsize + B * D * itemsize


def decode(
    top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, *, config: DecodeConfig | None = None
) -> Tensor:
    """[B, K], [B, K] int32, [F, D], [D] -> x_hat [B, D], summed in fp32, in the wider dtype of W_dec and b_dec."""
    (B, K), (_, D) = top_acts.shape, W_dec.shape
    assert top_indices.shape == (B, K), f"top_indices: expected {(B, K)}, got {tuple(top_indices.shape)}"
    assert b_dec.shape == (D,), f"b_dec: expected {(D,)}, got {tuple(b_dec.shape)}"
    tensors = {"top_acts": top_acts, "top_indices": top_indices, "W_dec": W_dec, "b_dec": b_dec}
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"

    dtype = torch.promote_types(W_dec.dtype, b_dec.dtype)
    x_hat = torch.empty(B, D, dtype=dtype, device=W_dec.device)
    if B == 0:
        return x_hat
    config = config or decode_config(K, D, W_dec.element_size())
    _decode_kernel[(B, triton.cdiv(D, config.BLOCK_D))](
        top_acts, top_indices, W_dec, b_dec, x_hat, K, D,
        BLOCK_K=config.BLOCK_K, BLOCK_D=config.BLOCK_D, num_warps=config.num_warps,
    )  # fmt: skip
    return x_hat
