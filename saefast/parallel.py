"""Several SAEs side by side on a CPU: each on a share of the threads, in a thread of its own.

A step is many short ops between which Python runs, so two SAEs on one thread each should finish sooner than one after the
other on two (not measured yet). What is computed depends on the threads that each has, not on how many run at once.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Map = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


@contextmanager
def side_by_side(workers: int) -> Iterator[Map]:
    """A function like `map`, in the given order, that runs `workers` calls at a time; torch.get_num_threads() is
    divided among them, and is the same number in this thread until the end."""
    threads = torch.get_num_threads()
    if workers <= 1:
        yield lambda function, items: [function(item) for item in items]
        return
    each = max(1, threads // workers)
    torch.set_num_threads(each)
    try:
        # torch keeps the number per thread: a new one has to be told
        with ThreadPoolExecutor(workers, "saefast", torch.set_num_threads, (each,)) as pool:
            yield lambda function, items: list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def workers_for(n: int, device: torch.device | str) -> int:
    """How many of n SAEs to have side by side: on a GPU one, whose kernels fill it."""
    return min(n, torch.get_num_threads()) if torch.device(device).type == "cpu" else 1
