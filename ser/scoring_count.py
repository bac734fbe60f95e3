"""How often a test part was scored: every scoring of a run leaves a line in its folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ser.files import append_line, read_lines
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
    return sum(each == what or each.startswith(f"{what}-") for each in recorded(run))


def recorded(run: Path) -> list[str]:
    """Return what was recorded of a run, in order."""
    return [str(line.get("scored", "")) for line in read_lines(run / SCORINGS)]


def scorings_now(run: Path, metrics: Mapping[str, Any]) -> int:
    """Return how often a run was scored on what a ``metrics.json`` is of, also since that was written."""
    if metrics["part"] not in ("test", "all"):
        return 0
    what = evaluation_name(metrics["corpus"], metrics["split_scheme"], metrics["part"])
    return max(metrics["test_scorings"] or 0, times_scored(run, what))


def parts_scored(run: Path) -> set[tuple[str, str]]:
    """Return corpus and scheme of every test part that a run was scored on, in whatever way."""
    found = (re.match(r"(\w+?)-(.+?)-test(-|$)", each) for each in recorded(run))
    return {(match[1], match[2]) for match in found if match}
