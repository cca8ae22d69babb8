"""SIGTERM and Ctrl-C end a run between two steps, after it was saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets, so that the loop ends between two steps; a second one ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python allows signal handlers in the main thread only
        return
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for caught in (signal.SIGINT, signal.SIGTERM):
        previous[caught] = signal.signal(caught, handle)
    try:
        yield stop
    finally:
        restore()
