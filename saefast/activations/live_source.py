"""Sources whose rows other threads produce while the trainer takes them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

from saefast.activations.sources import Source
from saefast.errors import InputError, check


class Closed(Exception):
    """Raised by `LiveSource.push` when nobody takes the rows any more. The producer should end then."""


class LiveSource(Source):
    """Rows that producer threads push while the trainer takes them. At most `max_rows` wait; then `push` waits.

    There is one pass, which `close` ends; `fail` makes the consumer raise the error of a producer. The rows of one
    producer keep their order, those of several mix as they come. The source cannot be read a second time: after a
    resume the rows in the buffer come from the checkpoint, and the producers go on with new ones.

    Args:
        timeout: seconds that the consumer waits for rows, and a producer for room, before InputError is raised.
    """

    def __init__(self, d_in: int, max_rows: int = 65_536, timeout: float = 600.0) -> None:
        check(max_rows >= 1, f"max_rows: expected a positive integer, got {max_rows}")
        self.d_in, self.max_rows, self.timeout = d_in, max_rows, timeout
        self._waiting: deque[Tensor] = deque()
        self._n_waiting = 0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def push(self, rows: Tensor) -> None:
        """Add rows [n, d_in], which must not be written to afterwards, and wait for room first. More than `max_rows` at
        once wait until no other rows do.

        Raises:
            InputError: another shape or dtype; no room within `timeout` seconds.
            Closed: the consumer has stopped.
        """
        ok = isinstance(rows, Tensor) and rows.ndim == 2 and rows.shape[1] == self.d_in
        got = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        check(ok, f"rows: expected a tensor [n, {self.d_in}], got {got}")
        check(rows.is_floating_point(), f"rows: expected a floating-point dtype, got {rows.dtype}")

        def may_go_on() -> bool:
            has_room = self._n_waiting == 0 or self._n_waiting + len(rows) <= self.max_rows
            return self._stopped or self._ended or has_room

        with self._changed:
            in_time = self._changed.wait_for(may_go_on, self.timeout)
            if self._stopped or self._ended:
                raise Closed("the consumer of the activations has stopped, or the source was closed")
            wanted = f"room for {len(rows)} rows within {self.timeout:g} s"
            check(in_time, f"rows: expected {wanted}, nobody took any")
            self._waiting.append(rows)
            self._n_waiting += len(rows)
            self._changed.notify_all()

    def close(self) -> None:
        """No more rows will come; those pushed are still delivered."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make the consumer raise InputError from `error`, after it has taken the rows already pushed."""
        with self._changed:
            self._error, self._ended = self._error or error, True
            self._changed.notify_all()

    def stop(self) -> None:
        """The consumer wants no more rows: producers that wait in `push` get `Closed`."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._n_waiting = 0
            self._changed.notify_all()

    def start(self, *producers: Callable[["LiveSource"], Any]) -> list[threading.Thread]:
        """Run each producer(self) in a thread. An error in one calls `fail`, the end of the last one calls `close`."""
        left = [len(producers)]

        def run(producer: Callable[["LiveSource"], Any]) -> None:
            try:
                with suppress(Closed):
                    producer(self)
            except BaseException as error:  # noqa: BLE001 (the consumer raises it)
                self.fail(error)
            with self._changed:
                left[0] -= 1
                last = left[0] == 0
            if last:
                self.close()

        threads = [threading.Thread(target=run, args=(producer,), daemon=True) for producer in producers]
        for thread in threads:
            thread.start()
        return threads

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        while True:
            with self._changed:
                done = lambda: self._waiting or self._ended or self._stopped
                # short waits, so that Ctrl-C has an effect
                limit, wanted = time.monotonic() + self.timeout, f"rows within {self.timeout:g} s"
                while not self._changed.wait_for(done, 0.1):
                    in_time = time.monotonic() <= limit
                    check(in_time, f"source: expected {wanted}, no producer pushed any")
                if not self._waiting:
                    if (error := self._error) is not None:
                        raise InputError(f"source: a producer of activations failed: {error!r}") from error
                    return
                rows = self._waiting.popleft()
                self._n_waiting -= len(rows)
                self._changed.notify_all()
            yield rows


class Background(Source):
    """The rows of `source` in the same order, read in another thread while the trainer works.

    With a `saefast.activations.lm.ModelSource` the language model runs while the SAE trains. At most `max_rows` rows wait.
    Resuming and reading again work as with `source`, and its errors are raised unchanged.
    """

    def __init__(self, source: Source, max_rows: int = 65_536, timeout: float = 600.0) -> None:
        self.source, self.max_rows, self.timeout = source, max_rows, timeout
        self.d_in, self.random_access = source.d_in, source.random_access

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        live = LiveSource(self.d_in, self.max_rows, self.timeout)

        def produce(live: LiveSource) -> None:
            for rows in self.source.rows(start):
                live.push(rows)

        threads = live.start(produce)
        try:
            yield from live.rows()
        except InputError as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise
        finally:
            live.stop()
            for thread in threads:
                thread.join(self.timeout)

    def take(self, index: Tensor) -> Tensor:
        return self.source.take(index)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def mark(self, row: int) -> dict[str, int]:
        return self.source.mark(row)

    def go_on(self, mark: dict[str, Any]) -> None:
        self.source.go_on(mark)
