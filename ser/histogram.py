"""Class histograms: how many clips of each class there are, by part, sex and speaker."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ser import plots
from ser.errors import UserError
from ser.files import write_csv
from ser.labels import label_set
from ser.losses import class_weights
from ser.metadata import Clip, Table
from ser.protocol import Protocol
from ser.splits import PARTS, schemes, split_path

__all__ = ["advice", "by_protocol", "counts_by", "text", "write"]

NO_PART = "none"  # of a clip that the scheme does not hold
GROUPINGS: dict[str, Callable[[Clip], str]] = {
    "part": lambda clip: clip.split or NO_PART,
    "sex": lambda clip: clip.sex or "unknown",
    "speaker": lambda clip: clip.speaker or "unknown",
}
BALANCED = 1.5  # largest over smallest class; up to here weights change next to nothing
SKEWED = 5.0  # from here on focal loss or a balanced sampler is worth a try


def by_protocol(protocol: Protocol) -> Table:
    """Return the clips at hand with the parts and classes of a protocol, those that it leaves out without a part.

    Clips without a class, on which raters tie, are not among them; and no clip has a part before the split is made.

    Raises:
        UserError: as ``Protocol``, or no clip of its classes.
    """
    if protocol.extra:
        raise UserError("data/extra: a histogram is of one corpus; leave it out, and count the other by its own name")
    clips = protocol.labelled(protocol.table.clips, "test")
    if not clips:
        raise UserError(f"{protocol.corpus}: no clip of {', '.join(protocol.labels)} is at hand; choose other classes")
    made = split_path(protocol.corpus, protocol.scheme).is_file()
    members = protocol.members if made or protocol.scheme not in schemes(protocol.corpus) else {}
    parts = {clip.clip: part for part, each in members.items() for clip in each}
    return replace(protocol.table, clips=tuple(replace(clip, split=parts.get(clip.clip, "")) for clip in clips))


def counts_by(table: Table, grouping: str) -> dict[str, list[int]]:
    """Return group -> clips of each class [C], for a grouping of ``GROUPINGS``; parts come in their order."""
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip in table.clips:
        members[GROUPINGS[grouping](clip)].append(clip)
    order = [part for part in (*PARTS, NO_PART) if part in members] if grouping == "part" else sorted(members)
    return {name: class_counts(members[name], table.corpus) for name in order}


def advice(counts: np.ndarray) -> str:
    """Say what the imbalance of class counts [C] speaks for."""
    present = counts[counts > 0]
    ratio = present.max() / present.min()
    if ratio <= BALANCED:
        return f"imbalance {ratio:.2f}: nearly balanced; neither class weights nor focal loss are called for"
    if ratio < SKEWED:
        return f"imbalance {ratio:.2f}: try \"train/class_weights = 'inverse'\"; focal loss is hardly needed"
    return f"imbalance {ratio:.2f}: use \"train/class_weights = 'effective'\" or try \"train/loss = 'focal'\""


def text(table: Table, scheme: str = "holdout") -> str:
    """Return the table for people, classes in columns, groups in rows; ``scheme`` names what divides it."""
    labels = label_set(table.corpus)
    width = max(9, *(len(label) for label in labels)) + 1
    header = f"{'':<14}" + "".join(f"{label:>{width}}" for label in labels) + f"{'all':>{width}}"

    def row(name: str, values: list[int]) -> str:
        return f"{name:<14}" + "".join(f"{value:>{width}}" for value in values) + f"{sum(values):>{width}}"

    total = np.array(class_counts(table.clips, table.corpus))
    lines = [f"{table.corpus}: {len(table.clips)} clips", header, row("all", total.tolist())]
    for grouping in GROUPINGS:
        lines.append(f"by {grouping}" + (f" ({scheme})" if grouping == "part" else ""))
        lines += [row(f"  {name}", values) for name, values in counts_by(table, grouping).items()]
    inverse = class_weights(torch.tensor(counts_by(table, "part").get("train", total.tolist())), "inverse")
    weights = "".join(f"{weight:>{width}.3f}" for weight in inverse.tolist())
    return "\n".join([*lines, f"{'inverse weight':<14}{weights}", advice(total)])


def write(table: Table, csv_path: Path, png_path: Path, scheme: str = "holdout") -> None:
    """Write every count as CSV (grouping, group, classes) and draw parts, of a named scheme, and sexes as PNG."""
    labels = label_set(table.corpus)
    rows = [
        {"grouping": grouping, "group": name, **dict(zip(labels, values, strict=True))}
        for grouping in GROUPINGS
        for name, values in counts_by(table, grouping).items()
    ]
    write_csv(csv_path, ("grouping", "group", *labels), rows)
    panels = {grouping: counts_by(table, grouping) for grouping in ("part", "sex")}
    plots.histogram(png_path, panels, labels, f"{scheme}: {len(table.clips)} clips")


def class_counts(clips: Iterable[Clip], corpus: str) -> list[int]:
    """Count the clips of each class, in the order of the corpus's label set."""
    counts = Counter(clip.emotion for clip in clips)
    return [counts[label] for label in label_set(corpus)]
