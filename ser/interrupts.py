"""Being asked to stop: Ctrl-C and SIGTERM are met between two steps, where everything can be saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Interrupted", "StopRequest", "stop_requests"]


class Interrupted(Exception):
    """Training was asked to stop; its last checkpoint holds everything that resuming needs."""


@dataclass
class StopRequest:
    """Set by the signal handler, read after every step."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request that a loop meets between two steps; a second one ends at once."""
    request = StopRequest()

    def handle(number: int, frame: object) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
