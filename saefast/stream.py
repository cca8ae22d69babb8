"""The streaming buffer: `open_buffer` gives the shuffle buffer in C++ where it can, else the one in PyTorch.

Both give the same batches, bit for bit, and restore each other's state. The C++ one (`csrc/stream/`) reads ahead in
threads without the GIL, verifies checksums there, and mixes the next batches while the trainer works.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.buffer import COUNTERS, ShuffleBuffer, check_state
from saefast.errors import InputError, check
from saefast.shards import INDEX, ShardSource
from saefast.sources import Source, TensorSource

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
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
    `device`, `saefast.device_buffer.DeviceBuffer` in place of `NativeBuffer`, or said once why not.

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
        on_gpu = importlib.import_module("saefast.device_buffer").open_on(
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
            check(
                _version(self._tensor) == self._version,
                "source: expected the tensor unchanged while the buffer reads it, it was modified in place",
            )
            batch = torch.from_numpy(rows).view(torch.float32 if self.widen else self.source_dtype)
            yield batch.to(self.dtype)

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
        self._wait(lambda _: self._native.load(row_of.numpy(), _bytes(rows).reshape(shape), **counters))

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


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.flatten().view(torch.uint8).numpy()


def segments_of(source: Source) -> tuple[list[Any], torch.dtype] | None:
    """What the extension reads, and its dtype; None for a source that it cannot read.

    Raises:
        InputError: a shard whose header does not fit the index (named).
    """
    if type(source) is ShardSource:
        dtype = getattr(torch, source.index["dtype"])
        return (
            ([_shard(source, i) for i in range(len(source.index["shards"]))], dtype)
            if dtype in DTYPES
            else None
        )
    if type(source) is not TensorSource:
        return None
    tensor = source.tensor
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if source.path is not None:
        found = _file(source.path, tensor)
        return None if found is None else ([found], tensor.dtype)
    tensor = tensor.detach()
    return [_bytes(tensor).reshape(len(tensor), -1)], tensor.dtype


def _file(path: Path, tensor: Tensor) -> dict[str, Any] | None:
    """A file with one matrix, which is where its rows end in a .npy, or what the header of a .safetensors says."""
    size = path.stat().st_size
    if path.suffix == ".npy":
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            read(file)
            offset = file.tell()
    else:
        header, start = _header(path)
        names = [name for name, value in header.items() if value.get("shape") == list(tensor.shape)]
        name = "activations" if "activations" in names else names[0] if len(names) == 1 else None
        if name is None:
            return None
        offset = start + header[name]["data_offsets"][0]
    return {"path": str(path), "file_bytes": size, "offset": offset, "rows": len(tensor)}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its tensors begin."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            check(length < 100_000_000, f"{path}: corrupt: a header of {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({error})") from None
    check(isinstance(header, dict), f"{path}: corrupt or not written by saefast (no header)")
    return header, 8 + length


def _shard(source: ShardSource, i: int) -> dict[str, Any]:
    """Shard i, with what `saefast.files.digest` covers."""
    entry = source.index["shards"][i]
    path = source.folder / entry["file"]
    header, start = _header(path)
    try:
        checksum, meta = header.pop("__metadata__")["saefast"].split(" ", 1)
        parts, found, dtype, offset = [], None, None, 0
        for name in sorted(header):
            value = header[name]
            begin, end = value["data_offsets"]
            kind, shape = SAFETENSORS_DTYPES[value["dtype"]], tuple(value["shape"])
            parts.append((f"{name} {kind} {shape}\n".encode(), start + begin, end - begin))
            if name == "activations":
                found, dtype, offset = list(shape), kind, start + begin
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({error!r})") from None
    check(checksum == entry["sha256"], f"{path}: not the shard that {INDEX} lists (its SHA-256 differs)")
    want = ([entry["n_tokens"], source.d_in], f"torch.{source.index['dtype']}")
    fits = (found, str(dtype)) == want
    check(
        fits, f"{path}: expected activations {want[0]} in {want[1]}, as {INDEX} says, got {found} in {dtype}"
    )
    return {
        "path": os.fspath(path), "file_bytes": entry["bytes"], "offset": offset, "rows": entry["n_tokens"],
        "meta": meta, "parts": parts, "sha256": checksum,
    }  # fmt: skip
