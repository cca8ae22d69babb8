"""The streaming buffer on a CUDA device: what test_device_buffer.py cannot show over its fake. Run by `make gpu`."""

import importlib

import pytest
import torch

from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_buffer
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.activations.sources import TensorSource
from tests.helpers.batches import same, take

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU was found"),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def built():
    pytest.importorskip("saefast._cuda", reason="saefast._cuda is not built: no nvcc")


def device_buffer(*sizes, **options):
    return importlib.import_module("saefast.activations.device_buffer").DeviceBuffer(*sizes, **options)


def shards(folder, n=3000, d_in=64):
    writer = ShardWriter(folder, d_in, torch.float16, shard_tokens=700)
    writer.append(torch.randn(n, d_in, generator=torch.Generator().manual_seed(1)).half())
    writer.close()
    return ShardSource(folder)


def test_the_device_can_be_used():
    assert importlib.import_module("saefast._cuda").unusable(torch.cuda.current_device()) == ""


@pytest.mark.parametrize("row_type", DTYPES)
@pytest.mark.parametrize("d_in", [768, 12])
@pytest.mark.parametrize("n,batch_size,capacity", [(5000, 256, 1024), (50, 40, 500), (7, 20, 30)])
def test_batches_equal_those_of_the_buffer_in_pytorch(row_type, d_in, n, batch_size, capacity):
    sizes = TensorSource(torch.randn(n, d_in).to(row_type)), batch_size, capacity, 7
    want = take(ShuffleBuffer(*sizes), 40)
    for dtype in (None, *DTYPES):
        same(take(device_buffer(*sizes, dtype=dtype), 40), [x.to(dtype or row_type) for x in want])
    b_dec = torch.randn(d_in)
    got = take(device_buffer(*sizes, dtype=torch.float32, b_dec=b_dec.cuda()), 40)
    same(got, [x.float() - b_dec for x in want])


def test_every_half_and_every_rounding():
    half = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    half = half[half.isfinite()]
    single = torch.arange(0, 2**31 - 2**24, 4099, dtype=torch.int64).to(torch.int32).view(torch.float32)
    single = torch.cat([single[single.isfinite()], half.float() * (1 + 2**-11)])
    for numbers in (half, half.to(torch.bfloat16), single, -single):
        n = len(numbers) // 64 * 8
        rows = numbers[: 8 * n].view(n, 8)
        for dtype in DTYPES:
            got = torch.cat(take(device_buffer(TensorSource(rows), n, n, dtype=dtype), 1)).cpu()
            want = torch.cat(take(ShuffleBuffer(TensorSource(rows), n, n), 1)).to(dtype)
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), dtype


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_each_resumes_the_other(tmp_path, stop):
    sizes = shards(tmp_path), 64, 512, 3
    want = take(ShuffleBuffer(*sizes), 80)
    for kinds in (
        (device_buffer, NativeBuffer),
        (NativeBuffer, device_buffer),
        (device_buffer, device_buffer),
    ):
        first, second = (kind(*sizes) for kind in kinds)
        assert torch.equal(first.sample(100).cpu(), ShuffleBuffer(*sizes).sample(100))
        drawn = take(first, stop)
        second.load_state_dict(*first.state_dict())
        same(drawn + take(second, 80 - stop), want)


def test_busy_streams_and_a_change_of_stream(tmp_path):
    """Steps that take longer than a batch, batches that are taken on two streams in turn."""
    sizes = shards(tmp_path), 64, 512
    want, got = take(ShuffleBuffer(*sizes), 100), []
    batches = iter(device_buffer(*sizes))
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    for i in range(100):
        with torch.cuda.stream(streams[i % 3 == 1]):
            torch.cuda._sleep(200_000 * (i % 4))
            got.append(next(batches))
    torch.cuda.synchronize()
    same(got, want)


def test_a_batch_does_not_wait_for_the_device(tmp_path):
    batches = iter(device_buffer(shards(tmp_path), 64, 512))
    for _ in range(10):
        next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    event = torch.cuda.Event()
    event.record()
    next(batches)
    assert not event.query()
    torch.cuda.synchronize()


def test_while_another_thread_records_a_graph(tmp_path):
    """The buffer allocates pinned memory and puts rows to their places in its own threads then."""
    x, graph = torch.zeros(64, 64, device="cuda"), torch.cuda.CUDAGraph()
    sizes = shards(tmp_path), 64, 512
    buffer = device_buffer(*sizes)
    batches = iter(buffer)
    got = [next(batches).clone()]
    with torch.cuda.graph(graph):
        for _ in range(2000):
            x += 1
    got += [next(batches).clone() for _ in range(60)]
    graph.replay()
    torch.cuda.synchronize()
    assert float(x[0, 0]) == 2000
    same(got, take(ShuffleBuffer(*sizes), 61))


def test_buffers_leave_no_memory_behind(tmp_path):
    source = shards(tmp_path)
    take(device_buffer(source, 64, 512), 3)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for i in range(200):
        take(device_buffer(source, 64, 512), i % 4)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_training_from_shards_takes_it_and_resumes_to_the_same_bits(tmp_path):
    source = shards(tmp_path / "acts")
    config = TrainConfig(total_tokens=256 * 60, batch_size=256, buffer_tokens=1024, checkpoint_every=10)

    def fit(out, stop_after=None, resume=False):
        trainer = Trainer(SAE(SAEConfig(d_in=64, d_sae=512, k=8)).cuda(), config)
        step = trainer.step
        if stop_after:
            trainer.step = lambda x, **_: (
                step(x, checked=True) if trainer.state.step < stop_after else pytest.fail("stop here")
            )
        trainer.fit(source, tmp_path / out, resume)
        return trainer.state.tensors()

    assert type(open_buffer(source, 256, 1024, dtype=torch.float32, device="cuda")).__name__ == "DeviceBuffer"
    whole = fit("whole")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        fit("run", stop_after=25)
    resumed = fit("run", resume=True)
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []
