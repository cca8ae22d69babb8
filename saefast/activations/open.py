"""Opening activations: `open_source` for what a path holds, `open_buffer` for the fastest shuffle buffer over a source."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from saefast.activations import device_buffer
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.file_segments import segments_of
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.shards import ShardSource
from saefast.activations.sources import Source, TensorSource
from saefast.errors import InputError, check, line

log = logging.getLogger("saefast")
_said: set[str] = set()


def open_source(path: str | Path) -> Source:
    """The source in `path`: a shard folder, a `.npy` file, or a `.safetensors` file with one matrix.

    Raises:
        InputError: nothing there, an unknown kind of file, not a float matrix [n, d_in], or a damaged file.
    """
    path = Path(path)
    kinds = "a shard folder, .npy or .safetensors file"
    check(path.exists(), f"source: expected {kinds}, found nothing at {path}")
    if path.is_dir():
        return ShardSource(path)
    if path.suffix == ".npy":
        return _open_npy(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    raise InputError(f"source: expected {kinds}, got {path}")


def _open_npy(path: Path) -> TensorSource:
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # copy on write: never writes to the file
    except Exception as error:  # noqa: BLE001 (numpy evaluates the header: a damaged one raises anything)
        raise InputError(f"source: {path} is not a readable .npy file ({line(error)})") from None
    native = array.dtype in (np.float16, np.float32, np.float64)  # not of the other byte order, or longer
    check(native, f"source: {path}: expected a floating-point dtype of torch, got {array.dtype.str}")
    return TensorSource(torch.from_numpy(array), f"source: {path}", path)


def _open_safetensors(path: Path) -> TensorSource:
    try:
        with safe_open(path, framework="pt") as file:
            matrices = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"source: {path} is not a readable safetensors file ({line(error)})") from None
    if len(matrices) > 1:  # one of our shards, or somebody's file with the usual name
        matrices = {name: tensor for name, tensor in matrices.items() if name == "activations"}
    check(len(matrices) == 1, f"source: {path}: expected one tensor, or one named 'activations'")
    return TensorSource(next(iter(matrices.values())), f"source: {path}", path)


def open_buffer(
    source: Source,
    batch_size: int,
    capacity: int,
    seed: int = 0,
    nonfinite: str = "stop",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    reserve: int = 0,
    **options: Any,
) -> ShuffleBuffer:
    """The fastest shuffle buffer for `source`. All of them give the same batches and restore each other's state.

    `NativeBuffer` reads shard folders, `.npy` and `.safetensors` files and tensors in memory. With a CUDA `device`,
    `DeviceBuffer` takes its place where it can; where it cannot, the reason is logged once. `ShuffleBuffer` reads all
    other sources, and everything where the C++ extension is not built, which is logged once too.

    Args:
        dtype: of the batches of `NativeBuffer` and `DeviceBuffer`. Default: that of the source, which `ShuffleBuffer`
            always keeps.
        device: where the batches are wanted. Only `DeviceBuffer` puts them there by itself.
        reserve: bytes of GPU memory that `DeviceBuffer` must leave free.
        options: of `NativeBuffer`.

    Raises:
        InputError: sizes that do not fit, a damaged source.
    """
    device = torch.device(device)
    sizes = source, batch_size, capacity, seed, nonfinite
    try:
        import saefast._C  # noqa: F401 (is it built?)
    except ImportError as error:
        _log_once("native", f"the buffer in PyTorch reads the activations; {error}")
        return ShuffleBuffer(*sizes)
    found = segments_of(source)
    if found is None:
        return ShuffleBuffer(*sizes)
    if device.type == "cuda":
        on_gpu = device_buffer.open_on(device, reserve, *sizes, dtype, found, **options)
        if not isinstance(on_gpu, str):
            return on_gpu
        _log_once("cuda", f"the shuffle buffer is in main memory, not on the GPU: {on_gpu}")
    return NativeBuffer(*sizes, dtype, segments=found, **options)


def _log_once(topic: str, message: str) -> None:
    if topic not in _said:
        _said.add(topic)
        log.warning(f"streaming: {message}")
