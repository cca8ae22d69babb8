"""Live activations: rows that other threads produce while the trainer takes them."""

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
    """Raised by `LiveSource.push` once nobody takes the rows any more: the producer should end."""


class LiveSource(Source):
    """Rows that producer threads push while the trainer pulls; at most `max_rows` wait, then `push` does.

    `close` ends the one pass there is, `fail` lets the consumer raise the producer's error. Rows of one producer
    keep their order; those of several mix as they come. It cannot be read again: after a resume the rows in the
    buffer come from the checkpoint, and the producers go on with new ones.

    Args:
        timeout: seconds that the consumer waits for rows before it raises, and a producer for room.
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
        """rows [n, d_in], any n; not to be written to afterwards. Waits for room; a larger n waits for an empty queue.

        Raises:
            InputError: another shape or dtype; no room within `timeout` seconds.
            Closed: the consumer has stopped.
        """
        ok = isinstance(rows, Tensor) and rows.ndim == 2 and rows.shape[1] == self.d_in
        got = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        check(ok, f"rows: expected a tensor [n, {self.d_in}], got {got}")
        check(rows.is_floating_point(), f"rows: expected a floating-point dtype, got {rows.dtype}")

        def room() -> bool:
            return (
                self._stopped
                or self._ended
                or self._n_waiting == 0
                or self._n_waiting + len(rows) <= self.max_rows
            )

        with self._changed:
            in_time = self._changed.wait_for(room, self.timeout)
            if self._stopped or self._ended:
                raise Closed("the consumer of the activations has stopped, or the source was closed")
            check(
                in_time,
                f"rows: expected room for {len(rows)} rows within {self.timeout:g} s, nobody took any",
            )
            self._waiting.append(rows)
            self._n_waiting += len(rows)
            self._changed.notify_all()

    def close(self) -> None:
        """No more rows will come; those pushed are still delivered."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """The consumer raises InputError from `error`, after the rows already pushed."""
        with self._changed:
            self._error, self._ended = self._error or error, True
            self._changed.notify_all()

    def stop(self) -> None:
        """The consumer wants no more: producers waiting in `push` get `Closed`."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._n_waiting = 0
            self._changed.notify_all()

    def start(self, *producers: Callable[["LiveSource"], Any]) -> list[threading.Thread]:
        """Run each producer(self) in a thread; an error of one is `fail`, the end of the last is `close`."""
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
                # short waits, so that Ctrl-C is heard
                limit = time.monotonic() + self.timeout
                while not self._changed.wait_for(done, 0.1):
                    late = time.monotonic() > limit
                    check(
                        not late, f"source: expected rows within {self.timeout:g} s, no producer pushed any"
                    )
                if not self._waiting:
                    if self._error is not None:
                        raise InputError(
                            f"source: a producer of activations failed: {self._error!r}"
                        ) from self._error
                    return
                rows = self._waiting.popleft()
                self._n_waiting -= len(rows)
                self._changed.notify_all()
            yield rows


class Background(Source):
    """`source`, read in a thread of its own while the trainer works: the same rows in the same order.

    For a `saefast.activations.lm.ModelSource` the language model runs while the SAE trains; at most `max_rows` rows wait.
    Resuming and reading again work as with `source`; its errors arrive unchanged.
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
