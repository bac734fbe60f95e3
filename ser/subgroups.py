"""Does a model serve everyone alike? Figures by who speaks, what is said, how strongly and how long."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser import metrics, stats
from ser.errors import UserError, first_line
from ser.files import read_csv
from ser.metadata import Clip
from ser.predictions import Predictions
from ser.scoring import draws_of

__all__ = ["COLUMNS", "GROUPINGS", "read_subgroups", "subgroups"]

FIGURES = ("uar", "uar_low", "uar_high", "wa", "wa_low", "wa_high")
COLUMNS = ("grouping", "group", "clips", "speakers", *FIGURES)
AGES, SECONDS = (30, 45, 60), (2.0, 3.0, 4.0)  # edges of the bands
FEWEST_CLIPS, FEWEST_PEOPLE = 20, 4  # a smaller group is listed and takes no part in gaps


def band(value: float, edges: Sequence[float], unit: str) -> str:
    """Return the band that a value lies in, such as ``30-45 years``."""
    place = sum(value >= edge for edge in edges)
    if place == 0:
        return f"below {edges[0]:g} {unit}"
    return f"from {edges[-1]:g} {unit}" if place == len(edges) else f"{edges[place - 1]:g}-{edges[place]:g} {unit}"


def age_band(age: str) -> str:
    """Return the band of an age in years; what is no number stands for itself."""
    return band(float(age), AGES, "years") if re.fullmatch(r"\d+(\.\d+)?", age) else age


# What a clip does not tell is an empty text, and stands in no group.
GROUPINGS: dict[str, Callable[[Clip], str]] = {
    "sex": lambda clip: clip.sex,
    "age": lambda clip: age_band(clip.age),
    "race": lambda clip: clip.race,
    "ethnicity": lambda clip: clip.ethnicity,
    "intensity": lambda clip: clip.intensity,
    "statement": lambda clip: clip.statement,
    "length": lambda clip: band(clip.seconds, SECONDS, "s"),
    "speaker": lambda clip: clip.speaker,
}


def read_subgroups(path: Path) -> list[dict[str, Any]]:
    """Read ``subgroups.csv``: rows of ``COLUMNS``, figures as floats or None.

    Raises:
        UserError: as ``files.read_csv``, or a figure that is no number.
    """
    rows = []
    for line, row in read_csv(path, COLUMNS):
        try:
            rows.append(row | {name: float(row[name]) if row[name] else None for name in FIGURES})
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {first_line(error)}; score the run again") from error
    return rows


def subgroups(predictions: Predictions, clips: Sequence[Clip]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row a group, and for each grouping the gap of UAR between its best and its worst group.

    Args:
        predictions: of a part.
        clips: its clips, in any order, others among them.

    Returns:
        Rows of ``COLUMNS``; intervals are None below eight speakers, of a gap below eight in either group. Gaps as
        ``{"sex": {"best": ..., "worst": ..., "gap": ..., "ci95": ...}}``, the interval being that of the difference
        of these two groups over draws of speakers; it does not know that the two were picked for being far apart.
        Classes that a group lacks are left out of its UAR. Speakers have rows and no gap.
    """
    known = {clip.clip: clip for clip in clips}
    speakers, references, answers = np.array(predictions.speakers), predictions.indices, predictions.answers
    everyone, classes = np.unique(speakers), len(predictions.labels)
    weights = draws_of(predictions)
    rows, gaps = [], {}
    for grouping, group_of in GROUPINGS.items():
        groups = np.array([group_of(known[clip]) for clip in predictions.clips])
        names = sorted(set(groups.tolist()) - {""})
        if len(names) < 2:
            continue
        uars: dict[str, np.ndarray] = {}
        enough: dict[str, bool] = {}
        for name in names:
            inside = groups == name
            own = np.unique(speakers[inside])
            per_speaker = np.zeros((len(everyone), classes, classes))
            per_speaker[np.searchsorted(everyone, own)] = stats.speaker_confusions(
                speakers[inside], references[inside], answers[inside], classes
            )
            drawn = stats.weighted(per_speaker, weights)
            figures = {"uar": metrics.uar(drawn), "wa": metrics.wa(drawn)}
            row: dict[str, Any] = {
                "grouping": grouping,
                "group": name,
                "clips": int(inside.sum()),
                "speakers": len(own),
            }
            enough[name] = len(own) >= stats.FEWEST_SPEAKERS
            for figure, values in figures.items():
                interval = stats.interval(values[1:]) if enough[name] else None
                row |= stats.columns(figure, stats.number(values[0]), interval)
            rows.append(row)
            if inside.sum() >= FEWEST_CLIPS and len(own) >= FEWEST_PEOPLE:
                uars[name] = figures["uar"]
        if grouping != "speaker" and len(uars) > 1:
            best, worst = (pick(uars, key=lambda name: uars[name][0]) for pick in (max, min))
            apart = uars[best] - uars[worst]
            interval = stats.interval(apart[1:]) if enough[best] and enough[worst] else None
            gaps[grouping] = {"best": best, "worst": worst, "gap": stats.number(apart[0]), "ci95": interval}
    return rows, gaps
