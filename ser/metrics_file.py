"""``metrics.json`` of an evaluation: whether it is of today's weights, and what several of them have in common."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ser import checkpoints
from ser.errors import UserError
from ser.files import read_json, sha256_of

__all__ = ["commits_of", "current_figures", "highest", "is_known", "is_of_best", "is_of_parts", "readable"]

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
    good = good and is_of_parts(figures, path.parent)
    return figures if good and all(figures.get(name) == value for name, value in wanted.items()) else None


def is_of_parts(figures: Mapping[str, Any], folder: Path) -> bool:
    """Say whether pooled or averaged figures are of what their folds or members answer today.

    Runs that are gone, and figures that say nothing of their parts, are believed.

    Args:
        figures: of a ``metrics.json``.
        folder: in which it lies.
    """
    outputs = folder.parents[2]
    for fold in figures.get("folds") or []:
        run = outputs / fold["run"]
        if fold.get("checkpoint") and (run / checkpoints.BEST).is_file():
            own = dict(readable([run / "eval" / folder.name / "metrics.json"]))
            if not any(checkpoints.same(figures.get("checkpoint"), fold["checkpoint"]) for figures in own.values()):
                return False
    for member, sha256 in (figures.get("member_answers") or {}).items():
        if (outputs / member).is_dir():
            answers = outputs / member / "eval" / folder.name / "predictions.csv"
            if not answers.is_file() or sha256_of(answers) != sha256:
                return False
    return True


def readable(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and content of those ``metrics.json`` that this version of ser wrote."""
    for path in sorted(paths):
        with suppress(UserError):
            if is_known(figures := read_json(path)):
                yield path.parent, figures


def highest(lines: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the highest value of a name among lines of figures, or None where none has it."""
    return max((line[name] for line in lines if line.get(name) is not None), default=None)


def commits_of(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits of the code that trained some figures' runs, each once; earlier versions wrote none down."""
    return sorted({commit for line in lines for commit in line.get("commits", [])})
