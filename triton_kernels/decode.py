"""Decode: rebuild each token from its active latents, and what is wrong with the result.

    x_hat[b] = b_dec + sum_j acts[b, j] * W_dec[indices[b, j]]        error = x_hat - x

Two FLOPs per element of W_dec gathered, so memory bandwidth bounds it; `decode_bytes` counts that traffic. Rows used
by several tokens may come from the L2 cache, down to one read of each row. `decode_error` neither rounds x_hat before
it subtracts x nor writes it. Spec: `saefast.reference.decode`, `saefast.reference.decode_error`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def entries_of_token(b, row_offsets_ptr, K):
    """Where the entries of token b begin and end in the flattened code, int32. K: N in the ragged layout."""
    if row_offsets_ptr is None:
        return b * K, b * K + K
    else:
        # row_offsets may count entries that found no place in the code (`reference.above_threshold`).
        return tl.load(row_offsets_ptr + b), tl.minimum(tl.load(row_offsets_ptr + b + 1), K)


@triton.jit
def _x_hat(
    acts_ptr,
    indices_ptr,
    row_offsets_ptr,
    W_dec_ptr,
    b_dec_ptr,
    d,
    K,
    D,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Columns d of the x_hat of program_id(0), fp32; 0 where d >= D."""
    in_row = d < D
    first, end = entries_of_token(tl.program_id(0), row_offsets_ptr, K)

    # The rows of a tile are summed apart from each other until the end: no reduction in the loop. With stages, those of
    # two iterations are in flight (cp.async); without, ptxas loads row after row to save registers.
    partial = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in tl.range(first, end, BLOCK_K, num_stages=3):
        j = start + tl.arange(0, BLOCK_K)
        act = tl.load(acts_ptr + j, mask=j < end, other=0.0).to(tl.float32)
        f = tl.load(indices_ptr + j, mask=j < end, other=0).to(tl.int64)  # F * D passes 2^31
        row_ptrs = W_dec_ptr + f[:, None] * D + d[None, :]
        active = act != 0  # the row of an inactive slot is not read
        rows = tl.load(row_ptrs, mask=active[:, None] & in_row[None, :], other=0.0).to(tl.float32)
        partial += act[:, None] * rows

    b_dec = tl.load(b_dec_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    return b_dec + tl.sum(partial, axis=0)


@triton.jit
def _decode_kernel(
    acts_ptr,  # [B, K], or [N]
    indices_ptr,  # [B, K], or [N]
    row_offsets_ptr,  # None, or [B + 1]
    W_dec_ptr,  # [F, D]
    b_dec_ptr,  # [D]
    x_hat_ptr,  # [B, D] out
    K,  # or N
    D,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Tokens vary fastest, so the programs running together read one slice of columns of W_dec: less L2 to miss.
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x_hat = _x_hat(acts_ptr, indices_ptr, row_offsets_ptr, W_dec_ptr, b_dec_ptr, d, K, D, BLOCK_K, BLOCK_D)
    tl.store(x_hat_ptr + b * D + d, x_hat.to(x_hat_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _decode_error_kernel(
    acts_ptr,  # [B, K], or [N]
    indices_ptr,  # [B, K], or [N]
    row_offsets_ptr,  # None, or [B + 1]
    W_dec_ptr,  # [F, D]
    b_dec_ptr,  # [D]
    x_ptr,  # [B, D]
    error_ptr,  # [B, D] out
    squares_ptr,  # [B, programs of a token] out
    K,  # or N
    D,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x_hat = _x_hat(acts_ptr, indices_ptr, row_offsets_ptr, W_dec_ptr, b_dec_ptr, d, K, D, BLOCK_K, BLOCK_D)
    error = x_hat - tl.load(x_ptr + b * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(error_ptr + b * D + d, error.to(error_ptr.dtype.element_ty), mask=d < D)
    tl.store(squares_ptr + b * tl.num_programs(1) + tl.program_id(1), tl.sum(error * error))


@dataclass(frozen=True)
class DecodeConfig:
    """Launch configuration of both kernels."""

    BLOCK_K: int  # rows of W_dec loaded per iteration
    BLOCK_D: int  # columns of a program
    num_warps: int


def decode_config(K: int, D: int, itemsize: int) -> DecodeConfig:
    """Tiles for W_dec of `itemsize` bytes per element. K: of a token, at most.

    BLOCK_D is the widest tile that pads D by at most an eighth. A thread reads 16 bytes of a row, and where a row fills
    the warps it does so for every row of the tile, so that the rows are summed inside the thread. BLOCK_K gives each
    thread four such loads per iteration.
    """
    BLOCK_D = columns_of_tile(D)
    num_warps = max(1, BLOCK_D * itemsize // (32 * 16))
    BLOCK_K = num_warps * 32 * 16 * 4 // (BLOCK_D * itemsize)
    return DecodeConfig(min(BLOCK_K, triton.next_power_of_2(max(K, 1))), BLOCK_D, num_warps)


def columns_of_tile(D: int) -> int:
    """The widest tile up to 512 that pads D by at most an eighth, else 128, or the least that holds D."""
    BLOCK_D = next((block for block in (512, 256) if -D % block <= D // 8), 128)
    return min(BLOCK_D, triton.next_power_of_2(D))


def decode_bytes(B: int, K: int, D: int, itemsize: int) -> int:
    """Bytes that `decode` moves when no row of W_dec is found in a cache, with int32 indices."""
    return B * K * (itemsize + 4) + B * K * D * itemsize + B * D * itemsize


def decode(
    acts: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    row_offsets: Tensor | None = None,
    *,
    config: DecodeConfig | None = None,
) -> Tensor:
    """A code, [F, D], [D] -> x_hat [B, D], summed in fp32, in the wider dtype of W_dec and b_dec."""
    B, K = check_code(acts, indices, row_offsets)
    D = W_dec.shape[1]
    check("W_dec", W_dec, (W_dec.shape[0], D))
    check("b_dec", b_dec, (D,))
    dtype = torch.promote_types(W_dec.dtype, b_dec.dtype)
    x_hat = torch.empty(B, D, dtype=dtype, device=W_dec.device)
    if B == 0:
        return x_hat
    config = config or decode_config(K, D, W_dec.element_size())
    _decode_kernel[(B, triton.cdiv(D, config.BLOCK_D))](
        acts,
        indices,
        row_offsets,
        W_dec,
        b_dec,
        x_hat,
        K,
        D,
        BLOCK_K=config.BLOCK_K,
        BLOCK_D=config.BLOCK_D,
        num_warps=config.num_warps,
    )
    return x_hat


def decode_error(
    acts: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    row_offsets: Tensor | None = None,
    *,
    config: DecodeConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """A code, [F, D], [D], x [B, D] -> error [B, D] in `dtype`, ||error||^2 of each row before rounding [B, n] fp32, in parts."""
    B, K = check_code(acts, indices, row_offsets)
    D = W_dec.shape[1]
    check("W_dec", W_dec, (W_dec.shape[0], D))
    check("b_dec", b_dec, (D,))
    check("x", x, (B, D))
    config = config or decode_config(K, D, W_dec.element_size())
    n_tiles = triton.cdiv(D, config.BLOCK_D)
    error = torch.empty(B, D, dtype=dtype, device=W_dec.device)
    squares = torch.empty(B, n_tiles, dtype=torch.float32, device=W_dec.device)
    if B > 0:
        _decode_error_kernel[(B, n_tiles)](
            acts,
            indices,
            row_offsets,
            W_dec,
            b_dec,
            x,
            error,
            squares,
            K,
            D,
            BLOCK_K=config.BLOCK_K,
            BLOCK_D=config.BLOCK_D,
            num_warps=config.num_warps,
        )
    return error, squares


def check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    assert tensor.shape == shape, f"{name}: expected {shape}, got {tuple(tensor.shape)}"
    assert tensor.is_contiguous(), f"{name}: expected contiguous memory, got strides {tensor.stride()}"


def check_code(acts: Tensor, indices: Tensor, row_offsets: Tensor | None) -> tuple[int, int]:
    """-> B, and K or, in the ragged layout, N: the most entries a token can have."""
    if row_offsets is None:
        (B, K) = shape = tuple(acts.shape)
    else:
        (K,) = shape = tuple(acts.shape)
        B = len(row_offsets) - 1
        check("row_offsets", row_offsets, (B + 1,))
    assert acts.numel() < 2**31, f"acts: expected positions that fit int32, got {acts.numel()} entries"
    check("acts", acts, shape)
    check("indices", indices, shape)
    return B, K
