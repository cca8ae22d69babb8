"""Progress of the stages, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int | None, unit: str, what: str) -> Iterator[Callable[[int], object]]:
    """A bar of tqdm, and what moves it on by so many."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, desc=what, unit_scale=True) as shown:
        yield shown.update
