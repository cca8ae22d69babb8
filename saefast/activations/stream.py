"""The streaming buffer: `open_buffer` gives the shuffle buffer in C++ where it can, else the one in PyTorch.

Both give the same batches, bit for bit, and restore each other's state. The C++ one (`csrc/stream/`) reads ahead in
threads without the GIL, verifies checksums there, and mixes the next batches while the trainer works.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.buffer import COUNTERS, ShuffleBuffer, check_state
from saefast.activations.segments import as_bytes, segments_of
from saefast.activations.sources import Source, TensorSource
from saefast.errors import InputError, check

log = logging.getLogger("saefast")
_said: set[str] = set()


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
    """The fastest shuffle buffer for `source`: `NativeBuffer` for shard folders, `.npy` and `.safetensors` files and
    tensors in memory; `ShuffleBuffer` for other sources and where the extension is not built (said once). With a CUDA
    `device`, `saefast.activations.device_buffer.DeviceBuffer` in place of `NativeBuffer`, or said once why not.

    Args:
        dtype: of the batches of the one in C++, default that of the source, which the one in PyTorch always keeps.
        device: where the batches are wanted. Only those of the buffer on a GPU come there by themselves.
        reserve: bytes of GPU memory that it must leave free.
        options: of `NativeBuffer`.

    Raises:
        InputError: sizes that do not fit, a damaged source.
    """
    device = torch.device(device)
    try:
        importlib.import_module("saefast._C")
    except ImportError as error:
        if "native" not in _said:
            _said.add("native")
            log.warning(f"streaming: the buffer in PyTorch reads the activations; {error}")
        return ShuffleBuffer(source, batch_size, capacity, seed, nonfinite)
    found = segments_of(source)
    if found is None:
        return ShuffleBuffer(source, batch_size, capacity, seed, nonfinite)
    if device.type == "cuda":
        on_gpu = importlib.import_module("saefast.activations.device_buffer").open_on(
            device, reserve, source, batch_size, capacity, seed, nonfinite, dtype, found, **options
        )
        if not isinstance(on_gpu, str):
            return on_gpu
        if "cuda" not in _said:
            _said.add("cuda")
            log.warning(f"streaming: the shuffle buffer is in main memory, not on the GPU: {on_gpu}")
    return NativeBuffer(source, batch_size, capacity, seed, nonfinite, dtype, segments=found, **options)


class NativeBuffer(ShuffleBuffer):
    """`ShuffleBuffer` in C++: the same batches, with reading, verification and mixing in threads of its own.

    A batch is memory of the extension that is used again once nothing refers to it or to a view of it. The threads
    begin with the first batch and end with `close`, or with the last reference. A tensor is not copied: its rows go
    from it into the batches, so it must not change until then.

    Args:
        dtype: of the batches. fp32 is written while gathering; others are cast after it. None: the source's.
        readers: threads that read, 1 to 64. mixers: threads that draw batches and copy rows into them, 1 to 64. The
            batches depend on neither. ahead: batches mixed before they are asked for, 1 or more.
        ring_bytes: that reading ahead may take up. A shard is held whole while it is verified, so one larger than
            this takes its size.
        direct: read around the page cache (O_DIRECT), where the file system can.
        timeout: seconds without a batch after which `next` raises.

    Raises (from the iterator): InputError for NaN or Inf, a shard truncated, altered, deleted or rewritten (named),
        a tensor that was modified in place, no batch in `timeout` seconds. The buffer can be saved then, and the next
        iterator tries again.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        capacity: int,
        seed: int = 0,
        nonfinite: str = "stop",
        dtype: torch.dtype | None = None,
        *,
        readers: int = 2,
        mixers: int = 2,
        ahead: int = 2,
        ring_bytes: int = 256 << 20,
        chunk_bytes: int = 1 << 20,
        direct: bool = False,
        timeout: float = 600.0,
        segments: tuple[list[Any], torch.dtype] | None = None,
    ) -> None:
        check(batch_size >= 1, f"batch_size: expected a positive integer, got {batch_size}")
        check(
            capacity >= batch_size, f"capacity: expected at least batch_size = {batch_size}, got {capacity}"
        )
        check(1 <= readers <= 64, f"readers: expected 1 to 64, got {readers}")
        check(1 <= mixers <= 64, f"mixers: expected 1 to 64, got {mixers}")
        check(ahead >= 1, f"ahead: expected 1 or more, got {ahead}")
        found = segments or segments_of(source)
        if found is None:
            raise InputError(
                f"source: expected a shard folder, file or tensor in memory, got {type(source).__name__}"
            )
        parts, self.source_dtype = found
        self.source, self.batch_size, self.capacity, self.seed = source, batch_size, capacity, seed
        self.nonfinite, self.timeout = nonfinite, timeout
        self.dtype = dtype or self.source_dtype
        self.widen = self.dtype == torch.float32 != self.source_dtype
        self._tensor: Tensor | None = None  # whose rows are used where they are
        if isinstance(source, TensorSource) and isinstance(parts[0], np.ndarray):
            self._tensor = source.tensor
        self._version = _version(self._tensor)
        try:
            self._native = self._open(
                parts, d_in=source.d_in, dtype=_name(self.source_dtype), batch=batch_size, capacity=capacity,
                seed=seed, widen=self.widen, skip=nonfinite == "skip", readers=readers, mixers=mixers,
                ahead=ahead, ring_bytes=ring_bytes, chunk_bytes=chunk_bytes, direct=direct,
            )  # fmt: skip
        except MemoryError:
            size = capacity * source.d_in * self.source_dtype.itemsize
            raise InputError(
                f"capacity: expected {size / 1e9:.1f} GB of memory for {capacity} rows, there is less"
            ) from None

    def _open(self, parts: list[Any], **settings: Any) -> Any:
        return importlib.import_module("saefast._C").stream.ShuffleBuffer(parts, **settings)

    def __iter__(self) -> Iterator[Tensor]:
        while (rows := self._wait(self._native.next)) is not None:
            self._check_unchanged()
            batch = torch.from_numpy(rows).view(torch.float32 if self.widen else self.source_dtype)
            yield batch.to(self.dtype)

    def _check_unchanged(self) -> None:
        same = _version(self._tensor) == self._version
        check(
            same, "source: expected the tensor unchanged while the buffer reads it, it was modified in place"
        )

    def sample(self, n: int) -> Tensor:
        if self._native.numbers()["batches"]:  # batches may be mixed ahead: go back to the one delivered last
            self.load_state_dict(*self.state_dict())
        rows = self._wait(lambda timeout: self._native.sample(n, timeout))
        if rows is None:
            raise InputError("source: expected at least one finite row, got none")
        return torch.from_numpy(rows).view(self.source_dtype)

    def _wait(self, function: Callable[[float], Any]) -> Any:
        try:
            return function(self.timeout)
        except ValueError as error:
            raise InputError(str(error)) from None
        except TimeoutError:
            raise InputError(
                f"source: expected a batch within {self.timeout:g} s, the readers gave none"
            ) from None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        numbers = self._native.numbers()
        return {"row_of": torch.from_numpy(self._native.row_of())}, {name: numbers[name] for name in COUNTERS}

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        check_state(numbers)
        row_of = tensors["row_of"].contiguous()
        again = row_of if self._tensor is None else row_of[:0]  # rows in memory are used where they are
        rows = self.source.take(again).to(self.source_dtype).contiguous()
        shape = (len(again), self.source.d_in * self.source_dtype.itemsize)
        counters = {name: numbers[name] for name in COUNTERS}
        self._wait(lambda _: self._native.load(row_of.numpy(), as_bytes(rows).reshape(shape), **counters))

    def close(self) -> None:
        """End the threads, at any moment and from any thread; the state can still be read."""
        self._native.close()

    def __getattr__(self, name: str) -> Any:
        if name in (*COUNTERS, "held") and "_native" in self.__dict__:
            return self._native.numbers()[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _version(tensor: Tensor | None) -> int:
    """How often torch wrote to it in place."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
