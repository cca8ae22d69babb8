"""Rows pushed by other threads: order, back-pressure, errors and overlap."""

import threading
import time

import pytest
import torch

import saefast
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.live_source import Background, Closed, LiveSource
from saefast.activations.lm import ModelSource
from saefast.activations.sources import IterableSource, Source, TensorSource
from saefast.errors import InputError
from tests.helpers import tiny_lm
from tests.helpers.batches import numbered, wait_for


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
    wait_for(lambda: len(pushed) == 10)
    time.sleep(0.1)
    assert len(pushed) == 10  # no more come
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
    before = set(threading.enumerate())
    for x, y, _ in zip(want, got, range(100)):
        assert torch.equal(x, y)
    got._stream.close()  # in the middle of a pass
    assert set(threading.enumerate()) <= before


def test_an_error_of_the_source_arrives_unchanged():
    source = IterableSource([numbered(20), torch.zeros(3, 7)], 2)
    with pytest.raises(InputError, match=r"source: expected tensors \[n, 2\], got \[3, 7\]"):
        list(ShuffleBuffer(Background(source), 4, 8))


class Asked(Source):
    """Gives 64 rows each time it is asked for them, and `free` times without."""

    def __init__(self, rows, free):
        self.tensor, self.d_in, self.free = rows, rows.shape[1], free
        self.asked, self.given = threading.Semaphore(0), threading.Semaphore(0)

    def rows(self, start=0):
        for i, chunk in enumerate(self.tensor[start:].split(64)):
            if i >= self.free:
                assert self.asked.acquire(timeout=60)
                self.given.release()
            yield chunk


def train(source, out=None, resume=False, total=64 * 60):
    config = saefast.TrainConfig(
        total_tokens=total, batch_size=64, buffer_tokens=128, lr=1e-3, checkpoint_every=7, log_every=100
    )
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=source.d_in, d_sae=96, k=4)), config)
    trainer.fit(source, out, resume)
    return trainer.sae.W_dec.detach().clone()


@pytest.mark.parametrize("background", [True, False])
def test_rows_are_made_while_the_trainer_is_in_a_step(monkeypatch, background):
    """Every step asks for the rows of the next batch, and waits inside of the step until they are there."""
    rows = torch.randn(64 * 62, 16, generator=torch.Generator().manual_seed(0))
    # free are those of the first batch: 128 rows in the buffer, and 64 for the places of those that leave
    source, step, came = Asked(rows, free=3), saefast.Trainer.step, []

    def asking(trainer, x, **options):
        source.asked.release(1 if len(came) < 49 else 20)  # in the end all, so that its thread can end
        came.append(source.given.acquire(timeout=60 if background else 0.01))
        return step(trainer, x, **options)

    monkeypatch.setattr(saefast.Trainer, "step", asking)
    got = train(Background(source) if background else source, total=64 * 50)
    monkeypatch.undo()
    assert torch.equal(got, train(TensorSource(rows), total=64 * 50))
    assert came == [True] * 50 if background else not all(came)


def test_a_language_model_in_the_background_and_resume(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(2, 64, (4, 16), generator=generator) for _ in range(20)]

    def source():
        return ModelSource(tiny_lm.model(), "model.layers.1", batches, sink_ratio=None)

    want = train(source(), total=64 * 30)
    got = train(Background(source()), tmp_path / "run", total=64 * 30)
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
    resumed = train(background, tmp_path / "cut", resume=True, total=64 * 30)
    assert torch.equal(want, resumed)
