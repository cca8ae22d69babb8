"""The shuffle buffer between a source and the trainer, in plain PyTorch: the specification of `saefast.activations.native_buffer`."""

import math
from collections.abc import Generator, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from saefast.activations.sources import Source
from saefast.errors import InputError, check

ROUNDS = 8
COUNTERS = ("batches", "passes", "next_row", "skipped", "carried")  # of a buffer's state
GOLDEN, BITS_32, BITS_64 = 0x9E3779B97F4A7C15, 2**32 - 1, 2**64 - 1


def draw(seed: int, batch: int, held: int, n: int) -> Tensor:
    """The places that batch number `batch` takes: n different numbers below `held`, [n] int64.

    Element i is the image of i under a permutation of [0, held) that depends on the seed and the batch number only.
    There is no state, so a run can go on from any batch. `csrc/stream/draw.h` gives the same bits. The permutation is a
    Feistel network over a grid of about sqrt(held) x sqrt(held) places, with a keyed hash as its function; a place of the
    grid beyond `held` goes through it again (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    rows = math.isqrt(held - 1) + 1
    columns = -(-held // rows)
    base = (_mix64(_mix64(seed) + batch * GOLDEN)) & BITS_64
    keys = [_mix64(base + (r + 1) * GOLDEN) >> 32 for r in range(ROUNDS)]
    places = _permute(torch.arange(n, dtype=torch.int64, device="cpu"), rows, columns, keys)
    while (beyond := places >= held).any():
        places[beyond] = _permute(places[beyond], rows, columns, keys)
    return places


def _mix64(z: int) -> int:
    """The finalizer of SplitMix64."""
    z &= BITS_64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & BITS_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & BITS_64
    return z ^ (z >> 31)


def _permute(places: Tensor, rows: int, columns: int, keys: list[int]) -> Tensor:
    row, column = places // columns, places % columns
    for r in range(0, ROUNDS, 2):
        row = (row + _hash(column, keys[r], rows)) % rows
        column = (column + _hash(row, keys[r + 1], columns)) % columns
    return row * columns + column


def _hash(half: Tensor, key: int, below: int) -> Tensor:
    """Numbers from 0 to below - 1. It is 32-bit arithmetic in int64, where no product overflows."""
    h = half ^ key
    h = ((h ^ (h >> 16)) * 0x21F0AAAD) & BITS_32
    h = ((h ^ (h >> 15)) * 0x735A2D97) & BITS_32
    return ((h ^ (h >> 15)) * below) >> 32


def counters(numbers: dict[str, Any], held: int, batch_size: int) -> dict[str, int]:
    """The COUNTERS in the state of a buffer of `held` rows.

    Versions that let a row wait for more than one pass had no "carried". Their states go on with 0: what waits then
    leaves by the end of the pass, and from the next one on the promise of `ShuffleBuffer` holds.

    Raises:
        InputError: the state of a buffer that drew with a generator, as early versions did, or of another batch size.
    """
    found = {"carried": 0} | numbers
    fits = found.keys() >= set(COUNTERS)
    check(fits, "resume: expected a checkpoint of this version, this one was shuffled in another way")
    whole = all(type(found[name]) is int and found[name] >= 0 for name in COUNTERS)
    check(whole, f"resume: expected numbers of 0 or more, got { {name: found[name] for name in COUNTERS} }")
    carried = found["carried"]
    waiting = f"fewer than {batch_size} of its {held} rows carried over"
    check(carried <= held and carried < batch_size, f"resume: expected {waiting}, got {carried}")
    return {name: found[name] for name in COUNTERS}


def row_numbers(tensors: dict[str, Tensor], source: Source) -> Tensor:
    """The numbers of the rows that a buffer's state holds, [held] int64, contiguous.

    Raises:
        InputError: no such tensor, or a number that is not of a row of the source.
    """
    row_of = tensors.get("row_of")
    fits = row_of is not None and row_of.dtype == torch.int64 and row_of.ndim == 1
    came = "none" if row_of is None else f"{tuple(row_of.shape)} {row_of.dtype}"
    check(fits, f"resume: expected row_of [rows held] in torch.int64, got {came}")
    assert row_of is not None
    if len(row_of):
        low, high = int(row_of.min()), int(row_of.max())
        most = len(source) - 1 if isinstance(source, Sized) else high
        check(low >= 0 and high <= most, f"resume: expected rows 0 to {most}, got {low} to {high}")
    return row_of.contiguous()


class ShuffleBuffer:
    """Turns a stream of rows into shuffled batches [batch_size, d_in].

    It holds up to `capacity` rows. Each batch is a uniform sample without replacement of the rows held, and the next rows
    of the stream take the places of those that left. At the end of a pass the buffer empties before the next pass begins:
    the rows that are left, fewer than a batch, are carried over, and all of them are in the first batch of the next pass,
    with a uniform sample of its rows. So

    - all rows of a pass have left before any row of the next pass leaves, or leave in the same batch. After b batches
      of a source of n finite rows, each row has left b * batch_size / n times, rounded down or up;
    - a row stays for a geometrically distributed number of batches with mean capacity / batch_size, so rows
      that were neighbours in the stream land in the same batch with probability about batch_size / capacity;
    - batches depend on the source, the seed and the sizes alone, not on how the source is cut into tensors
      (see `draw`).

    Args:
        source: where the rows come from, read again when it ends.
        nonfinite: what happens at a row with NaN or Inf: "stop" raises InputError, "skip" drops the row and counts it.

    Raises:
        InputError: a capacity below batch_size.
    """

    def __init__(
        self, source: Source, batch_size: int, capacity: int, seed: int = 0, nonfinite: str = "stop"
    ) -> None:
        fits = capacity >= batch_size
        check(fits, f"capacity: expected at least batch_size = {batch_size}, got {capacity}")
        self.source, self.batch_size, self.nonfinite = source, batch_size, nonfinite
        self.capacity, self.seed = capacity, seed
        self.batches = 0  # drawn so far
        self.held = 0
        self.row_of = torch.empty(
            capacity, dtype=torch.int64, device="cpu"
        )  # number of the stream's row in each place
        self.place: Tensor | None = None  # [capacity, d_in] in the source's dtype, made with the first rows
        self.passes = 0  # finished so far
        self.next_row = 0  # number of the next row of this pass; skipped rows count too
        self.skipped = 0
        # rows of the passes before, in the first places: the next batch takes all of them
        self.carried = 0
        self._stream: Iterator[Tensor] | None = None
        self._chunk: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Batches [batch_size, d_in] without end, unless the source cannot be read a second time."""
        while self._fill():
            yield self._draw()

    def sample(self, n: int) -> Tensor:
        """Up to n of the rows that will come first, [n, d_in], without taking them out."""
        self._fill()
        if self.place is None or self.held == 0:
            raise InputError("source: expected at least one finite row, got none")
        return self.place[: min(n, self.held)]

    def _fill(self) -> bool:
        """Fill up from the stream, with new passes until a batch is held. Returns False if there are not enough rows."""
        self._top_up()
        while self.held < self.batch_size:
            self.passes, self.next_row, self.carried = self.passes + 1, 0, self.held
            self._stream = self._chunk = None
            if self._top_up() == 0:
                return False  # the source can be read only once, or has no finite row
        return True

    def _draw(self) -> Tensor:
        assert self.place is not None
        others = draw(self.seed, self.batches, self.held - self.carried, self.batch_size - self.carried)
        holes = torch.cat(
            [torch.arange(self.carried, dtype=torch.int64, device="cpu"), others + self.carried]
        )
        # where this raises (NaN in a row, a damaged shard), the buffer stays as it was and can be saved
        rows, numbers = self._next_rows(len(holes))
        self.batches, self.carried = self.batches + 1, 0
        batch = self.place[holes]
        self._put(holes[: len(numbers)], rows, numbers)
        # The last rows move down into the holes that the stream could not fill.
        holes = holes[len(numbers) :]
        self.held -= len(holes)
        is_hole = torch.zeros(self.held + len(holes), dtype=torch.bool, device="cpu")
        is_hole[holes] = True
        low = is_hole[: self.held].nonzero().squeeze(1)
        high = (~is_hole[self.held :]).nonzero().squeeze(1) + self.held
        self.place[low], self.row_of[low] = self.place[high], self.row_of[high]
        return batch

    def _top_up(self) -> int:
        """Fill the free places from the stream. Returns how many rows came."""
        rows, numbers = self._next_rows(len(self.row_of) - self.held)
        self._put(
            torch.arange(self.held, self.held + len(numbers), dtype=torch.int64, device="cpu"), rows, numbers
        )
        self.held += len(numbers)
        return len(numbers)

    def _put(self, where: Tensor, rows: list[Tensor], numbers: Tensor) -> None:
        if self.place is None and rows:
            self.place = torch.empty(len(self.row_of), self.source.d_in, dtype=rows[0].dtype, device="cpu")
        if self.place is not None and rows:
            self.place[where] = torch.cat(rows).to(self.place)
            self.row_of[where] = numbers

    def _next_rows(self, n: int) -> tuple[list[Tensor], Tensor]:
        """The next n finite rows of the pass, in pieces, and their numbers. There are fewer at the end of the pass."""
        first_row, skipped = self.next_row, self.skipped
        pieces: list[Tensor] = []
        numbers: list[Tensor] = []
        try:
            while n > 0:
                if self._chunk is None or len(self._chunk) == 0:
                    self._stream = self._stream or self.source.rows(self.next_row)
                    self._chunk = next(self._stream, None)
                    if self._chunk is None:
                        break
                rows, self._chunk = self._chunk[:n], self._chunk[n:]
                number = torch.arange(
                    self.next_row, self.next_row + len(rows), dtype=torch.int64, device="cpu"
                )
                self.next_row += len(rows)
                finite = rows.isfinite().all(dim=1)
                if not finite.all():
                    if self.nonfinite == "stop":
                        row = int(number[~finite][0])
                        way_out = "nonfinite = 'skip' (--nonfinite skip) drops such rows"
                        raise InputError(f"source: row {row} holds NaN or Inf; {way_out}")
                    self.skipped += int((~finite).sum())
                    rows, number = rows[finite], number[finite]
                pieces.append(rows)
                numbers.append(number)
                n -= len(rows)
        except BaseException:
            self.next_row, self.skipped, self._stream, self._chunk = first_row, skipped, None, None
            raise
        return pieces, torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64, device="cpu")

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers that restore the buffer exactly; with the rows themselves if they cannot be read again."""
        tensors = {"row_of": self.row_of[: self.held].clone()}
        if not self.source.random_access and self.place is not None:
            tensors["rows"] = self.place[: self.held].clone()
        numbers = {name: getattr(self, name) for name in COUNTERS}
        mark = self.source.mark(self.next_row)
        return tensors, numbers | ({"mark": mark} if mark else {})

    def close(self) -> None:
        """End the pass over the source, and with it the thread of one that reads ahead. The buffer can go on."""
        stream, self._stream, self._chunk = self._stream, None, None
        if isinstance(stream, Generator):
            stream.close()

    def load_state_dict(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        row_of = row_numbers(tensors, self.source)
        fits = len(row_of) <= len(self.row_of)
        check(fits, f"resume: expected at most capacity = {len(self.row_of)} rows, got {len(row_of)}")
        width, own = self.source.d_in, tensors.get("rows")
        got = None if own is None else list(own.shape)
        fits = self.source.random_access or got == [len(row_of), width]
        check(fits, f"resume: expected rows of shape {[len(row_of), width]}, got {got}")
        for name, value in counters(numbers, len(row_of), self.batch_size).items():
            setattr(self, name, value)
        self._stream = self._chunk = None
        self.source.go_on(numbers.get("mark", {}))
        self.held = len(row_of)
        rows = self.source.take(row_of) if self.source.random_access else tensors["rows"]
        self.place = torch.empty(len(self.row_of), self.source.d_in, dtype=rows.dtype, device="cpu")
        self.place[: self.held], self.row_of[: self.held] = rows, row_of
