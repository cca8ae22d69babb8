"""The shuffle buffer in C++ (`csrc/stream/`).

It gives the same batches as `saefast.activations.buffer.ShuffleBuffer`, bit for bit, and each can restore the state of
the other. This one reads ahead in threads without the GIL, verifies checksums there, and mixes the next batches while
the trainer works.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.buffer import COUNTERS, ShuffleBuffer, counters, row_numbers
from saefast.activations.file_segments import as_bytes, segments_of
from saefast.activations.sources import Source, TensorSource
from saefast.errors import InputError, check


class NativeBuffer(ShuffleBuffer):
    """`ShuffleBuffer` in C++: the same batches, with reading, verification and mixing in its own threads.

    A batch is memory of the extension, which is used again once nothing refers to the batch or to a view of it. The
    threads start with the first batch and end with `close`, or with the last reference. A tensor is not copied: its
    rows go straight into the batches, so it must not change until then.

    Args:
        dtype: of the batches. Rows are written as fp32 while they are gathered; other dtypes are cast afterwards. None
            keeps the dtype of the source.
        readers: threads that read, 1 to 64.
        mixers: threads that draw batches and copy rows into them, 1 to 64. The batches depend neither on them nor on
            the readers.
        ahead: batches that are mixed before they are asked for, 1 or more.
        ring_bytes: memory for reading ahead. A shard is held whole while it is verified, so a shard larger than this
            takes as much as its size.
        direct: read around the page cache (O_DIRECT), where the file system can.
        timeout: seconds without a batch after which the iterator raises.
        segments: what `segments_of(source)` returned, if the caller has it already.

    Raises:
        InputError: sizes that do not fit, a source that the extension cannot read. The iterator raises it for NaN or
            Inf, for a shard that was truncated, altered, deleted or rewritten (the message names it), for a tensor that
            was modified in place, and when there is no batch for `timeout` seconds. The buffer can be saved then, and
            the next iterator tries again.
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
        fits = capacity >= batch_size
        check(fits, f"capacity: expected at least batch_size = {batch_size}, got {capacity}")
        check(1 <= readers <= 64, f"readers: expected 1 to 64, got {readers}")
        check(1 <= mixers <= 64, f"mixers: expected 1 to 64, got {mixers}")
        check(max(batch_size, capacity) < 2**63, f"capacity: expected less than 2**63, got {capacity}")
        check(0 <= seed < 2**64, f"seed: expected 0 to 2**64 - 1, got {seed}")
        check(ahead >= 1, f"ahead: expected 1 or more, got {ahead}")
        found = segments or segments_of(source)
        if found is None:
            kind = type(source).__name__
            raise InputError(f"source: expected a shard folder, file or tensor in memory, got {kind}")
        parts, self.source_dtype = found
        self.source, self.batch_size, self.capacity, self.seed = source, batch_size, capacity, seed
        self.nonfinite, self.timeout = nonfinite, timeout
        self.dtype = dtype or self.source_dtype
        self.widen = self.dtype == torch.float32 != self.source_dtype
        self._tensor: Tensor | None = None  # whose rows are used where they are
        if isinstance(source, TensorSource) and isinstance(parts[0], np.ndarray):
            self._tensor = source.tensor
        self._version = _version(self._tensor)
        rows = {"d_in": source.d_in, "dtype": str(self.source_dtype).removeprefix("torch.")}
        sizes = {"batch": batch_size, "capacity": capacity, "seed": seed, "widen": self.widen}
        threads = {"readers": readers, "mixers": mixers, "ahead": ahead, "skip": nonfinite == "skip"}
        reading = {"ring_bytes": ring_bytes, "chunk_bytes": chunk_bytes, "direct": direct}
        try:
            self._native = self._open(parts, **rows, **sizes, **threads, **reading)
        except MemoryError:
            size = capacity * source.d_in * self.source_dtype.itemsize
            wanted = f"{size / 1e9:.1f} GB of memory for {capacity} rows"
            raise InputError(f"capacity: expected {wanted}, there is less") from None
        except ValueError as error:
            raise InputError(str(error)) from None

    def _open(self, parts: list[Any], **settings: Any) -> Any:
        import saefast._C  # here, because the package works without it

        return saefast._C.stream.ShuffleBuffer(parts, **settings)

    def __iter__(self) -> Iterator[Tensor]:
        while (rows := self._wait(self._native.next)) is not None:
            self._check_unchanged()
            batch = torch.from_numpy(rows).view(torch.float32 if self.widen else self.source_dtype)
            yield batch.to(self.dtype)

    def _check_unchanged(self) -> None:
        same, wanted = (
            _version(self._tensor) == self._version,
            "the tensor unchanged while the buffer reads it",
        )
        check(same, f"source: expected {wanted}, it was modified in place")

    def sample(self, n: int) -> Tensor:
        if self._native.numbers()[
            "batches"
        ]:  # more batches may be mixed already: go back to the last one delivered
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
            wanted = f"a batch within {self.timeout:g} s"
            raise InputError(f"source: expected {wanted}, the readers gave none") from None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        numbers = self._native.numbers()
        return {"row_of": torch.from_numpy(self._native.row_of())}, {name: numbers[name] for name in COUNTERS}

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        row_of = row_numbers(tensors, self.source)
        state = counters(numbers, len(row_of), self.batch_size)
        again = row_of if self._tensor is None else row_of[:0]  # rows in memory are used where they are
        rows = self.source.take(again).to(self.source_dtype).contiguous()
        shape = (len(again), self.source.d_in * self.source_dtype.itemsize)
        self._wait(lambda _: self._native.load(row_of.numpy(), as_bytes(rows).reshape(shape), **state))

    def close(self) -> None:
        """End the threads, at any time and from any thread. The state can still be read."""
        self._native.close()

    def __getattr__(self, name: str) -> Any:
        if name in (*COUNTERS, "held") and "_native" in self.__dict__:
            return self._native.numbers()[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _version(tensor: Tensor | None) -> int:
    """How often torch has written to the tensor in place."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
