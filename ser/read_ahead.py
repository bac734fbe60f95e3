"""Making what comes next, in threads, while this is in use."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ser.progress import cores

__all__ = ["map_ahead", "prefetch", "timed"]

T = TypeVar("T")
R = TypeVar("R")

READERS = 4  # threads that read ahead; what they call lets go of Python's lock


def map_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` in order, while a few threads work on the items that come next.

    No process is forked, since one that is forked while others run may never wake up.
    """
    workers = min(READERS, cores())
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield ``items`` while a thread makes the next ones; an error of the thread is raised here."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)


def timed(items: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Yield (item, seconds that it was waited for)."""
    iterator = iter(items)
    while True:
        asked = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item, time.perf_counter() - asked
