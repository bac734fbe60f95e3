"""Being asked to stop: Ctrl-C, SIGTERM and SIGUSR1 are met between two steps, where everything can be saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ser.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

__all__ = ["StopRequest", "stop_requests"]


@dataclass
class StopRequest:
    """Set by the signal handler, read after every step.

    Attributes:
        signal: number of the one that came; 0 for none.
    """

    signal: int = 0

    @property
    def status(self) -> int:
        """Exit status: Ctrl-C is a person's, the other signals are a scheduler's, which may start the run again."""
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_REQUEUE


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals into a request that a loop meets between two steps; a second Ctrl-C ends at once."""
    request = StopRequest()

    def handle(number: int, frame: object) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = request.signal or number

    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, handle) for number in asked}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
