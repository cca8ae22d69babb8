"""How many bytes a run needs on the device, and what to say when there are not enough."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saefast.config import SAEConfig, TrainConfig
from saefast.errors import InputError

MAX_PRE_ACTS_BYTES = 8 * 2**30  # what the GPU encoder keeps at a time, see triton_kernels/encode.py
WEIGHT_BYTES = {"fp32": 4, "split": 4, "bf16": 2}
MOMENT_BYTES = {"fp32": 8, "bf16": 4, "int8": 2}


def training_bytes(sae: SAEConfig, train: TrainConfig, compute_bytes: int = 2) -> dict[str, int]:
    """Bytes by purpose, for the engine on a GPU with `compute_bytes` per operand of the products.

    Without gradient clipping no gradient is ever in memory; with it, both matrices have one in fp32.
    """
    n_weights, batch = 2 * sae.d_sae * sae.d_in, train.batch_size
    copy = compute_bytes if train.param_dtype == "fp32" and compute_bytes < 4 else 0
    return {
        "weights": n_weights * (WEIGHT_BYTES[train.param_dtype] + copy),
        "moments": n_weights * MOMENT_BYTES[train.state_dtype],
        "gradients": 4 * n_weights if train.grad_clip is not None else 0,
        "pre-activations": min(batch * sae.d_sae * compute_bytes, MAX_PRE_ACTS_BYTES),
        "batch": batch * (sae.d_in * (8 + 2 * compute_bytes) + sae.k * 24),
    }


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
    if train.param_dtype != "bf16":
        helps.append(f"param_dtype = '{'split' if train.param_dtype == 'fp32' else 'bf16'}'")
    return ", ".join([*helps, "a smaller batch_size or d_sae"])
