"""What the buffer promises: after any number of batches, no row has left more than once more often than another.

Rows are known by their number. `each_kind` is the buffer in PyTorch, the one in C++ and the one on a (fake) device.
"""

import shutil
from itertools import count, product

import pytest
import torch

from saefast.activations import device_buffer
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.sources import IterableSource, TensorSource
from saefast.errors import InputError
from tests.helpers import fake_device
from tests.helpers.batches import numbered

# (rows, batch_size, capacity): all small ones with a full buffer, a larger one, and one that holds more than a pass
SHAPES = [
    (n, batch, batch + extra)
    for n, batch in product(range(1, 13), range(1, 7))
    for extra in sorted({0, 1, 4, n + 3})
]
ISSUE = (33, 4, 18)


@pytest.fixture
def kind(request, monkeypatch):
    if request.param == "pytorch":
        return ShuffleBuffer
    if request.param == "native":
        pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
        return NativeBuffer
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    module, library = fake_device.build()
    monkeypatch.setattr(device_buffer, "load_module", lambda: module)
    library.fake_delay(0)
    return fake_device.FakeDeviceBuffer


each_kind = pytest.mark.parametrize("kind", ["pytorch", "native", "device"], indirect=True)


def numbers_of(batch):
    return batch[:, 0].long().tolist()


def check_promise(batches, rows, batch_size):
    """rows: the numbers of all finite rows. After b batches each has left b * batch_size / n times, rounded down or up."""
    left = dict.fromkeys(rows, 0)
    for b, batch in enumerate(batches, 1):
        assert len(batch) == batch_size
        for row in batch:
            left[row] += 1
        whole, rest = divmod(b * batch_size, len(rows))
        assert set(left.values()) <= {whole, whole + (rest > 0)}, (b, left)


def enough(n, batch_size):
    """Batches of four passes and a bit, and of a few however small a pass is."""
    return max(6, -(-4 * n // batch_size) + 1)


def seeded_shapes(how_many):
    generator = torch.Generator().manual_seed(21)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))
    for _ in range(how_many):
        n, batch = draw(1, 90), draw(1, 20)
        yield n, batch, batch + draw(0, 60)


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("part", range(4))
def test_every_row_leaves_equally_often_whatever_the_shape(part, chunk):
    for seed, (n, batch, capacity) in enumerate([ISSUE, *SHAPES[part::4], *seeded_shapes(20)]):
        source = IterableSource(list(numbered(n).split(chunk)), 2)
        batches = iter(ShuffleBuffer(source, batch, capacity, seed))
        drawn = [numbers_of(next(batches)) for _ in range(enough(n, batch))]
        check_promise(drawn, range(n), batch)


@each_kind
def test_every_row_leaves_equally_often_from_each_buffer(kind):
    """And in the same order."""
    for seed, (n, batch, capacity) in enumerate([ISSUE, *SHAPES[::5], *seeded_shapes(20)]):
        sizes = TensorSource(numbered(n)), batch, capacity, seed
        buffer = kind(*sizes)
        batches, same = iter(buffer), iter(ShuffleBuffer(*sizes))
        drawn = [numbers_of(next(batches)) for _ in range(enough(n, batch))]
        buffer.close()
        check_promise(drawn, range(n), batch)
        assert drawn == [numbers_of(next(same)) for _ in drawn]


def test_case_of_the_issue_three_passes_of_33_rows():
    batches = iter(ShuffleBuffer(IterableSource(list(numbered(33).split(1)), 2), 4, 18))
    left = torch.zeros(33, dtype=torch.long)
    for passes in (1, 2, 3):
        for _ in range(8):  # 32 rows: one more row waits after each pass
            left[numbers_of(next(batches))] += 1
        assert sorted(left.tolist()) == [passes - 1] * passes + [passes] * (33 - passes)


@each_kind
@pytest.mark.parametrize("sampled", [False, True])
def test_rows_carried_over_leave_first_after_a_resume_at_any_step(kind, sampled):
    """Each batch from a buffer of its own, which went on from the state of another kind; `sample` fills up, so that
    rows of two passes are held when the state is written."""
    for seed, (n, batch, capacity) in enumerate(
        [ISSUE, (5, 4, 4), (3, 7, 9), (1, 3, 3), (8, 4, 12), (20, 7, 50)]
    ):
        sizes = TensorSource(numbered(n)), batch, capacity, seed
        whole = iter(ShuffleBuffer(*sizes))
        want = [numbers_of(next(whole)) for _ in range(enough(n, batch))]
        drawn, state = [], None
        for step in range(len(want)):
            buffer = (kind, ShuffleBuffer)[step % 2](*sizes)
            if state is not None:
                buffer.load_state_dict(*state)
            drawn.append(numbers_of(next(iter(buffer))))
            if sampled:
                buffer.sample(1)
            state = buffer.state_dict()
            buffer.close()
        assert drawn == want
        check_promise(drawn, range(n), batch)


def test_rows_carried_over_are_resumed_where_rows_are_read_once():
    """The state of a source that cannot fetch rows holds them."""
    sizes = IterableSource(list(numbered(33).split(3)), 2), 4, 18
    whole = iter(ShuffleBuffer(*sizes))
    state = None
    for _ in range(40):
        buffer = ShuffleBuffer(*sizes)
        if state is not None:
            buffer.load_state_dict(*state)
        assert numbers_of(next(iter(buffer))) == numbers_of(next(whole))
        buffer.sample(1)
        state = buffer.state_dict()


@each_kind
def test_rows_that_are_dropped_do_not_count(kind):
    for seed, (n, batch, capacity) in enumerate([ISSUE, (9, 4, 5), (9, 8, 30), (4, 3, 3)]):
        rows = numbered(n)
        rows[::4, 1] = torch.nan  # the first row of the pass, and for some the last
        buffer = kind(TensorSource(rows), batch, capacity, seed, "skip")
        batches = iter(buffer)
        drawn = [numbers_of(next(batches)) for _ in range(enough(n, batch))]
        buffer.close()
        check_promise(drawn, [i for i in range(n) if i % 4], batch)


class Changing:
    """An iterable that has other rows in each pass, as many as `lengths` says in turn: (number of the pass, of the row)."""

    def __init__(self, *lengths):
        self.lengths, self.passes = lengths, count()

    def __iter__(self):
        i = next(self.passes)
        n = self.lengths[i % len(self.lengths)]
        return iter(torch.stack([torch.full((n,), float(i)), torch.arange(n).float()], dim=1).split(3))


@pytest.mark.parametrize("lengths", [(33, 5, 1, 40), (1, 2, 3), (7,), (4, 8), (2, 1, 1, 30)])
@pytest.mark.parametrize("batch,capacity", [(4, 4), (4, 18), (7, 100), (1, 3)])
def test_a_pass_leaves_whole_before_the_next_where_passes_differ(lengths, batch, capacity):
    batches = iter(ShuffleBuffer(IterableSource(Changing(*lengths), 2), batch, capacity))
    left = []  # (pass, row), batch after batch
    for _ in range(max(8, 120 // batch)):
        taken = [tuple(row) for row in next(batches).long().tolist()]
        last = max(i for i, _ in taken)
        left += taken
        assert len(set(left)) == len(left)
        for i in range(last):  # those before the newest pass of the batch
            assert sum(p == i for p, _ in left) == lengths[i % len(lengths)], (i, left)


@pytest.mark.parametrize("n,batch,capacity,kept", [(0, 4, 8, 0), (3, 4, 8, 0), (4, 4, 4, 4), (50, 8, 20, 48)])
def test_of_a_source_that_ends_the_last_rows_stay_fewer_than_a_batch(n, batch, capacity, kept):
    chunks = (chunk for chunk in numbered(n).split(5)) if n else iter(())
    drawn = [row for x in ShuffleBuffer(IterableSource(chunks, 2), batch, capacity) for row in numbers_of(x)]
    assert len(drawn) == len(set(drawn)) == kept


def test_the_batch_with_rows_carried_over_is_a_uniform_sample_besides_them():
    """45 rows, batches of 10: 5 are carried over, and 5 of the next 35 rows come with them, each as likely."""
    seen, carried = torch.zeros(45), torch.zeros(45)
    for seed in range(700):
        batches = iter(ShuffleBuffer(TensorSource(numbered(45)), 10, 40, seed))
        first = torch.cat([next(batches)[:, 0].long() for _ in range(4)])
        rest = sorted(set(range(45)) - set(first.tolist()))
        taken = numbers_of(next(batches))
        assert sorted(taken[:5]) == rest
        seen[taken[5:]] += 1
        carried[rest] += 1
    assert seen[35:].sum() == 0
    expected = 700 * 5 / 35
    assert ((seen[:35] - expected) ** 2 / expected).sum() / (
        1 - 5 / 35
    ) < 66  # 99.9 % quantile, 34 degrees of freedom
    late = carried[40:]  # the rows that came last wait most often
    assert late.min() > carried[:35].max()


@each_kind
def test_a_state_of_before_rows_were_carried_goes_on(kind):
    """It says nothing of rows that wait: the promise holds from the next pass on."""
    n, batch, capacity = ISSUE
    sizes = TensorSource(numbered(n)), batch, capacity
    first, second = ShuffleBuffer(*sizes), kind(*sizes)
    batches = iter(first)
    before = [numbers_of(next(batches)) for _ in range(8)]
    first.sample(1)
    tensors, numbers = first.state_dict()
    assert numbers.pop("carried") == 1
    second.load_state_dict(tensors, numbers)
    after = iter(second)
    drawn = before + [numbers_of(next(after)) for _ in range(8)]
    while len(drawn) < 80:
        drawn.append(numbers_of(next(after)))
        left = torch.bincount(torch.tensor(drawn).flatten(), minlength=n)
        assert left.sum() < 2 * n or left.max() - left.min() <= 1
    second.close()


@each_kind
def test_a_state_with_more_rows_carried_over_than_there_can_be_is_refused(kind):
    sizes = TensorSource(numbered(33)), 4, 18
    buffer = ShuffleBuffer(*sizes)
    next(iter(buffer))
    tensors, numbers = buffer.state_dict()
    for wrong in (-1, True, 0.0, "1", None):
        with pytest.raises(InputError, match="resume: expected numbers of 0 or more"):
            kind(*sizes).load_state_dict(tensors, numbers | {"carried": wrong})
    for wrong in (4, 19):
        with pytest.raises(
            InputError, match=f"resume: expected fewer than 4 of its 18 rows carried over, got {wrong}"
        ):
            kind(*sizes).load_state_dict(tensors, numbers | {"carried": wrong})
