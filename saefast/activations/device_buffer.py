"""The shuffle buffer in GPU memory (`csrc/cuda/`), which `saefast.activations.open.open_buffer` uses where it can.

`NativeBuffer` reads, verifies and draws, so batches and states are the same, bit for bit. For each batch, only the rows
that enter the buffer are copied to the GPU, from pinned memory and on a separate stream. One kernel then swaps them with
the rows that leave, which it converts to the dtype of the batches.
"""

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saefast.activations.buffer import counters, row_numbers
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.sources import Source
from saefast.errors import InputError, check

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of rows and of batches
PIECE = 65_536  # rows that `load_state_dict` reads at a time


class DeviceBuffer(NativeBuffer):
    """`NativeBuffer` with its rows and its batches on a GPU.

    Args:
        dtype: of the batches: fp16, bf16 or fp32. None: the source's.
        device: CUDA device of rows and batches.
        b_dec: [d_in] fp32 on `device`, subtracted from every row in fp32, with the values it has when the batch is taken.
        ahead: batches that may be on their way to the GPU, 1 or more.

    Raises:
        InputError: rows or batches of another dtype; the device cannot be used.
        torch.OutOfMemoryError: `device_bytes` are not free.
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
        device: torch.device | str = "cuda",
        b_dec: Tensor | None = None,
        ahead: int = 4,
        **options: Any,
    ) -> None:
        self.device, self.b_dec = torch.device(device), b_dec
        self._module = load_module()
        super().__init__(source, batch_size, capacity, seed, nonfinite, dtype, ahead=ahead, **options)

    def _open(self, parts: list[Any], **settings: Any) -> Any:
        for name, kind in (("source", self.source_dtype), ("dtype", self.dtype)):
            check(kind in DTYPES, f"{name}: expected fp16, bf16 or fp32 on a GPU, got {kind}")
        if self.b_dec is not None:
            b_dec, shape = self.b_dec, (self.source.d_in,)
            fits = b_dec.shape == shape and b_dec.dtype == torch.float32 and b_dec.is_contiguous()
            check(fits, f"b_dec: expected {list(shape)} in fp32, got {list(b_dec.shape)} in {b_dec.dtype}")
        sizes = self.batch_size, self.capacity, settings["ahead"]
        sizes_in_bytes = device_bytes(self.source, self.source_dtype, *sizes)
        memory = [torch.empty(n, dtype=torch.uint8, device=self.device) for n in sizes_in_bytes]
        self._places = memory[0]
        places, staging = ((tensor.data_ptr(), len(tensor)) for tensor in memory)
        del settings["widen"]
        index = self.device.index if self.device.index is not None else self._current_device()
        settings |= {"device": index, "places": places, "staging": staging, "memory": tuple(memory)}
        return self._module.DeviceBuffer(parts, **settings)

    def _current_device(self) -> int:
        return torch.cuda.current_device()

    def _handle(self) -> int:
        """Handle of the CUDA stream on which the caller works."""
        return torch.cuda.current_stream(self.device).cuda_stream

    def __iter__(self) -> Iterator[Tensor]:
        shape = self.batch_size, self.source.d_in
        while True:
            batch = torch.empty(shape, dtype=self.dtype, device=self.device)
            b_dec = 0 if self.b_dec is None else self.b_dec.data_ptr()
            dtype = str(self.dtype).removeprefix("torch.")
            into = batch.data_ptr(), list(shape), dtype, b_dec, self._handle()
            if not self._wait(partial(self._native.next, *into)):
                return
            self._check_unchanged()
            yield batch

    def _rows(self, begin: int, end: int) -> Tensor:
        """A view of the rows in places `begin` to `end`, [end - begin, d_in]."""
        size = self.source.d_in * self.source_dtype.itemsize
        return self._places[begin * size : end * size].view(self.source_dtype).view(-1, self.source.d_in)

    def sample(self, n: int) -> Tensor:
        if self._native.numbers()["batches"]:  # as `NativeBuffer.sample`
            self.load_state_dict(*self.state_dict())
        held = self._wait(lambda timeout: self._native.fill(self._handle(), timeout))
        if held == 0:
            raise InputError("source: expected at least one finite row, got none")
        return self._rows(0, min(n, held)).clone()

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        row_of = row_numbers(tensors, self.source)
        state = counters(numbers, len(row_of), self.batch_size)
        n, most = len(row_of), self._places.numel() // (self.source.d_in * self.source_dtype.itemsize)
        check(n <= most, f"row_of: expected the state of a buffer of at most {most} rows, got {n}")
        self._native.pause(self._handle())
        try:
            for i in range(0, n, PIECE):
                rows = self.source.take(row_of[i : i + PIECE])
                self._rows(i, min(n, i + PIECE)).copy_(rows)
            self._wait(lambda _: self._native.load(row_of.numpy(), self._handle(), **state))
        except BaseException:
            self.close()  # the rows no longer fit the state
            raise


def load_module() -> ModuleType:
    """saefast._cuda, imported on first use.

    Raises:
        ImportError: it is not built, because there was no nvcc.
    """
    import saefast._cuda

    return saefast._cuda


def device_bytes(
    source: Source, dtype: torch.dtype, batch_size: int, capacity: int, ahead: int = 4
) -> tuple[int, int]:
    """Bytes on the GPU for the rows that the buffer holds, and for those on their way to it."""
    row = source.d_in * dtype.itemsize
    stage = load_module().stage_bytes(batch_size, row)
    return min(capacity, len(source) + batch_size) * row, (ahead + 1) * stage  # type: ignore[arg-type]


def open_on(
    device: torch.device,
    reserve: int,
    source: Source,
    batch_size: int,
    capacity: int,
    seed: int,
    nonfinite: str,
    dtype: torch.dtype | None,
    segments: tuple[list[Any], torch.dtype],
    **options: Any,
) -> DeviceBuffer | str:
    """The buffer on `device`, or the reason why it cannot be there.

    reserve: bytes of its memory that must stay free. segments: of `segments_of(source)`.
    """
    try:
        module = load_module()
    except ImportError as error:
        return f"saefast._cuda is not built ({error})"
    index = device.index if device.index is not None else torch.cuda.current_device()
    if reason := module.unusable(index):
        return str(reason)
    kinds = segments[1], dtype or segments[1]
    if not set(kinds) <= set(DTYPES):
        return f"its kernel takes fp16, bf16 and fp32, not {kinds[0]} to {kinds[1]}"
    needed = sum(device_bytes(source, segments[1], batch_size, capacity, options.get("ahead", 4)))
    free = torch.cuda.mem_get_info(device)[0]
    too_little = (
        f"its {capacity} rows need {needed / 1e9:.2f} GB of GPU memory beside {reserve / 1e9:.2f} GB for training, "
        f"{free / 1e9:.2f} GB are free; fewer rows: buffer_tokens (--buffer-tokens)"
    )
    sizes = source, batch_size, capacity, seed, nonfinite
    if needed + reserve > free:
        return too_little
    try:
        return DeviceBuffer(*sizes, dtype, device=device, segments=segments, **options)
    except torch.OutOfMemoryError:
        return too_little
