"""The shuffle buffer's numbers: the places it draws stay the same in every version, and what its state may say."""

import numpy as np
import pytest
import torch

from saefast import InputError
from saefast.activations.buffer import COUNTERS, ShuffleBuffer, counters, draw
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_source
from saefast.activations.sources import IterableSource, TensorSource
from tests.helpers.batches import numbered, same, take

EACH = pytest.mark.parametrize("kind", [ShuffleBuffer, NativeBuffer])


def drawn(seed, batch, held, n):
    """The permutation of the docstring of `draw`, number by number."""
    mask = 2**64 - 1

    def mix(z):
        z &= mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def scramble(half, key, below):
        h = half ^ key
        h = ((h ^ (h >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
        h = ((h ^ (h >> 15)) * 0x735A2D97) & 0xFFFFFFFF
        return ((h ^ (h >> 15)) * below) >> 32

    golden, rows = 0x9E3779B97F4A7C15, 1
    while rows * rows < held:
        rows += 1
    columns = (held + rows - 1) // rows
    base = mix(mix(seed) + batch * golden)
    keys = [mix(base + (r + 1) * golden) >> 32 for r in range(8)]
    found = []
    for place in range(n):
        while True:
            row, column = divmod(place, columns)
            for r in (0, 2, 4, 6):
                row = (row + scramble(column, keys[r], rows)) % rows
                column = (column + scramble(row, keys[r + 1], columns)) % columns
            place = row * columns + column
            if place < held:
                break
        found.append(place)
    return found


@pytest.mark.parametrize(
    "seed,batch,held,n",
    [(0, 0, 40, 10), (7, 3, 1000, 1000), (2**64 - 1, 12345, 10_007, 99), (1, 1, 1, 1), (5, 2, 7, 7)],
)
def test_the_places_of_a_batch_are_those_of_the_formula(seed, batch, held, n):
    assert draw(seed, batch, held, n).tolist() == drawn(seed, batch, held, n)


def test_the_places_of_a_batch_are_those_of_the_first_version():
    """A run that is resumed in a later version goes on to the same bits."""
    assert draw(0, 0, 40, 10).tolist() == [12, 18, 8, 30, 14, 7, 26, 10, 20, 38]
    large = [965336613853, 762630072910, 850798855658, 37689272520]
    assert draw(2**64 - 1, 12345, 10**12, 4).tolist() == large


STATE = {"batches": 3, "passes": 1, "next_row": 9, "skipped": 2, "carried": 1}


def test_the_numbers_of_a_state():
    assert counters(STATE | {"mark": {}}, 5, 4) == STATE
    assert counters({name: STATE[name] for name in COUNTERS[:4]}, 5, 4) == STATE | {"carried": 0}
    assert counters(dict.fromkeys(COUNTERS, 0), 0, 1) == dict.fromkeys(COUNTERS, 0)
    assert counters(STATE | {"carried": 3}, 3, 4)["carried"] == 3


@pytest.mark.parametrize("name", COUNTERS[:4])
def test_a_state_without_a_number_was_shuffled_in_another_way(name):
    with pytest.raises(
        InputError, match="^resume: expected a checkpoint of this version, this one was shuffled"
    ):
        counters({key: value for key, value in STATE.items() if key != name}, 5, 4)


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("value", [-1, True, 1.0, None, "1"])
def test_a_number_of_another_kind_is_refused(name, value):
    with pytest.raises(InputError, match="^resume: expected numbers of 0 or more, got "):
        counters(STATE | {name: value}, 5, 4)


@pytest.mark.parametrize("held,batch_size,carried", [(5, 4, 4), (2, 4, 3), (0, 4, 1)])
def test_no_more_rows_wait_than_are_held_and_less_than_a_batch(held, batch_size, carried):
    said = f"^resume: expected fewer than {batch_size} of its {held} rows carried over, got {carried}$"
    with pytest.raises(InputError, match=said):
        counters(STATE | {"carried": carried}, held, batch_size)


@EACH
def test_a_fresh_state_counts_from_nothing(kind):
    buffer = kind(TensorSource(numbered(50)), 8, 20)
    tensors, numbers = buffer.state_dict()
    assert numbers == dict.fromkeys(COUNTERS, 0) and tensors["row_of"].tolist() == [] and buffer.held == 0
    take(buffer, 1)
    tensors, numbers = buffer.state_dict()
    assert numbers == dict.fromkeys(COUNTERS, 0) | {"batches": 1, "next_row": 28}
    assert sorted(tensors["row_of"].tolist()) == sorted(set(range(28)) - set(drawn(0, 0, 20, 8)))
    assert buffer.held == 20 and (buffer.passes, buffer.skipped) == (0, 0)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'"):
        _ = buffer.nothing


@EACH
def test_rows_are_taken_in_the_places_of_the_formula(kind):
    """The first batch by hand: 20 rows held, and 8 of them leave."""
    (batch,) = take(kind(TensorSource(numbered(50)), 8, 20, seed=3), 1)
    assert batch[:, 0].tolist() == drawn(3, 0, 20, 8)


@EACH
def test_a_state_of_more_rows_than_there_are_places_is_refused(kind):
    large, small = (ShuffleBuffer(TensorSource(numbered(50)), 4, n) for n in (9, 8))
    take(large, 1), take(small, 1)
    buffer = kind(TensorSource(numbered(50)), 4, 8)
    with pytest.raises(InputError, match="at most capacity = 8 rows, got 9|a buffer of this size"):
        buffer.load_state_dict(*large.state_dict())
    buffer.load_state_dict(*small.state_dict())
    same(take(buffer, 30), take(small, 30))


@EACH
def test_a_state_without_rows_begins_a_pass(kind):
    buffer = kind(TensorSource(numbered(50)), 8, 20)
    take(buffer, 5)
    buffer.load_state_dict({"row_of": torch.empty(0, dtype=torch.int64)}, dict.fromkeys(COUNTERS, 0))
    same(take(buffer, 12), take(ShuffleBuffer(TensorSource(numbered(50)), 8, 20), 12))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_row_that_stops_a_run_leaves_the_buffer_as_it_was(nonfinite):
    rows = numbered(50)
    rows[30, 1] = torch.inf
    buffer = ShuffleBuffer(IterableSource(list(rows.split(9)), 2), 8, 20, nonfinite=nonfinite)
    take(buffer, 1)
    before = buffer.state_dict()
    if nonfinite == "skip":
        take(buffer, 1)
        assert (buffer.skipped, buffer.next_row) == (1, 37)
        return
    said = r"^source: row 30 holds NaN or Inf; nonfinite = 'skip' \(--nonfinite skip\) drops such rows$"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            take(buffer, 1)
        after = buffer.state_dict()
        assert after[1] == before[1] and after[0].keys() == before[0].keys()
        assert all(torch.equal(after[0][name], before[0][name]) for name in before[0])


def test_closing_ends_the_pass_over_the_source_and_the_buffer_goes_on():
    ended = []

    def read():
        try:
            yield from numbered(50).split(5)
        finally:
            ended.append(True)

    class Reading(TensorSource):
        def rows(self, start=0):
            return read() if start == 0 else iter([self.tensor[start:]])

    buffer = ShuffleBuffer(Reading(numbered(50)), 8, 20)
    first = take(buffer, 1)
    buffer.close()
    assert ended == [True]
    same(first + take(buffer, 11), take(ShuffleBuffer(TensorSource(numbered(50)), 8, 20), 12))


@pytest.mark.parametrize(
    "options,said",
    [
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"capacity": 7}, "capacity: expected at least batch_size = 8, got 7"),
        ({"readers": 0}, "readers: expected 1 to 64, got 0"),
        ({"readers": 65}, "readers: expected 1 to 64, got 65"),
        ({"mixers": 0}, "mixers: expected 1 to 64, got 0"),
        ({"mixers": 65}, "mixers: expected 1 to 64, got 65"),
        ({"capacity": 2**63}, r"capacity: expected less than 2\*\*63, got 9223372036854775808"),
        ({"seed": -1}, r"seed: expected 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 2**64}, r"seed: expected 0 to 2\*\*64 - 1, got 18446744073709551616"),
        ({"ahead": 0}, "ahead: expected 1 or more, got 0"),
    ],
    ids=str,
)
def test_sizes_of_the_native_buffer(options, said):
    with pytest.raises(InputError, match=f"^{said}$"):
        NativeBuffer(**{"source": TensorSource(numbered(50)), "batch_size": 8, "capacity": 20} | options)


def test_the_largest_and_the_smallest_sizes_of_the_native_buffer():
    want = take(ShuffleBuffer(TensorSource(numbered(50)), 1, 1, 2**64 - 1), 60)
    options = {"readers": 64, "mixers": 64, "ahead": 1}
    same(take(NativeBuffer(TensorSource(numbered(50)), 1, 1, 2**64 - 1, **options), 60), want)
    want = take(ShuffleBuffer(TensorSource(numbered(50)), 8, 8), 20)
    same(take(NativeBuffer(TensorSource(numbered(50)), 8, 8, readers=1, mixers=1), 20), want)


def test_a_state_over_a_file_is_restored(tmp_path):
    """Its rows are read again, where those of a tensor in memory are used where they are."""
    np.save(tmp_path / "x.npy", numbered(50).numpy())
    sizes = open_source(tmp_path / "x.npy"), 8, 20
    for first_kind in (ShuffleBuffer, NativeBuffer):
        first, second = first_kind(*sizes), NativeBuffer(*sizes)
        drawn = take(first, 4)
        second.load_state_dict(*first.state_dict())
        same(drawn + take(second, 12), take(ShuffleBuffer(*sizes), 16))
