"""The buffer on a device, over the fake of tests/helpers/fake_device.py: the same batches, states and errors as the others.

What only a GPU can show is in test_gpu_stream.py; threads and order under sanitizers in native/cuda_check.cpp.
"""

import gc
import logging
import shutil
import sys
import time

import numpy as np
import pytest
import torch

from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.activations import device_buffer
from saefast.activations import open as opening
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_buffer, open_source
from saefast.activations.sources import IterableSource, TensorSource
from saefast.errors import InputError
from tests.helpers import fake_device
from tests.helpers.batches import numbered, same, take, write

if shutil.which("g++") is None:
    pytest.skip("needs g++", allow_module_level=True)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """-> the functions of the fake; nothing may be left of it after a test."""
    module, library = fake_device.build()
    monkeypatch.setattr(device_buffer, "load_module", lambda: module)
    library.fake_delay(200)
    yield library
    library.fake_fail(None, 0)
    library.cudaDeviceSynchronize()
    gc.collect()  # what the frames of an exception hold
    assert library.fake_alive() == 0


Buffer = fake_device.FakeDeviceBuffer


@pytest.mark.each_value
@pytest.mark.parametrize("row_type", DTYPES)
@pytest.mark.parametrize("d_in", [16, 12])
@pytest.mark.parametrize(
    "n,batch_size,capacity", [(200, 16, 64), (200, 1, 1), (200, 64, 64), (50, 40, 500), (7, 20, 30)]
)
def test_batches_equal_those_of_the_buffer_in_pytorch(tmp_path, row_type, d_in, n, batch_size, capacity):
    source = write(tmp_path / "acts", torch.randn(n, d_in).to(row_type))
    sizes = (source, batch_size, capacity, 7)
    want = take(ShuffleBuffer(*sizes), 40)
    for dtype in (None, *DTYPES):
        same(take(Buffer(*sizes, dtype=dtype), 40), [x.to(dtype or row_type) for x in want])
    same(take(Buffer(*sizes, readers=4, mixers=3, ahead=1, chunk_bytes=100, ring_bytes=1), 40), want)


def test_streams_that_do_not_wait_for_each_other_are_noticed(fake, monkeypatch):
    """That the fake can show what events are for."""
    monkeypatch.setattr(
        torch, "empty", torch.zeros
    )  # places that did not arrive yet are 0, not anywhere in memory
    sizes = TensorSource(torch.randn(300, 16)), 16, 64
    want = take(ShuffleBuffer(*sizes), 60)
    fake.fake_ignore_waits(1)
    try:
        got = take(Buffer(*sizes), 60)
    finally:
        fake.fake_ignore_waits(0)
    assert not all(torch.equal(x, y) for x, y in zip(got, want))


@pytest.mark.parametrize("row_type", DTYPES)
def test_b_dec_is_subtracted_in_fp32(row_type):
    rows, b_dec = torch.randn(100, 16).to(row_type), torch.randn(16)
    want = take(ShuffleBuffer(TensorSource(rows), 8, 32), 30)
    for dtype in DTYPES:
        got = take(Buffer(TensorSource(rows), 8, 32, dtype=dtype, b_dec=b_dec), 30)
        same(got, [(x.float() - b_dec).to(dtype) for x in want])


def test_every_half_and_every_rounding():
    """All finite fp16 numbers, and fp32 numbers around every point where rounding to 16 bits changes."""
    half = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    half = half[half.isfinite()]
    middles = (half.float() + half.float().nextafter(torch.tensor(torch.inf))) / 2
    finest = torch.arange(0, 2**31 - 2**24, 4099, dtype=torch.int64).to(torch.int32).view(torch.float32)
    finest = torch.cat(
        [finest, -finest, half.float() * (1 + 2**-11), middles, torch.tensor([65519.9, 65520, 1e38])]
    )
    for numbers in (half, half.to(torch.bfloat16), finest[finest.isfinite()]):
        rows = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 8)]).view(-1, 8)
        n = len(rows) - len(rows) % 8
        for dtype in DTYPES:
            got = torch.cat(take(Buffer(TensorSource(rows[:n]), n, n, dtype=dtype), 1))
            want = torch.cat(take(ShuffleBuffer(TensorSource(rows[:n]), n, n), 1)).to(dtype)
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), dtype  # -0 too


def test_npy_and_every_row_once_per_pass(tmp_path):
    np.save(tmp_path / "x.npy", numbered(1000).numpy())
    drawn = torch.cat(take(Buffer(open_source(tmp_path / "x.npy"), 10, 200), 300))[:, 0]
    for i in range(3):
        assert sorted(drawn[1000 * i : 1000 * (i + 1)].tolist()) == list(range(1000))


@pytest.mark.each_value
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 11, 12, 13, 30])
def test_each_resumes_the_other(tmp_path, stop, nonfinite):
    rows = numbered(100)
    if nonfinite == "skip":
        rows[[3, 36, 37, 99]] = float("nan")
    sizes = (write(tmp_path / "acts", rows), 8, 32, 3, nonfinite)
    whole = ShuffleBuffer(*sizes)
    want = take(whole, 50)
    for kinds in ((Buffer, NativeBuffer), (NativeBuffer, Buffer), (Buffer, Buffer), (ShuffleBuffer, Buffer)):
        first, second = (kind(*sizes) for kind in kinds)
        first.sample(1)
        drawn = take(first, stop)
        time.sleep(0.01)  # batches are on their way: the state is that of the last one delivered
        second.load_state_dict(*first.state_dict())
        first.close()
        same(drawn + take(second, 50 - stop), want)
        assert (second.passes, second.skipped) == (whole.passes, whole.skipped)


def test_sample_gives_the_rows_held_and_takes_none():
    a, b = (kind(TensorSource(numbered(100)), 8, 32) for kind in (ShuffleBuffer, Buffer))
    assert torch.equal(a.sample(20), b.sample(20)) and torch.equal(a.sample(99), b.sample(99))
    same(take(b, 5), take(a, 5))
    with pytest.raises(InputError, match="at least one finite row"):
        Buffer(TensorSource(torch.full((5, 2), float("nan"))), 2, 4, nonfinite="skip").sample(1)


def test_nan_and_damage_come_from_next_and_it_can_be_saved(tmp_path):
    rows = numbered(100)
    rows[71, 1] = float("nan")
    buffer, other = (kind(write(tmp_path / kind.__name__, rows), 8, 32) for kind in (Buffer, ShuffleBuffer))
    for _ in range(2):  # and again
        for some in (buffer, other):
            with pytest.raises(InputError, match="source: row 71 holds NaN or Inf"):
                for _ in some:
                    pass
    (tensors, numbers), (want, want_numbers) = buffer.state_dict(), other.state_dict()
    assert (
        torch.equal(tensors["row_of"], want["row_of"]) and numbers == want_numbers and numbers["batches"] > 3
    )
    source = write(tmp_path / "damaged", numbered(400, 8))
    buffer = Buffer(source, 8, 32, ring_bytes=1, readers=1)
    next(batches := iter(buffer))
    (tmp_path / "damaged" / "shard-00007.safetensors").unlink()
    with pytest.raises(InputError, match="shard-00007.*found none"):
        for _ in batches:
            pass
    assert buffer.batches >= 1


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaHostAlloc", "launch"])
def test_a_failing_device_is_an_error_not_a_hang(fake, function):
    buffer = Buffer(TensorSource(numbered(300)), 8, 64)
    fake.fake_fail(function.encode(), 1 if function == "cudaHostAlloc" else 4)
    with pytest.raises(RuntimeError, match="CUDA: "):
        take(buffer, 50)
    buffer.state_dict()
    buffer.close()


def test_timeout_close_and_bad_input(fake):
    slow = Buffer(TensorSource(numbered(300)), 8, 64, timeout=0.2)
    take(slow, 1)
    fake.fake_delay(3_000_000)  # the device does nothing for seconds: the ring of stages is full
    batch = torch.empty(8, 2)
    with pytest.raises(InputError, match="within 0.2 s"):
        for _ in range(20):
            slow._wait(lambda t: slow._native.next(batch.data_ptr(), [8, 2], "float32", 0, 0, t))
    fake.fake_delay(0)
    slow.close()
    fake.cudaDeviceSynchronize()  # `batch` is being written
    with pytest.raises(InputError, match="closed"):
        next(iter(slow))
    with pytest.raises(ValueError, match=r"out: expected shape \[8, 2\]"):
        slow._native.next(batch.data_ptr(), [8, 3], "float32", 0, 0, 1.0)
    with pytest.raises(ValueError, match="out: expected memory of CUDA device 0"):
        slow._native.next(0, [8, 2], "float32", 0, 0, 1.0)
    with pytest.raises(ValueError, match="dtype: expected float16"):
        slow._native.next(batch.data_ptr(), [8, 2], "float64", 0, 0, 1.0)
    for message, options in (
        ("source: expected fp16, bf16 or fp32", {"source": TensorSource(numbered(9).double())}),
        ("dtype: expected fp16, bf16 or fp32", {"dtype": torch.float64}),
        (r"b_dec: expected \[2\] in fp32", {"b_dec": torch.zeros(3)}),
        ("capacity: expected at least batch_size", {"capacity": 7}),
    ):
        with pytest.raises(InputError, match=message):
            Buffer(**({"source": TensorSource(numbered(100)), "batch_size": 8, "capacity": 64} | options))


def test_many_buffers_leave_nothing_behind(tmp_path, fake):
    source = write(tmp_path / "acts", numbered(300, 16))
    fake.fake_delay(0)
    for i in range(300):
        buffer = Buffer(source, 8, 64)
        take(buffer, i % 4)
        if i % 2:
            buffer.close()
        del buffer
    fake.cudaDeviceSynchronize()
    assert fake.fake_alive() == 0


@pytest.fixture
def a_gpu(monkeypatch):
    """What `open_on` asks torch about a GPU, answered: 1 GB is free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    made = lambda *args, **options: Buffer(*args, **(options | {"device": "cpu"}))
    monkeypatch.setattr(device_buffer, "DeviceBuffer", made)
    monkeypatch.setattr(opening, "_said", set())


def test_open_buffer_takes_it_or_says_once_why_not(a_gpu, monkeypatch, caplog):
    source = TensorSource(numbered(100))
    open_it = lambda **options: open_buffer(source, 8, 64, **({"device": "cuda"} | options))
    assert type(open_it()) is Buffer
    assert type(open_it(device="cpu")) is NativeBuffer
    assert type(open_buffer(IterableSource([numbered(100)], 2), 8, 64, device="cuda")) is ShuffleBuffer
    with caplog.at_level(logging.WARNING, "saefast"):
        for _ in range(3):
            assert type(open_it(reserve=10**9)) is NativeBuffer
    assert len(caplog.records) == 1 and "beside 1.00 GB for training, 1.00 GB are free" in caplog.text
    for reason in ("takes fp16, bf16 and fp32", "is not built"):
        caplog.clear()
        opening._said.clear()
        if reason == "is not built":
            monkeypatch.undo()
            monkeypatch.setitem(sys.modules, "saefast._cuda", None)
            monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        with caplog.at_level(logging.WARNING, "saefast"):
            assert type(open_it(dtype=torch.float64)) is NativeBuffer
        assert reason in caplog.text and "in main memory" in caplog.text


def test_a_training_run_takes_the_same_steps_and_resumes(a_gpu, monkeypatch, tmp_path):
    """From shards, with the buffer on the fake, as without; stopped and resumed."""
    source = write(tmp_path / "acts", torch.randn(600, 16).half(), shard_tokens=100)
    config = TrainConfig(
        total_tokens=64 * 60, batch_size=64, buffer_tokens=256, checkpoint_every=10, backend="reference"
    )

    def fit(on_device, out, stop_after=None, resume=False):
        def opened(*args, **options):
            assert options["device"].type == "cpu" and options["reserve"] > 0
            buffer = open_buffer(*args, **(options | {"device": "cuda" if on_device else "cpu"}))
            assert (type(buffer) is Buffer) == on_device
            return buffer

        monkeypatch.setattr("saefast.train.loop.open_buffer", opened)
        trainer = Trainer(SAE(SAEConfig(d_in=16, d_sae=64, k=4), seed=0), config)
        step = trainer.step
        if stop_after:
            trainer.step = lambda x, **_: (
                step(x, checked=True) if trainer.state.step < stop_after else pytest.fail("stop here")
            )
        trainer.fit(source, tmp_path / out, resume)
        return trainer.state.tensors()

    want = fit(False, "cpu")
    got = fit(True, "device")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        fit(True, "stopped", stop_after=25)
    resumed = fit(True, "stopped", resume=True)
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name]) and torch.equal(tensor, resumed[name]), name
