"""Makes Triton's interpreter refuse what fails on a GPU, and compute bf16 as one does. `install()` before any launch.

The interpreter runs one program after another on NumPy arrays, so most of what goes wrong on a GPU goes right in it:

    bounds   an access outside of every tensor that the launch was given
    races    a program that touches what another program of the launch writes (atomics among themselves may), or a
             store of two values to one place
    order    programs, and the lanes of an atomic, come in a random order, the same in every run
    rereads  a program that reads back or overwrites what it wrote: on a GPU its threads must hold the same places both
             times or meet in between. Refused but for the kernels in REREADS, whose layouts compile_gate.py looks at
    hints    `tl.multiple_of` that is not so; the vector access made of it is misaligned, a fault
    bf16     rounded to nearest, in arithmetic and `tl.dot` too, where Triton 3.6 computes with the bit patterns
    tf32     operands cut to 10 bits of mantissa, where Triton 3.6 keeps all

Not seen: shared memory and barriers, which are the compiler's, and overflow of 32 bits (compile_gate.py looks for it).
"""

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

REREADS = {"_update_kernel"}
NOBODY, ATOMIC, MANY = 0, -1, -2  # else a program's number plus 1


class Fault(Exception):
    """What a GPU would not have done, or done otherwise in another run."""


def tensors_in(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, tuple):
        for part in argument:
            yield from tensors_in(part)
    elif isinstance(getattr(argument, "base", None), Tensor) and hasattr(argument, "block_shape"):
        yield argument.base  # of a descriptor
    elif isinstance(argument, Tensor):
        yield argument


def extent(tensor: Tensor) -> int:
    """Bytes from its first element to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Launch:
    """Who has written and read which byte of the tensors of a launch; of an element only its first byte counts."""

    def __init__(self, kernel: str, arguments: Any) -> None:
        spans: list[list[int]] = []
        for begin, end in sorted(
            (t.data_ptr(), t.data_ptr() + extent(t)) for t in tensors_in(arguments) if t.numel()
        ):
            if spans and begin <= spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([begin, end])
        self.kernel, self.me = kernel, 1
        self.begins, self.ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        self.places = np.cumsum(self.ends - self.begins) - self.ends  # of the byte at address 0
        size = int((self.ends - self.begins).sum())
        self.writer, self.reader = (np.zeros(size, dtype=np.int32) for _ in range(2))

    def fault(self, what: str) -> Fault:
        return Fault(f"{self.kernel}, program {self.me - 1}: {what}")

    def locate(self, pointers: np.ndarray, itemsize: int) -> np.ndarray:
        addresses = pointers.astype(np.int64)
        span = np.searchsorted(self.begins, addresses, side="right") - 1
        if not ((span >= 0) & (addresses + itemsize <= self.ends[span])).all():
            raise self.fault("an access outside of the tensors that it was given")
        return addresses + self.places[span]

    def check(self, places: np.ndarray, allowed: int, who: np.ndarray, what: str) -> None:
        found = who[places]
        if ((found != NOBODY) & (found != allowed)).any():
            raise self.fault(f"{what} in the same launch")

    def reread(self, places: np.ndarray, what: str) -> None:
        if self.kernel not in REREADS and (self.writer[places] == self.me).any():
            raise self.fault(f"it {what} what it wrote")

    def load(self, pointers: np.ndarray, itemsize: int) -> None:
        places = self.locate(pointers, itemsize)
        self.check(places, self.me, self.writer, "it reads what another program writes")
        self.reread(places, "reads back")
        found = self.reader[places]
        self.reader[places] = np.where((found == NOBODY) | (found == self.me), self.me, MANY)

    def store(self, pointers: np.ndarray, values: np.ndarray, itemsize: int) -> None:
        places = self.locate(pointers, itemsize)
        self.check(places, self.me, self.writer, "it writes what another program writes")
        self.check(places, self.me, self.reader, "it writes what another program reads")
        self.reread(places, "overwrites")
        first, which = np.unique(places, return_index=True)
        if len(first) < len(places):
            one = values[which][np.searchsorted(first, places)]
            if not ((one == values) | (one != one)).all():  # noqa: PLR0124  NaN
                raise self.fault("it stores different values to one place")
        self.writer[places] = self.me

    def atomic(self, pointers: np.ndarray, itemsize: int) -> None:
        places = self.locate(pointers, itemsize)
        self.check(places, ATOMIC, self.writer, "an atomic and a write of one place")
        self.check(places, NOBODY, self.reader, "an atomic and a read of one place")
        self.writer[places] = ATOMIC


def rounded_to_bf16(values: np.ndarray) -> np.ndarray:
    """The bits; halves to even, as GPUs round."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, np.uint32(0x7FFF), nearest).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def install() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_strict"):
        interpreter._strict = True
        _count_with_scalars(interpreter)
        _watch_memory(interpreter)
        _compute_tf32(interpreter)
        _compute_bf16(interpreter)


def _count_with_scalars(interpreter: Any) -> None:
    """A loop up to a number of the kernel's, which NumPy 2.4 and newer does not take from an array of one element."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _watch_memory(interpreter: Any) -> None:
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    run, set_grid_dim, set_grid_idx = executor.__call__, builder.set_grid_dim, builder.set_grid_idx
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    current: list[Launch] = []
    order: list[np.ndarray] = []

    def size_of(pointers: Any) -> int:
        return max(1, pointers.get_element_ty().primitive_bitwidth // 8)

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        current.append(Launch(self.fn.__name__, (*args, *kwargs.values())))
        try:
            run(self, *args, **kwargs)
        finally:
            current.pop()

    def shuffle(self: Any, *size: int) -> None:
        set_grid_dim(self, *size)
        seed = zlib.crc32(f"{current[-1].kernel} {size}".encode())
        order[:] = [np.random.default_rng(seed).permutation(int(np.prod(size)))]

    def place(self: Any, *index: int) -> None:
        nth = int(order[0][np.ravel_multi_index(index, self.grid_dim)])
        current[-1].me = nth + 1
        set_grid_idx(self, *map(int, np.unravel_index(nth, self.grid_dim)))

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        wanted = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        if wanted.any():
            current[-1].load(pointers.data[wanted], size_of(pointers))
        return load(self, pointers, mask, *rest, **options)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        wanted = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        if wanted.any():
            values = np.broadcast_to(value.data, pointers.data.shape)[wanted]
            current[-1].store(pointers.data[wanted], values, size_of(pointers))
        return store(self, pointers, value, mask, *rest)

    def atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        shape = pointers.data.shape
        wanted = np.broadcast_to(mask.data, shape).astype(bool)
        if wanted.any():
            current[-1].atomic(pointers.data[wanted], size_of(pointers))
        lanes = np.random.default_rng(0).permutation(pointers.data.size)
        mixed = [
            interpreter.TensorHandle(np.broadcast_to(handle.data, shape).ravel()[lanes], handle.dtype)
            for handle in (pointers, value, mask)
        ]
        found = atomic(self, op, *mixed, *rest)
        back = np.empty_like(found.data)
        back[lanes] = found.data
        return interpreter.TensorHandle(back.reshape(shape), found.dtype)

    def set_attribute(self: Any, name: str, values: Any) -> None:
        if name == "tt.divisibility":
            steps = tuple(slice(None, None, int(value)) for value in values)
            data = np.asarray(self.data)
            some = data[steps] if data.ndim == len(steps) else data
            if (some % max(int(value) for value in values)).any():
                raise Fault(f"tl.multiple_of({values}): {some.ravel()[:4]} are not")
        self.attr[name] = values

    executor.__call__, interpreter.TensorHandle.set_attr = call, set_attribute
    builder.set_grid_dim, builder.set_grid_idx = shuffle, place
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw = atomic_rmw


def _compute_bf16(interpreter: Any) -> None:
    builder, Handle, bf16 = interpreter.InterpreterBuilder, interpreter.TensorHandle, interpreter.tl.bfloat16
    rtz = interpreter._ir.ROUNDING_MODE.RTZ
    cast, convert, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot
    builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)

    def is_bf16(handle: Any) -> bool:
        return isinstance(handle, Handle) and handle.dtype.scalar == bf16

    def widened(handle: Any) -> Any:
        return Handle(from_bf16(handle.data), interpreter.tl.float32) if is_bf16(handle) else handle

    def through_fp32(method: Callable[..., Any]) -> Callable[..., Any]:
        """The same in fp32, and what is of a float's type rounded."""

        def run(self: Any, *args: Any) -> Any:
            if not any(map(is_bf16, args)):
                return method(self, *args)
            found = method(self, *map(widened, args))
            if found.data.dtype == np.float32:
                return Handle(rounded_to_bf16(found.data), bf16)
            return found

        return run

    def ternary(self: Any, first: Any, second: Any, third: Any, op: Callable[..., Any]) -> Any:
        return (on_bits if op is np.where else in_fp32)(self, first, second, third, op)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        source = widened(source)
        if to.scalar != bf16:
            return cast(self, source, to)
        return Handle(rounded_to_bf16(source.data), bf16)

    def fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        if to.scalar == bf16 and rounding != rtz:
            return cast_impl(self, source, to)
        return convert(self, source, to, rounding)

    on_bits, in_fp32 = builder.ternary_op, through_fp32(builder.ternary_op)
    for name in ("binary_op", "unary_op", "create_fma"):
        setattr(builder, name, through_fp32(getattr(builder, name)))
    builder.ternary_op, builder.cast_impl, builder.create_fp_to_fp = ternary, cast_impl, fp_to_fp
    builder.get_bf16 = lambda self, value: Handle(rounded_to_bf16(np.array([value])), bf16)


def _compute_tf32(interpreter: Any) -> None:
    dot, tf32 = interpreter.InterpreterBuilder.create_dot, interpreter._ir.INPUT_PRECISION.TF32

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if precision == tf32 and a.data.dtype == np.float32:
            a, b = (
                interpreter.TensorHandle(
                    (side.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), side.dtype
                )
                for side in (a, b)
            )
        return dot(self, a, b, d, precision, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
