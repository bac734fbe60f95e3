"""``metrics.json`` of an evaluation: whether it is of today's weights, and what several of them have in common."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ser import checkpoints
from ser.errors import UserError
from ser.files import read_json

__all__ = ["commits_of", "current_figures", "highest", "is_known", "is_of_best"]

KNOWN = {"classes", "gaps", "part", "reliability", "tags"}  # keys that only this version's metrics.json has


def is_known(figures: Any) -> bool:
    """Say whether this version of ser wrote a ``metrics.json``."""
    return isinstance(figures, dict) and figures.keys() >= KNOWN


def is_of_best(figures: Any, checkpoint: Mapping[str, Any]) -> bool:
    """Say whether figures are of a finished run's best weights and their temperature."""
    return (
        is_known(figures)
        and "unfinished" not in figures["tags"]
        and checkpoints.is_of(figures.get("checkpoint"), checkpoint)
        and figures.get("temperature") == checkpoint.get("temperature", 1.0)
    )


def current_figures(folder: Path, evaluation: str, **wanted: Any) -> dict[str, Any] | None:
    """Return the metrics of an evaluation on disk; None where it need be made again.

    Args:
        folder: of a run, of whose best weights it is to be; or of an ensemble or cross-validation, which has none.
        evaluation: its name.
        wanted: values that the metrics must have.

    Raises:
        UserError: a damaged checkpoint.
    """
    path, best = folder / "eval" / evaluation / "metrics.json", folder / checkpoints.BEST
    try:
        figures = read_json(path)
    except UserError:
        return None
    good = is_of_best(figures, checkpoints.load(best)) if best.is_file() else is_known(figures)
    return figures if good and all(figures.get(name) == value for name, value in wanted.items()) else None


def highest(lines: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the highest value of a name among lines of figures, or None where none has it."""
    return max((line[name] for line in lines if line.get(name) is not None), default=None)


def commits_of(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits of the code that trained some figures' runs, each once; earlier versions wrote none down."""
    return sorted({commit for line in lines for commit in line.get("commits", [])})
