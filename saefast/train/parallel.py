"""Several SAEs side by side: on a CPU each in a thread with a share of the cores, on a GPU each on a stream.

A step is many short ops between which Python runs, and the kernels of a small SAE fill only a part of a GPU. What is
computed depends on the threads that each has, not on how many run at once.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch

Map = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
STREAMS = 4


@contextmanager
def side_by_side(workers: int, device: torch.device | str) -> Iterator[Map]:
    """A function like `map`, in the given order, that runs `workers` calls at a time.

    On a CPU torch.get_num_threads() is divided among them, and is the same number in this thread until the end. On a GPU
    the calls are made one after another and only their kernels overlap: what the current stream did before comes before
    all of them, what it does afterwards comes after.
    """
    if workers <= 1:
        yield lambda function, items: [function(item) for item in items]
    elif torch.device(device).type == "cuda":
        yield _on_streams([torch.cuda.Stream(device) for _ in range(workers)])
    else:
        threads = torch.get_num_threads()
        each = max(1, threads // workers)
        torch.set_num_threads(each)
        try:
            # torch keeps the number per thread: a new one has to be told
            with ThreadPoolExecutor(workers, "saefast", torch.set_num_threads, (each,)) as pool:
                yield lambda function, items: list(pool.map(function, items))
        finally:
            torch.set_num_threads(threads)


def _on_streams(streams: list[torch.cuda.Stream]) -> Map:
    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        current, found = torch.cuda.current_stream(streams[0].device), []
        for stream in streams:
            stream.wait_stream(current)
        for item, stream in zip(items, cycle(streams)):
            with torch.cuda.stream(stream):
                found.append(function(item))
        for stream in streams:
            current.wait_stream(stream)
        return found

    return run


def workers_for(n: int, device: torch.device | str) -> int:
    """How many of n SAEs to have side by side."""
    return min(n, STREAMS if torch.device(device).type == "cuda" else torch.get_num_threads())
