"""How often a test part was scored: every scoring of a run leaves a line in its folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ser.files import append_line
from ser.splits import evaluation_name

__all__ = ["count_scoring", "parts_scored", "scorings_now", "times_scored"]

SCORINGS = "scorings.jsonl"  # in a run's folder


def count_scoring(run: Path, what: str, how: str = "") -> int:
    """Record that a run was scored on ``what``; return how often so far, in whatever way.

    Args:
        run: folder of the run.
        what: a test part or another corpus, such as ``ravdess-emobox6-test``.
        how: what tells this way of scoring it from the plain one, such as ``-robustness``.
    """
    append_line(run / SCORINGS, json.dumps({"scored": what + how}))
    return times_scored(run, what)


def times_scored(run: Path, what: str) -> int:
    """Return how often a run was scored on a test part or another corpus, in whatever way."""
    begins = tuple(json.dumps({"scored": what})[:-2] + end for end in ('"}', "-"))
    return sum(line.startswith(begins) for line in recorded(run).splitlines())


def recorded(run: Path) -> str:
    """Return what was recorded of a run, as text: a line that a crash cut short is no JSON."""
    path = run / SCORINGS
    return path.read_text(errors="replace") if path.is_file() else ""


def scorings_now(run: Path, metrics: Mapping[str, Any]) -> int:
    """Return how often a run was scored on what a ``metrics.json`` is of, also since that was written."""
    if metrics["part"] not in ("test", "all"):
        return 0
    what = evaluation_name(metrics["corpus"], metrics["split_scheme"], metrics["part"])
    return max(metrics["test_scorings"] or 0, times_scored(run, what))


def parts_scored(run: Path) -> set[tuple[str, str]]:
    """Return corpus and scheme of every test part that a run was scored on, in whatever way."""
    return set(re.findall(r'"scored": "(\w+?)-(.+?)-test[-"]', recorded(run)))
