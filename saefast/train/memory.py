"""How many bytes a run needs on the device, and what to say when there are not enough."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError

MAX_PRE_ACTS_BYTES = 8 * 2**30  # what the encoder keeps at a time, see triton_kernels/encode.py
GROUP = 64  # pre-activations for each maximum of the selection
WEIGHT_BYTES = {"fp32": 4, "split": 4, "split24": 3, "bf16": 2}  # see saefast/storage.py
WINDOW = 64  # entries of a hot latent that one program sums up, see triton_kernels/hot_latents.py
MOMENT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
SMALLER = {"fp32": "split", "split": "split24", "split24": "bf16"}  # the next param_dtype


def first_dtype(train: TrainConfig) -> torch.dtype:
    """Of the weight matrices of the SAE that a run begins with: fp32 where the run keeps every bit of them, else bf16, so
    that a dictionary that fills the device needs no more of it to begin with."""
    return torch.float32 if train.param_dtype in ("fp32", "split") else torch.bfloat16


def copy_bytes(param_dtype: str, compute_bytes: int) -> int:
    """Bytes per weight of the copy that the products read; 0 where they read the weight itself."""
    if param_dtype != "fp32" and compute_bytes != 2:
        raise ValueError(f"param_dtype {param_dtype!r}: expected compute_bytes 2, got {compute_bytes}")
    return compute_bytes if param_dtype == "fp32" and compute_bytes < WEIGHT_BYTES["fp32"] else 0


def memory_bytes(
    B: int,
    D: int,
    F: int,
    K: int,
    *,
    compute_bytes: int = 2,
    input_bytes: int = 4,
    param_dtype: str = "fp32",
    state_dtype: str = "fp32",
    n_dead: int = 0,
    micro_batch_size: int | None = None,
    clip: bool = False,
    chunk_bytes: int = MAX_PRE_ACTS_BYTES,
) -> dict[str, int]:
    """Bytes in use at the height of a GPU step by purpose, without what CUDA itself and its allocator take.

    Without gradient clipping no gradient is ever in memory; with it, both matrices have one in fp32.
    chunk_bytes: the encoder keeps so many pre-activations at a time.
    """
    c, N, P = compute_bytes, B * K, F * D
    out = {
        "weights": 2 * P * WEIGHT_BYTES[param_dtype] + 4 * (F + D),
        "copies": 2 * P * copy_bytes(param_dtype, c),
        "moments": 4 * P * MOMENT_BYTES[state_dtype] + 8 * (F + D),
        "gradients": 8 * P if clip else 0,
        "counters": 2 * 8 * F,
        "batch": B * D * (input_bytes + 2 * c) + 4 * B,  # x, centred, error
        "pre-activations": min(c * B * F, chunk_bytes) + c * B * F // GROUP,
        "code and groups": 16 * N + 4 * F,
        "sums of hot latents": 4 * math.ceil(N / WINDOW) * (2 * D + 1),
    }
    if state_dtype == "int8":
        out["moments"] += 2 * 8 * F
    if n_dead:
        rows = min(B, micro_batch_size or B)
        out["auxk"] = n_dead * (2 * D * (c + 4) + 2 * rows * c) + 4 * F  # rows, gradients, activations; slots
    return out


def training_bytes(sae: SAEConfig, train: TrainConfig, compute_bytes: int = 2) -> dict[str, int]:
    """`memory_bytes` of a run with products of `compute_bytes` per operand."""
    return memory_bytes(
        train.batch_size,
        sae.d_in,
        sae.d_sae,
        sae.top_k,
        compute_bytes=compute_bytes,
        param_dtype=train.param_dtype,
        state_dtype=train.state_dtype,
        clip=train.grad_clip is not None,
    )


def free_for_steps(sae: SAEConfig, train: TrainConfig, compute_bytes: int) -> int:
    """Bytes that a GPU step takes beside what training holds already; AuxK for a tenth of the latents."""
    parts = memory_bytes(
        train.batch_size,
        sae.d_in,
        sae.d_sae,
        sae.top_k,
        compute_bytes=compute_bytes,
        clip=train.grad_clip is not None,
        n_dead=sae.d_sae // 10 if train.auxk_alpha else 0,
        micro_batch_size=train.micro_batch_size,
    )
    return sum(
        size for part, size in parts.items() if part not in ("weights", "copies", "moments", "counters")
    )


@contextmanager
def out_of_memory_help(sae: SAEConfig, train: TrainConfig) -> Iterator[None]:
    """Turn the device's out-of-memory error into one that says what is needed and which setting lowers it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        parts = training_bytes(sae, train)
        listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items() if size)
        raise InputError(
            f"d_sae: {sae.d_sae} latents of width {sae.d_in} in batches of {train.batch_size} need "
            f"{sum(parts.values()) / 1e9:.2f} GB on the device ({listed}); less with {_what_helps(train)} ({error})"
        ) from error


def _what_helps(train: TrainConfig) -> str:
    helps = []
    if train.grad_clip is not None:
        helps.append("grad_clip = None")
    if train.state_dtype != "int8":
        helps.append("state_dtype = 'int8'")
    if train.param_dtype in SMALLER:
        helps.append(f"param_dtype = '{SMALLER[train.param_dtype]}'")
    if train.micro_batch_size is None and train.auxk_alpha:
        helps.append("a micro_batch_size below batch_size")
    return ", ".join([*helps, "a smaller batch_size or d_sae"])
