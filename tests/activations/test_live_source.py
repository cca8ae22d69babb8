"""Rows pushed by other threads: order, back-pressure, errors and overlap."""

import threading
import time

import pytest
import torch

import saefast
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.live_source import Background, Closed, LiveSource
from saefast.activations.lm import ModelSource
from saefast.activations.sources import IterableSource, Source
from saefast.errors import InputError
from tests.helpers import tiny_lm
from tests.helpers.batches import numbered


def push_all(rows, size):
    def produce(live):
        for chunk in rows.split(size):
            live.push(chunk)

    return produce


def test_several_producers_every_row_once():
    live = LiveSource(2, max_rows=32)
    live.start(*(push_all(part, 7) for part in numbered(600).split(150)))
    rows = torch.cat([batch[:, 0] for batch in ShuffleBuffer(live, 10, 50)])
    assert sorted(rows.tolist()) == list(range(600))


def test_push_waits_for_room_and_memory_is_bounded():
    live = LiveSource(2, max_rows=100)
    pushed = []

    def produce(live):
        for chunk in numbered(1000).split(10):
            live.push(chunk)
            pushed.append(1)

    (thread,) = live.start(produce)
    time.sleep(0.2)
    assert len(pushed) == 10
    assert len(torch.cat(list(live))) == 1000
    thread.join(5)
    assert not thread.is_alive()


def test_a_failing_producer_surfaces_after_its_rows():
    def produce(live):
        live.push(numbered(30))
        raise RuntimeError("the language model ran out of memory")

    live = LiveSource(2)
    live.start(produce)
    buffer = ShuffleBuffer(live, 10, 10)
    with pytest.raises(InputError, match="a producer of activations failed: .*ran out of memory"):
        list(buffer)
    assert buffer.batches >= 1


def test_waits_end():
    live = LiveSource(2, max_rows=4, timeout=0.2)
    with pytest.raises(InputError, match="source: expected rows within 0.2 s"):
        next(iter(live))
    live.push(numbered(4))
    with pytest.raises(InputError, match=r"rows: expected room for 4 rows within 0.2 s"):
        live.push(numbered(4))
    live.stop()
    with pytest.raises(Closed):
        live.push(numbered(4))
    for bad in (torch.zeros(3), torch.zeros(3, 5), [1], torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(InputError, match="rows: expected a"):
            live.push(bad)


def test_background_is_the_same_rows_and_ends_its_thread():
    source = IterableSource(list(numbered(300).split(13)), 2)
    want, got = ShuffleBuffer(source, 8, 40), ShuffleBuffer(Background(source, max_rows=20), 8, 40)
    before = threading.active_count()
    for x, y, _ in zip(want, got, range(100)):
        assert torch.equal(x, y)
    got._stream.close()  # in the middle of a pass
    assert threading.active_count() == before


def test_an_error_of_the_source_arrives_unchanged():
    source = IterableSource([numbered(20), torch.zeros(3, 7)], 2)
    with pytest.raises(InputError, match=r"source: expected tensors \[n, 2\], got \[3, 7\]"):
        list(ShuffleBuffer(Background(source), 4, 8))


class Slow(Source):
    def __init__(self, rows, seconds):
        self.tensor, self.seconds, self.d_in = rows, seconds, rows.shape[1]

    def rows(self, start=0):
        for chunk in self.tensor[start:].split(64):
            time.sleep(self.seconds)
            yield chunk


def train(source, out=None, resume=False, pause=0.0, total=64 * 60):
    config = saefast.TrainConfig(
        total_tokens=total, batch_size=64, buffer_tokens=128, lr=1e-3, checkpoint_every=7, log_every=100
    )
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=source.d_in, d_sae=96, k=4)), config)
    step = trainer.step
    trainer.step = lambda x, **_: (time.sleep(pause), step(x, checked=True))[1]
    begin = time.perf_counter()
    trainer.fit(source, out, resume)
    return trainer.sae.W_dec.detach().clone(), time.perf_counter() - begin


def test_producer_and_trainer_overlap():
    rows = torch.randn(64 * 62, 16, generator=torch.Generator().manual_seed(0))
    slow = Slow(rows, 0.03)
    after, apart = train(slow, pause=0.03)
    same, together = train(Background(slow), pause=0.03)
    assert torch.equal(after, same)
    assert together < 0.75 * apart, f"{together:.2f} s together, {apart:.2f} s one after the other"


def test_a_language_model_in_the_background_and_resume(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(2, 64, (4, 16), generator=generator) for _ in range(20)]

    def source():
        return ModelSource(tiny_lm.model(), "model.layers.1", batches, sink_ratio=None)

    want, _ = train(source(), total=64 * 30)
    got, _ = train(Background(source()), tmp_path / "run", total=64 * 30)
    assert torch.equal(want, got)

    background = Background(source())
    calls = []

    def fail(x, **options):
        calls.append(1)
        if len(calls) == 20:
            raise InputError("x: interrupted")
        return real(x, **options)

    config = saefast.TrainConfig(
        total_tokens=64 * 30, batch_size=64, buffer_tokens=128, lr=1e-3, checkpoint_every=7, log_every=100
    )
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=32, d_sae=96, k=4)), config)
    real, trainer.step = trainer.step, fail
    with pytest.raises(InputError, match="interrupted"):
        trainer.fit(background, tmp_path / "cut")
    resumed, _ = train(background, tmp_path / "cut", resume=True, total=64 * 30)
    assert torch.equal(want, resumed)
