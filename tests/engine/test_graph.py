"""`GraphedStep`: when it runs, records and replays. The graph itself needs a GPU: tests/engine/test_gpu.py."""

import contextlib

import pytest
import torch

from saefast.engine import graph
from saefast.engine.step import Metrics, Plan


class FakeGraph:
    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def steps(monkeypatch):
    """What train_step was called with: (the stream that it is recorded on or None, x)."""
    calls, recording = [], []

    @contextlib.contextmanager
    def record(fake, pool, stream, capture_error_mode):
        recording.append(stream)
        assert capture_error_mode == "thread_local"
        yield
        recording.pop()

    def train_step(ops, state, x, plan, numbers):
        calls.append((recording[-1] if recording else None, x))
        return Metrics(*(torch.tensor(float(i)) for i in range(8)))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(graph, "train_step", train_step)
    return calls


def test_first_eager_then_recorded_once_then_replayed(steps):
    step, plan = graph.GraphedStep(None, None), Plan(4, torch.float32)
    for i in range(4):
        x, numbers = torch.full((3, 2), float(i)), torch.full((12,), float(i))
        metrics = step(x, plan, numbers)
    assert [bool(stream) for stream, _ in steps] == [False, True]
    ((fake, x_buffer, numbers_buffer, _),) = step.recorded.values()
    assert fake.replays == 3  # recording runs nothing, so it is followed by a replay
    assert steps[1][1] is x_buffer and (x_buffer == 3).all() and (numbers_buffer == 3).all()
    assert [float(value) for value in metrics] == list(range(8))


def test_a_new_plan_or_shape_has_its_own_graph(steps):
    step = graph.GraphedStep(None, None)
    for plan in (Plan(4, torch.float32), Plan(4, torch.float32, dead_capacity=128)):
        for n in (3, 5):
            for _ in range(2):
                step(torch.zeros(n, 2), plan, torch.zeros(12))
    assert len(step.recorded) == 4 and [bool(stream) for stream, _ in steps] == [False, True] * 4


def test_each_has_a_stream_of_its_own_to_record_on(steps):
    """cuBLAS has a workspace per stream, which the graphs recorded on it share: two SAEs may run at once."""
    plan = Plan(4, torch.float32)
    for _ in range(2):
        step = graph.GraphedStep(None, None)
        for n in (3, 3, 5, 5):
            step(torch.zeros(n, 2), plan, torch.zeros(12))
    one, same, other, again = (stream for stream, _ in steps if stream)
    assert one is same and other is again and one is not other


def test_the_first_step_has_memory_that_begins_as_the_buffers_will(steps):
    """A kernel is compiled anew for an address that 16 does not divide, and not while recording."""
    rows = torch.zeros(5, 3)[1:]
    assert rows.data_ptr() % 16
    graph.GraphedStep(None, None)(rows, Plan(4, torch.float32), torch.zeros(12))
    assert steps[0][1].data_ptr() % 16 == 0


def test_metrics_outlive_the_next_replay(steps):
    step, plan = graph.GraphedStep(None, None), Plan(4, torch.float32)
    for _ in range(3):
        metrics = step(torch.zeros(3, 2), plan, torch.zeros(12))
    inside = next(iter(step.recorded.values()))[3]
    inside.loss.fill_(99.0)  # what the next replay would do
    assert metrics.loss == 0
