"""Two Python threads that use one object of `saefast._C` at once."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from saefast import _C
from tests.faults.boundary_calls import Call, Random, normal, size, threads_and_isa


def twice(work: Callable[[], None], meanwhile: Callable[[], None] = lambda: None) -> None:
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()


def shared(rng: Random) -> Call:
    """One object, two threads: each call is made alone, or refused."""
    z, isa = normal(rng, B := size(rng), size(rng, 100)), threads_and_isa(rng)["isa"]
    which, most = str(rng.choice(["TopkBlock", "BatchTopk", "AboveBlock"])), max(1, z.shape[1])
    bounds = normal(rng, z.shape[1])

    def run(z: Any, bounds: Any) -> None:
        made = {"TopkBlock": (B, 3), "BatchTopk": (3, most), "AboveBlock": (B,)}[which]
        block, others = getattr(_C, which)(*made, isa), {"BatchTopk": (0, 0), "AboveBlock": (bounds,)}

        def feed() -> None:
            for _ in range(8):
                with contextlib.suppress(ValueError, TypeError):
                    block.feed(z, *others.get(which, ()))

        twice(feed)

    return Call(f"{which}, shared", run, {"z": z, "bounds": bounds}, lambda _: None)


def together(buffer: Any, timeout: Any) -> None:
    """Two threads take batches of one buffer, this one closes it."""

    def take() -> None:
        with contextlib.suppress(ValueError, TypeError, TimeoutError):
            for _ in range(3):
                buffer.next(timeout)

    twice(take, buffer.close)
