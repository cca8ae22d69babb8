"""`GraphedSteps`: when it runs, records and replays. The graph itself needs a GPU: tests/engine/test_gpu.py."""

import contextlib

import pytest
import torch

import saefast
from saefast.engine import graph
from saefast.engine.stages import Metrics
from tests.helpers.steps import plan_of


class FakeGraph:
    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def steps(monkeypatch):
    """What the step was called with: (the stream that it is recorded on or None, x), and the stream now."""
    calls, recording = [], []

    @contextlib.contextmanager
    def record(fake, pool, stream, capture_error_mode):
        recording.append(stream)
        assert capture_error_mode == "thread_local"
        yield
        recording.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    return calls, recording


def run(graphs, called, plan, x, numbers=None):
    """As `Stepper.step` does it."""
    calls, recording = called
    numbers = torch.zeros(12) if numbers is None else numbers
    if (recorded := graphs.find(plan, x)) is not None:
        return recorded.replay(x, numbers)
    with graphs.first(plan, x, numbers) as now:
        calls.append((recording[-1] if recording else None, now.x))
        now.metrics = Metrics(*(torch.tensor(float(i)) for i in range(8)))
    return now.result()


def test_first_eager_then_recorded_once_then_replayed(steps):
    step, plan = graph.GraphedSteps(), plan_of(4, torch.float32)
    for i in range(4):
        x, numbers = torch.full((3, 2), float(i)), torch.full((12,), float(i))
        metrics = run(step, steps, plan, x, numbers)
    assert [bool(stream) for stream, _ in steps[0]] == [False, True]
    (recorded,) = step.recorded.values()
    x_buffer, numbers_buffer = recorded.x, recorded.numbers
    assert recorded.graph.replays == 3  # recording runs nothing, so it is followed by a replay
    assert steps[0][1][1] is x_buffer and (x_buffer == 3).all() and (numbers_buffer == 3).all()
    assert [float(value) for value in metrics] == list(range(8))


def test_a_new_plan_or_shape_has_its_own_graph(steps):
    step = graph.GraphedSteps()
    for plan in (plan_of(4, torch.float32), plan_of(4, torch.float32, dead_capacity=128)):
        for n in (3, 5):
            for _ in range(2):
                run(step, steps, plan, torch.zeros(n, 2))
    assert len(step.recorded) == 4 and [bool(stream) for stream, _ in steps[0]] == [False, True] * 4


def test_each_has_a_stream_of_its_own_to_record_on(steps):
    """cuBLAS has a workspace per stream, which the graphs recorded on it share: two SAEs may run at once."""
    plan = plan_of(4, torch.float32)
    for _ in range(2):
        step = graph.GraphedSteps()
        for n in (3, 3, 5, 5):
            run(step, steps, plan, torch.zeros(n, 2))
    one, same, other, again = (stream for stream, _ in steps[0] if stream)
    assert one is same and other is again and one is not other


def test_the_first_step_has_memory_that_begins_as_the_buffers_will(steps):
    """A kernel is compiled anew for an address that 16 does not divide, and not while recording."""
    rows = torch.zeros(5, 3)[1:]
    assert rows.data_ptr() % 16
    run(graph.GraphedSteps(), steps, plan_of(4, torch.float32), rows)
    assert steps[0][0][1].data_ptr() % 16 == 0


def test_metrics_outlive_the_next_replay(steps):
    step, plan = graph.GraphedSteps(), plan_of(4, torch.float32)
    for _ in range(3):
        metrics = run(step, steps, plan, torch.zeros(3, 2))
    inside = next(iter(step.recorded.values())).metrics
    inside.loss.fill_(99.0)  # what the next replay would do
    assert metrics.loss == 0


def test_the_trainer_runs_records_and_replays(steps):
    """Its first two steps change the SAE as without graphs: on a CPU what is recorded runs at once. The third only replays."""
    x = torch.randn(3, 40, 16)
    curves = []
    for graphs in (None, graph.GraphedSteps()):
        sae = saefast.SAE(saefast.SAEConfig(d_in=16, d_sae=64, k=4), seed=1)
        config = saefast.TrainConfig(
            total_tokens=400, batch_size=40, lr=1e-2, backend="reference", auxk_alpha=0.0
        )
        trainer = saefast.Trainer(sae, config)
        trainer._graphs = graphs
        curves.append([float(trainer.step(rows).loss) for rows in x[:2]])
    torch.testing.assert_close(*map(torch.tensor, curves))
    (recorded,) = graphs.recorded.values()
    trainer.step(x[2])
    assert recorded.graph.replays == 2 and torch.equal(recorded.x, x[2])
