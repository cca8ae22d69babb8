"""One function for many items in threads, for requests that wait for a server."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], n: int) -> list[Result]:
    """`function` of each item, in their order, n at once. After an error no other item begins, those under way come to their end
    (what they answer was paid for), and the error of the first item that has one is raised."""
    if n == 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(n, len(items))) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # if all are done, there is none to cancel
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures if not future.cancelled()]
