import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.sources import IterableSource, TensorSource
from saefast.errors import InputError
from tests.helpers.batches import numbered


def take(buffer, n_batches):
    batches = iter(buffer)
    return torch.cat([next(batches)[:, 0] for _ in range(n_batches)])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 30), st.integers(1, 7))
def test_every_row_leaves_once_per_pass(n, batch_size, extra, chunk):
    source = IterableSource(list(numbered(n).split(chunk)), 2)
    n_batches = -(-3 * n // batch_size)
    drawn = take(ShuffleBuffer(source, batch_size, batch_size + extra), n_batches).long()
    for left in range(batch_size, len(drawn) + 1, batch_size):
        counts = torch.bincount(drawn[:left], minlength=n)
        assert counts.min() == left // n and counts.max() == -(-left // n)
    exact = ShuffleBuffer(source, 1, 1 + extra)
    assert torch.bincount(take(exact, 2 * n).long(), minlength=n).tolist() == [2] * n


def test_first_batch_is_a_uniform_sample_of_the_buffer():
    first = torch.zeros(40)
    for seed in range(400):
        first[take(ShuffleBuffer(TensorSource(numbered(100)), 10, 40, seed), 1).long()] += 1
    expected = 400 * 10 / 40
    chi_square = ((first - expected) ** 2 / expected).sum() / (1 - 10 / 40)
    assert chi_square < 73  # 99.9 % quantile, 39 degrees of freedom


def test_neighbours_are_spread_as_stated():
    """Rows stay capacity / batch_size batches on average, so neighbours rarely leave together."""
    n, batch_size, capacity = 20_000, 50, 1000
    drawn = take(ShuffleBuffer(TensorSource(numbered(n)), batch_size, capacity), n // batch_size)
    batch_of = torch.empty(n)
    batch_of[drawn.long()] = (torch.arange(n) // batch_size).float()
    middle = batch_of[2 * capacity : -2 * capacity]
    together = (middle[1:] == middle[:-1]).float().mean()
    assert together < 2 * batch_size / capacity
    delay = (batch_of - torch.arange(n) // batch_size + capacity / batch_size)[2 * capacity : -2 * capacity]
    assert delay.mean() == pytest.approx(capacity / batch_size, rel=0.1)


def test_batches_do_not_depend_on_how_the_source_is_cut():
    a = ShuffleBuffer(IterableSource(list(numbered(100).split(7)), 2), 8, 32, seed=3)
    b = ShuffleBuffer(TensorSource(numbered(100)), 8, 32, seed=3)
    assert torch.equal(take(a, 30), take(b, 30))


@pytest.mark.parametrize("random_access", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 3, 11, 17, 30])
def test_state_restores_the_same_batches(stop, random_access):
    def make():
        source = (
            TensorSource(numbered(100)) if random_access else IterableSource(list(numbered(100).split(7)), 2)
        )
        return ShuffleBuffer(source, 8, 32, seed=3)

    whole = make()
    want = take(whole, 40)
    first = make()
    first.sample(1)
    drawn = take(first, stop) if stop else torch.empty(0)
    tensors, numbers = first.state_dict()
    assert ("rows" in tensors) != random_access
    second = make()
    second.load_state_dict(tensors, numbers)
    assert torch.equal(torch.cat([drawn, take(second, 40 - stop)]), want)


def test_rows_with_nan_stop_or_are_skipped_and_counted():
    x = numbered(50)
    x[13, 1], x[20, 0] = float("nan"), float("inf")
    with pytest.raises(InputError, match="source: row 13 holds NaN or Inf"):
        take(ShuffleBuffer(TensorSource(x), 10, 20), 5)
    buffer = ShuffleBuffer(TensorSource(x), 12, 20, nonfinite="skip")
    drawn = take(buffer, 4)
    assert sorted(drawn.tolist()) == [i for i in range(50) if i not in (13, 20)] and buffer.skipped == 2


def test_a_generator_ends_after_one_pass():
    buffer = ShuffleBuffer(IterableSource((chunk for chunk in numbered(50).split(9)), 2), 10, 20)
    assert sorted(torch.cat(list(buffer))[:, 0].tolist()) == list(range(50))


@pytest.mark.parametrize("chunks", [[], [torch.empty(0, 2)], [torch.full((3, 2), float("nan"))]])
def test_no_finite_rows_at_all(chunks):
    with pytest.raises(InputError, match="source: expected at least one finite row"):
        ShuffleBuffer(IterableSource(chunks, 2), 4, 8, nonfinite="skip").sample(1)


@pytest.mark.parametrize("kind", ["native", "plain"])
@pytest.mark.parametrize(
    "row_of,message",
    [
        (torch.tensor([0, 8]), "resume: expected rows 0 to 7, got 0 to 8"),
        (torch.tensor([-1, 3]), "resume: expected rows 0 to 7, got -1 to 3"),
        (torch.zeros(2), "resume: expected row_of .* in torch.int64, got .2,. torch.float32"),
        (torch.zeros(2, dtype=torch.bool), "resume: expected row_of .* got .2,. torch.bool"),
        (torch.zeros(1, 2, dtype=torch.int64), "resume: expected row_of .* got .1, 2."),
        (None, "resume: expected row_of .* got none"),
    ],
)
def test_a_state_holds_numbers_of_rows_of_the_source(kind, row_of, message):
    """A negative number would count from the end, and a mask would choose other rows."""
    from saefast.activations.native_buffer import NativeBuffer

    made = {"native": NativeBuffer, "plain": ShuffleBuffer}[kind]
    buffer = made(TensorSource(torch.randn(8, 3)), 2, 4)
    numbers = {"batches": 1, "passes": 0, "next_row": 6, "skipped": 0, "carried": 0}
    with pytest.raises(InputError, match=message):
        buffer.load_state_dict({} if row_of is None else {"row_of": row_of}, numbers)
    buffer.load_state_dict({"row_of": torch.tensor([0, 7])}, numbers)
    assert buffer.held == 2
