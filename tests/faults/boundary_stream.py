"""Calls of `saefast._C.stream` and `NativeBuffer`: right ones, files cut short, states damaged, buffers closed twice."""

import hashlib
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefast import _C
from saefast.activations.buffer import ShuffleBuffer, draw
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.sources import TensorSource
from saefast.errors import InputError
from tests.faults.boundary_calls import Call, Random, normal, same, size, tensor, threads
from tests.faults.boundary_threads import shared, together

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def rows_of(rng: Random, n: int, d_in: int, dtype: str) -> tuple[torch.Tensor, np.ndarray]:
    rows = tensor(normal(rng, n, d_in)).to(DTYPES[dtype])
    return rows, rows.view(torch.uint8).numpy().reshape(n, -1) if rows.numel() else rows.numpy().astype(
        np.uint8
    )


def sha256(rng: Random) -> Call:
    data = rng.bytes(int(rng.integers(0, 300)))

    def verify(got: str) -> None:
        assert got == hashlib.sha256(data).hexdigest()

    return Call("sha256", _C.stream.sha256, {"data": data, "plain": bool(rng.integers(2))}, verify)


def widen(rng: Random) -> Call:
    dtype = str(rng.choice(list(DTYPES)))
    rows, raw = rows_of(rng, 1, max(1, size(rng)), dtype)

    def verify(got: Any) -> None:
        same(got[0], rows[0].float())
        assert got[1] is True

    args = {"row": raw.reshape(-1), "dtype": dtype, "plain": bool(rng.integers(2))}
    return Call("widen", _C.stream.widen, args, verify)


def gather(rng: Random) -> Call:
    dtype, n, wide = str(rng.choice(list(DTYPES))), max(1, size(rng)), bool(rng.integers(2))
    rows, raw = rows_of(rng, n, d_in := max(1, size(rng)), dtype)
    index = rng.integers(0, n, size(rng))
    out = np.empty((len(index), d_in * 4 if wide else raw.shape[1]), np.uint8)
    args = {"rows": raw, "index": index, "out": out, "d_in": d_in, "dtype": dtype, "widen": wide}
    args |= {"threads": threads(rng)}

    def verify(_: None) -> None:
        want = rows[tensor(index)]
        want = want.float() if wide else want
        assert (
            out.tobytes() == want.contiguous().view(torch.uint8).numpy().tobytes() if want.numel() else True
        )

    def run(rows, index, out, **others):
        return _C.stream.gather(rows, index, out, **others)

    return Call(
        "gather", lambda r, i, o, d, t, w, n: run(r, i, o, d_in=d, dtype=t, widen=w, threads=n), args, verify
    )


def drawn(rng: Random) -> Call:
    held = int(rng.integers(1, 200))
    args = {"seed": int(rng.integers(2**62)), "batch": int(rng.integers(100)), "held": held}
    args |= {"n": int(rng.integers(0, held + 1)), "plain": bool(rng.integers(2))}
    return Call("draw", _C.stream.draw, args, lambda got: same(got, draw(*list(args.values())[:4])))


class Folder:
    """A file for the next segment; the folder goes with the process."""

    folder = tempfile.TemporaryDirectory(
        prefix="boundary-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    )
    count = itertools.count()

    @classmethod
    def file(cls) -> Path:
        return Path(cls.folder.name, str(next(cls.count) % 64))


def opened(rng: Random) -> Call:
    """A buffer over memory or a file, opened, read, closed twice and read on; the file may end too soon."""
    dtype, n_rows, d_in = str(rng.choice(list(DTYPES))), max(1, size(rng)), max(1, size(rng))
    rows, raw = rows_of(rng, n_rows, d_in, dtype)
    batch, seed = int(rng.integers(1, n_rows + 1)), int(rng.integers(2**62))
    capacity, cut = batch + int(rng.integers(0, 2 * n_rows)), int(rng.choice([0, 0, 0, 1, raw.nbytes]))
    path = None if rng.random() < 0.3 else Folder.file()
    segment: Any = raw
    if path is not None:
        segment = {"path": str(path), "file_bytes": 4 + raw.nbytes, "offset": 4, "rows": n_rows}
        if rng.random() < 0.5:
            whole = [("x", 4, raw.nbytes)]
            sha = hashlib.sha256(b"meta" + b"x" + raw.tobytes()).hexdigest()
            segment |= {"meta": "meta", "sha256": sha, "parts": whole}
    sizes = {"d_in": d_in, "dtype": dtype, "batch": batch, "capacity": capacity, "seed": seed}
    sizes |= {"widen": False, "skip": False, "readers": threads(rng), "mixers": threads(rng)}
    sizes |= {"ahead": int(rng.integers(1, 4)), "ring_bytes": int(rng.choice([0, 1, 1 << 12]))}
    sizes |= {"chunk_bytes": 64, "direct": bool(rng.integers(2))}
    again = [raw[:0] if path is None else raw[:1], *(0, 0, 0, 0, 0)]
    args = {
        "segments": [segment],
        "cut": cut,
        "timeout": 5.0,
        "n": 2,
        "row_of": np.zeros(1, np.int64),
    } | sizes
    args |= {
        "again": again,
        "at_once": rng.random() < 0.1,
        "load": rng.random() < 0.5,
        "twice": rng.random() < 0.5,
        "through": rng.random() < 0.3,
    }

    def run(segments, cut, timeout, n, row_of, *values):
        *values, again, at_once, load, twice, through = values
        if path is not None:
            path.write_bytes(b"head" + raw.tobytes())
        buffer = _C.stream.ShuffleBuffer(segments, **dict(zip(sizes, values)))
        try:
            if cut and path is not None:
                os.truncate(
                    path, max(0, 4 + raw.nbytes - (cut if isinstance(cut, int) and 0 <= cut < 2**31 else 0))
                )
            passed = buffer.read_through() if through else n_rows
            if path is None or not cut:
                buffer.sample(n, timeout)
            batches = [buffer.next(timeout) for _ in range(3)]
            if at_once:
                together(buffer, timeout)
                return batches, passed
            buffer.numbers(), buffer.row_of()
            if load or not isinstance(again, list):
                names = ("passes", "next_row", "skipped", "batches", "carried")
                buffer.load(row_of, *again[:1], **dict(zip(names, again[1:])))
                buffer.next(timeout)
            return batches, passed
        finally:
            buffer.close()
            if twice:
                buffer.close(), buffer.numbers(), buffer.row_of()

    def verify(got: tuple[list[np.ndarray], int]) -> None:
        plain = iter(ShuffleBuffer(TensorSource(rows), batch, capacity, seed))
        assert got[1] == n_rows
        for one in got[0]:
            assert one.tobytes() == next(plain).contiguous().view(torch.uint8).numpy().tobytes()

    return Call("ShuffleBuffer", run, args, verify if not cut else ends_too_soon)


def ends_too_soon(_: Any) -> None:
    """A file cut short may be refused or have been read before; memory has no end to cut."""


def state(rng: Random) -> Call:
    """NativeBuffer: some batches, a state taken from it and given back, damaged or not."""
    rows, _ = rows_of(rng, n := max(1, size(rng)), max(1, size(rng)), "float32")
    batch = int(rng.integers(1, n + 1))
    args = {
        "batch_size": batch,
        "capacity": batch + int(rng.integers(0, n)),
        "seed": int(rng.integers(2**62)),
    }

    def run(batch_size, capacity, seed, tensors=None, numbers=None):
        try:
            buffer = NativeBuffer(TensorSource(rows), batch_size, capacity, seed, timeout=5.0)
        except ValueError as error:
            assert isinstance(error, InputError), error
            raise
        try:
            batches = iter(buffer)
            next(batches)
            kept = buffer.state_dict()
            first = next(batches).clone()
            is_damaged = tensors is not None
            if is_damaged:
                kept = ({"row_of": torch.from_numpy(tensors)}, numbers)
            buffer.load_state_dict(*kept)
            return first, next(iter(buffer)).clone(), is_damaged
        finally:
            buffer.close(), buffer.close()

    if rng.random() < 0.5:
        numbers = {"batches": 1, "passes": 0, "next_row": min(n, batch), "skipped": 0, "carried": 0}
        args |= {"tensors": rng.integers(0, n, min(n, batch)), "numbers": numbers}

    def verify(got: Any) -> None:
        first, second, is_damaged = got
        assert is_damaged or torch.equal(first, second)

    return Call("NativeBuffer", run, args, verify if len(args) == 3 else ends_too_soon)


KINDS = {sha256: 2, widen: 4, gather: 4, drawn: 4, opened: 0.75, state: 0.25, shared: 0.25}
