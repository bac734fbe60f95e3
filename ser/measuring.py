"""Comparisons: two things measured in turn in one run, as a ratio of medians."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from ser.files import PROJECT

__all__ = ["Row", "compare", "limited", "table", "timed", "timed_python"]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: is measured, with its unit.
        ours, peer: medians over the repeats.
        ratio: ours / peer.
        better: ``higher`` or ``lower``, of the ratio.
        goal: for the ratio.
        met: the goal is reached.
    """

    what: str
    ours: float
    peer: float
    ratio: float
    better: str
    goal: float
    met: bool


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes the call and returns its seconds."""

    def seconds() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return seconds


def timed_python(*arguments: object) -> Callable[[], float]:
    """Return a function that runs Python with arguments, in the checkout, and returns its seconds."""
    command = [sys.executable, *map(str, arguments)]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True, cwd=PROJECT))


def compare(
    what: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    goal: float,
    better: str = "lower",
    repeats: int = 9,
) -> Row:
    """Measure two things in turn, after a warm-up of each, and compare their medians."""
    ours(), peer()
    mine, others = [], []
    for _ in range(repeats):
        mine.append(ours())
        others.append(peer())
    ratio = statistics.median(mine) / statistics.median(others)
    met = ratio <= goal if better == "lower" else ratio >= goal
    return Row(what, statistics.median(mine), statistics.median(others), ratio, better, goal, met)


def limited(what: str, ours: float, allowed: float) -> Row:
    """Return a row that compares a figure with what is allowed."""
    return Row(what, ours, allowed, ours / allowed, "lower", 1.0, ours <= allowed)


def table(rows: list[Row]) -> str:
    """Return the rows for people."""
    lines = [f"{'':<60}{'ours':>9}{'peer':>9}{'ratio':>8}{'goal':>9}"]
    for row in rows:
        sign = "<=" if row.better == "lower" else ">="
        verdict = "met" if row.met else "missed"
        lines.append(
            f"{row.what:<60}{row.ours:>9.3f}{row.peer:>9.3f}{row.ratio:>8.3f}{sign:>4}{row.goal:<5.2f} {verdict}"
        )
    return "\n".join(lines)
