"""The buffer in C++ against the one in PyTorch: the same batches, the same states, the same errors."""

import gc
import importlib
import multiprocessing
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_buffer, open_source
from saefast.activations.shards import ShardSource
from saefast.activations.sources import IterableSource, TensorSource
from saefast.errors import InputError
from tests.helpers.batches import numbered, same, take, wait_for, write

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
stream = importlib.import_module("saefast._C").stream
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize(
    "n,batch_size,capacity", [(200, 16, 64), (200, 1, 1), (200, 64, 64), (50, 40, 500), (7, 20, 30)]
)
def test_batches_equal_those_of_the_buffer_in_pytorch(tmp_path, dtype, contexts, n, batch_size, capacity):
    source = write(tmp_path / "acts", torch.randn(n, 12), dtype, contexts=contexts)
    sizes = (source, batch_size, capacity, 7)
    want = take(ShuffleBuffer(*sizes), 60)
    for options in ({}, {"readers": 5, "ahead": 4, "chunk_bytes": 100, "ring_bytes": 1}, {"direct": True}):
        buffer = open_buffer(*sizes, **options)
        assert type(buffer) is NativeBuffer
        same(take(buffer, 60), want)
        buffer.close()
    same(take(NativeBuffer(*sizes, dtype=torch.float32), 60), [x.float() for x in want])


def test_npy_safetensors_and_memory(tmp_path):
    rows = torch.randn(150, 6)
    np.save(tmp_path / "x.npy", rows.numpy())
    np.save(tmp_path / "x64.npy", rows.double().numpy())
    write(tmp_path / "acts", rows, shard_tokens=150)
    want = take(ShuffleBuffer(TensorSource(rows), 16, 50), 30)
    for source in (
        TensorSource(rows),
        open_source(tmp_path / "x.npy"),
        open_source(tmp_path / "acts" / "shard-00000.safetensors"),
    ):
        same(take(open_buffer(source, 16, 50), 30), want)
    same(take(open_buffer(open_source(tmp_path / "x64.npy"), 16, 50, dtype=torch.float32), 30), want)
    same(take(open_buffer(open_source(tmp_path / "x64.npy"), 16, 50), 30), [x.double() for x in want])
    assert type(open_buffer(IterableSource([rows], 6), 16, 50)) is ShuffleBuffer
    assert type(open_buffer(TensorSource(rows.T), 16, 50)) is ShuffleBuffer  # not row after row


def test_every_row_once_per_pass(tmp_path):
    source = write(tmp_path / "acts", numbered(1000), shard_tokens=130)
    for _ in range(3):
        drawn = torch.cat(take(NativeBuffer(source, 10, 200), 300))[:, 0]
        for i in range(3):
            assert sorted(drawn[1000 * i : 1000 * (i + 1)].tolist()) == list(range(1000))


@pytest.mark.each_value
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 11, 12, 13, 30])
def test_each_resumes_the_other(tmp_path, stop, nonfinite):
    rows = numbered(100)
    if nonfinite == "skip":
        rows[[3, 36, 37, 99]] = float("nan")
    source = write(tmp_path / "acts", rows)
    sizes = (source, 8, 32, 3, nonfinite)
    whole = ShuffleBuffer(*sizes)
    want = take(whole, 50)
    for first_kind in (ShuffleBuffer, NativeBuffer):
        for second_kind in (ShuffleBuffer, NativeBuffer):
            first, second = first_kind(*sizes), second_kind(*sizes)
            first.sample(1)
            drawn = take(first, stop)
            if first_kind is NativeBuffer:
                time.sleep(0.01)  # batches are mixed ahead: the state is that of the last one delivered
            second.load_state_dict(*first.state_dict())
            first.close()
            same(drawn + take(second, 50 - stop), want)
            assert (second.passes, second.skipped) == (whole.passes, whole.skipped)


def test_sample_gives_the_rows_held_and_takes_none():
    a, b = ShuffleBuffer(TensorSource(numbered(100)), 8, 32), NativeBuffer(TensorSource(numbered(100)), 8, 32)
    assert torch.equal(a.sample(20), b.sample(20)) and torch.equal(a.sample(99), b.sample(99))
    same(take(a, 5), take(b, 5))
    assert torch.equal(a.sample(99), b.sample(99))
    same(take(a, 5), take(b, 5))


def test_nan_stops_where_the_other_stops_and_can_be_saved(tmp_path):
    rows = numbered(100)
    rows[71, 1] = float("nan")
    source = write(tmp_path / "acts", rows)
    n, states = [], []
    for kind in (ShuffleBuffer, NativeBuffer):
        buffer = kind(source, 8, 32)
        n.append(0)
        with pytest.raises(InputError, match="source: row 71 holds NaN or Inf"):
            for _ in buffer:
                n[-1] += 1
        states.append(buffer.state_dict())
        with pytest.raises(InputError, match="source: row 71 holds NaN or Inf"):  # and again
            next(iter(buffer))
    assert n[0] == n[1] > 3
    assert torch.equal(states[0][0]["row_of"], states[1][0]["row_of"]) and states[0][1] == states[1][1]


def test_no_finite_row():
    source = TensorSource(torch.full((5, 2), float("nan")))
    with pytest.raises(InputError, match="source: expected at least one finite row"):
        NativeBuffer(source, 2, 4, nonfinite="skip").sample(1)
    assert list(NativeBuffer(source, 2, 4, nonfinite="skip")) == []


@pytest.mark.parametrize("damage", ["bit", "truncated", "deleted", "context", "rewritten"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    """The rows before it are delivered; the error comes in `next`, not as a hang or a crash."""
    source = write(tmp_path / "acts", numbered(400, 8), contexts=True)
    buffer = NativeBuffer(source, 8, 32, ring_bytes=1, readers=1)
    path = tmp_path / "acts" / "shard-00007.safetensors"
    data = bytearray(path.read_bytes())
    batches = iter(buffer)
    if damage == "rewritten":
        for _ in range(60):  # verified in the first pass
            next(batches)
    next(batches)
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[-5 if damage == "bit" else len(data) - 700] ^= 1
        path.write_bytes(data)
    want = {"truncated": "bytes, found", "deleted": "found none", "rewritten": "expected it unchanged"}
    with pytest.raises(InputError, match=f"shard-00007.*{want.get(damage, 'corrupt: expected SHA-256')}"):
        for _ in batches:
            pass
    n = buffer.batches
    assert n >= 1
    path.write_bytes(data)
    if damage == "truncated":  # repaired: it goes on where it was
        next(iter(buffer))
        assert buffer.batches == n + 1


def test_a_shard_of_another_width_or_dtype_is_named_at_once(tmp_path):
    source = write(tmp_path / "a", numbered(60, 8))
    shard = tmp_path / "a" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"F32"', b'"I32"'))  # of the same size
    with pytest.raises(InputError, match="shard-00001.*expected activations"):
        open_buffer(source, 8, 32)
    write(tmp_path / "b", numbered(60, 4), torch.float32)
    write(tmp_path / "c", numbered(60, 8), torch.float16)
    for other in "bc":
        (tmp_path / "a" / "shard-00001.safetensors").write_bytes(
            (tmp_path / other / "shard-00001.safetensors").read_bytes()
        )
        with pytest.raises(InputError, match="shard-00001.*expected 968 bytes"):
            ShardSource(tmp_path / "a")
        shutil.rmtree(tmp_path / "a")
        source = write(tmp_path / "a", numbered(60, 8))


def test_bad_sizes():
    source = TensorSource(numbered(100))
    for message, options in (
        ("capacity: expected at least batch_size = 65", {"batch_size": 65}),
        ("batch_size: expected", {"batch_size": 0}),
        ("readers: expected 1 to 64, got 65", {"readers": 65}),
        ("mixers: expected 1 to 64, got 0", {"mixers": 0}),
        ("ahead: expected", {"ahead": 0}),
    ):
        with pytest.raises(InputError, match=message):
            NativeBuffer(source, **({"batch_size": 8, "capacity": 64} | options))
    with pytest.raises(InputError, match="closed"):
        buffer = NativeBuffer(source, 8, 64)
        buffer.close()
        next(iter(buffer))


def test_a_reader_that_never_answers_times_out(tmp_path):
    """A named pipe blocks its reader forever: `next` raises after the timeout."""
    rows = np.zeros((64, 4), np.float32)
    np.save(tmp_path / "x.npy", rows)
    source = open_source(tmp_path / "x.npy")
    buffer = NativeBuffer(source, 8, 32, timeout=0.3)
    (tmp_path / "x.npy").unlink()
    os.mkfifo(tmp_path / "x.npy")
    begin = time.perf_counter()
    with pytest.raises(InputError, match=r"expected a batch within 0.3 s"):
        next(iter(buffer))
    assert time.perf_counter() - begin < 60  # and not the 600 s that are the default
    threading.Timer(0.2, lambda: os.close(os.open(tmp_path / "x.npy", os.O_WRONLY))).start()
    buffer.close()


def test_batches_outlive_the_buffer_and_are_not_written_again(tmp_path):
    buffer = NativeBuffer(write(tmp_path / "acts", numbered(500)), 8, 32)
    batches = iter(buffer)
    kept = [next(batches) for _ in range(30)]
    views = [next(batches)[2:4, 0] for _ in range(5)]
    copies = [x.clone() for x in kept + views]
    for _ in range(100):
        next(batches)
    buffer.close()
    del buffer, batches
    same(kept + views, copies)


def threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.slow
def test_a_thousand_buffers_leave_nothing_behind(tmp_path):
    source = write(tmp_path / "acts", numbered(300, 16))
    gc.collect()  # what other tests left
    before, files = threads(), len(os.listdir("/proc/self/fd"))
    sizes = []
    for i in range(1000):
        buffer = NativeBuffer(source, 8, 64)
        batches = iter(buffer)
        for _ in range(i % 4):
            next(batches)
        if i % 2:
            buffer.close()
        del buffer, batches
        if i in (300, 999):
            with open("/proc/self/statm") as file:
                sizes.append(int(file.read().split()[1]) * 4096)
    wait_for(lambda: threads() <= before)  # one that was joined is listed for a moment more
    assert len(os.listdir("/proc/self/fd")) <= files
    assert sizes[1] - sizes[0] < 8 << 20


def test_a_forked_process_is_told(tmp_path):
    buffer = NativeBuffer(write(tmp_path / "acts", numbered(300)), 8, 64)
    next(iter(buffer))

    def child(connection):
        try:
            next(iter(buffer))
        except InputError as error:
            connection.send(str(error))

    receive, send = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(send,))
    process.start()
    assert receive.poll(30) and "forked" in receive.recv()
    process.join(30)
    assert process.exitcode == 0
    next(iter(buffer))


def test_memory_of_reading_ahead_is_bounded(tmp_path):
    """The consumer stops: the readers stop too."""
    rows = torch.zeros(40_000, 256)
    source = write(tmp_path / "acts", rows, shard_tokens=1000)  # 1 MB each
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * 4096
    buffer = NativeBuffer(source, 8, 64, ring_bytes=4 << 20)
    next(iter(buffer))
    time.sleep(0.3)
    with open("/proc/self/statm") as file:
        assert int(file.read().split()[1]) * 4096 - before < 24 << 20
    buffer.close()
