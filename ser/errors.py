"""Mistakes that a user can fix: one clear line, exit status 2."""

import difflib
import errno
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_REQUEUE",
    "EXIT_USER",
    "Interrupted",
    "UserError",
    "closest",
    "first_line",
    "full_memory",
    "nearest",
    "some",
    "tool",
]

EXIT_USER = 2  # exit status for a user's mistake
EXIT_INTERRUPTED = 130  # exit status after Ctrl-C, as shells expect
CLOSE = 0.65  # of what difflib calls similar: typing errors lie above it, other words of the field below
HEARD_ONCE = 10.0  # seconds in which the main process ends the others
LESS_MEMORY = (
    "nvidia-smi shows who else uses the GPU; a training takes less with 'train/accumulate = 4', and with "
    "'tune/checkpointing = True' where an encoder trains; what was saved before is whole"
)
REFUSED = {  # by the system, and what to do: also where pathlib asks what a folder holds that may not be entered
    errno.EACCES: "give yourself permission to read (or write) it",
    errno.EPERM: "give yourself permission to read (or write) it",
    errno.ENAMETOOLONG: "expected a shorter name",
}
EXIT_REQUEUE = 75  # after SIGTERM or SIGUSR1, saved: "try again" of sysexits.h, for schedulers that requeue on a status


class Interrupted(Exception):
    """A command was asked to stop, and has saved what it needs to go on.

    Args:
        message: what to do next.
        status: of the process: ``EXIT_REQUEUE`` after a scheduler's signal.
    """

    def __init__(self, message: str, status: int = EXIT_INTERRUPTED):
        super().__init__(message)
        self.status = status


class UserError(Exception):
    """A mistake of the user's: says the file, the value, what was expected and what to do next."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return which of ``known`` names was meant, empty where none is close.

    That is one which differs by a typing error, or holds the whole of the name (``lr``: ``train/lr``).
    """
    names = sorted(set(known))
    longer = [each for each in names if each.endswith(f"/{name}") or each.startswith(f"{name}_")]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=CLOSE) or longer), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the closest of ``known`` names, or a list of a few of them."""
    names = sorted(set(known))
    if close := closest(name, names):
        return f"; did you mean '{close}'?"
    return f"; known: {some(names, 12)}" if names else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """Name the first ``limit`` items and count the rest, for one-line messages."""
    listed = [str(item) for item in items]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """Return the beginning of what an exception says, its kind where it says nothing: libraries' own may be pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def full_memory(error: RuntimeError) -> str:
    """Return what an error says of a GPU's full memory, empty for any other error.

    By its text: TorchScript makes a plain ``RuntimeError`` of torch's own, with a page before what it said.
    """
    said = re.search("CUDA out of memory[^\n]*", str(error))
    return said[0][:150].rstrip(".") if said else ""


def tool(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wrap a tool's ``main``: a ``UserError`` becomes one line on stderr and exit status 2.

    So do missing permissions and a full GPU. An interruption has the status that it brings, Ctrl-C before anything can
    be saved 130, an output that nobody reads any more 1.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            status = main()
            sys.stdout.flush()  # here, where a reader that went away can still be met
            sys.exit(status)
        except UserError as error:
            if os.environ.get("RANK", "0") != "0":
                time.sleep(HEARD_ONCE)  # what all processes meet, the main one says, and the others are ended
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USER)
        except BrokenPipeError:  # the reader of our output went away, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can the flush at exit meet it
            sys.exit(1)
        except OSError as error:
            if error.errno not in REFUSED or error.filename is None:
                raise
            name = str(error.filename)
            name = name if len(name) < 200 else f"{name[:100]}..."
            print(f"error: {name}: {error.strerror}; {REFUSED[error.errno]}", file=sys.stderr)
            sys.exit(EXIT_USER)
        except RuntimeError as error:
            if not (said := full_memory(error)):
                raise
            print(f"error: {said}; {LESS_MEMORY}", file=sys.stderr)
            sys.exit(EXIT_USER)
        except Interrupted as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(stopped)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)

    return run
