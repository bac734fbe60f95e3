"""The table of what a model says of clips: its answers and probabilities, written, read back and joined."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np

from ser import calibration, stats
from ser.errors import UserError, some
from ser.files import read_csv, write_csv

__all__ = ["Predictions", "pool", "read_predictions", "write_predictions"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of N clips.

    Attributes:
        clips: name of each clip.
        speakers: speaker of each clip.
        references: reference label of each clip, one of ``labels``.
        labels: the C classes.
        logits: float64 [N, C]; log-probabilities up to a constant of each row.
        strict: the answer out of all the model's classes, where ``labels`` are only those it shares.
    """

    clips: list[str]
    speakers: list[str]
    references: list[str]
    labels: tuple[str, ...]
    logits: np.ndarray
    strict: list[str] | None = None

    @property
    def answers(self) -> np.ndarray:
        """Index of the most probable class, int [N]."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float64 [N, C]."""
        return np.exp(calibration.log_softmax(self.logits))

    @property
    def indices(self) -> np.ndarray:
        """Place of each reference in ``labels``, int [N]."""
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place[label] for label in self.references], dtype=np.int64)

    @property
    def confusions(self) -> np.ndarray:
        """A confusion matrix of each speaker, int64 [S, C, C], speakers in sorted order."""
        return stats.speaker_confusions(np.array(self.speakers), self.indices, self.answers, len(self.labels))

    def tempered(self, temperature: float) -> "Predictions":
        """Return the predictions with logits divided by a temperature; answers stay."""
        return replace(self, logits=self.logits / temperature)

    def rows(self, which: Sequence[int] | np.ndarray) -> "Predictions":
        """Return some of the clips, in this order."""
        strict = None if self.strict is None else [self.strict[row] for row in which]
        clips, speakers, references = (
            [column[row] for row in which] for column in (self.clips, self.speakers, self.references)
        )
        return Predictions(clips, speakers, references, self.labels, self.logits[which], strict)

    def mapped(self, labels: tuple[str, ...], mapping: Mapping[str, str]) -> "Predictions":
        """Return the predictions over other labels: classes that map to one are added, others are left out.

        Clips whose reference does not map are left out too. ``strict`` keeps the answer out of all classes.
        """
        kept = [row for row, reference in enumerate(self.references) if reference in mapping]
        columns = [[i for i, name in enumerate(self.labels) if mapping.get(name) == label] for label in labels]
        logits = self.logits[kept]
        merged = np.stack([np.logaddexp.reduce(logits[:, members], axis=1) for members in columns], axis=1)
        # The strict answer competes with the merged labels, so that it is right only where the restricted one is.
        outside = [i for i, name in enumerate(self.labels) if name not in mapping]
        every = np.concatenate([merged, logits[:, outside]], axis=1).argmax(1)
        names = [*labels, *(self.labels[i] for i in outside)]
        return Predictions(
            [self.clips[row] for row in kept],
            [self.speakers[row] for row in kept],
            [mapping[self.references[row]] for row in kept],
            labels,
            merged,
            [names[answer] for answer in every],
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write clip, speaker, label, answer and the probability of each class, sorted by clip."""
    columns = ["clip", "speaker", "label", "predicted", *(f"p_{label}" for label in predictions.labels)]
    answers, probabilities = predictions.answers, predictions.probabilities
    rows = (
        (
            predictions.clips[row], predictions.speakers[row], predictions.references[row],
            predictions.labels[answers[row]], *(f"{p:.9g}" for p in probabilities[row]),
        )
        for row in np.argsort(predictions.clips)
    )  # fmt: skip
    write_csv(path, columns, rows)


def read_predictions(path: Path) -> Predictions:
    """Read a ``predictions.csv`` back, sorted by clip; logits are the logarithms of its probabilities.

    Raises:
        UserError: missing or malformed.
    """
    table = read_csv(path, ("clip", "speaker", "label", "predicted"))
    rows = sorted((row for _, row in table), key=itemgetter("clip"))
    if not rows:
        raise UserError(f"{path}: holds no predictions")
    labels = tuple(column[2:] for column in rows[0] if column.startswith("p_"))
    if unknown := {row["label"] for row in rows} - set(labels):
        raise UserError(f"{path}: no column of probabilities for {some(sorted(unknown))}; score again: just eval RUN")
    try:
        probabilities = np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows])
    except ValueError as error:
        raise UserError(f"{path}: a probability is not a number ({error}); score again: just eval RUN") from error
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and probabilities.sum(1).all()):
        raise UserError(f"{path}: a probability is not a number from 0 to 1; score again: just eval RUN")
    if twice := [clip for clip, count in Counter(row["clip"] for row in rows).items() if count > 1]:
        raise UserError(f"{path}: clip '{twice[0]}' appears twice; score again: just eval RUN")
    return Predictions(
        [row["clip"] for row in rows], [row["speaker"] for row in rows], [row["label"] for row in rows],
        labels, np.log(probabilities.clip(1e-300)),
    )  # fmt: skip


def pool(predictions: Sequence[Predictions]) -> Predictions:
    """Join the out-of-fold predictions of a cross-validation.

    Raises:
        UserError: the folds have different labels, or a clip was scored twice.
    """
    labels = predictions[0].labels
    if any(other.labels != labels for other in predictions):
        raise UserError("the folds have different label sets and cannot be pooled")
    clips = [clip for fold in predictions for clip in fold.clips]
    twice = [clip for clip, count in Counter(clips).items() if count > 1]
    if twice:
        raise UserError(f"clip '{twice[0]}' is in the test part of two folds; the scheme is not a partition")
    return Predictions(
        clips,
        [speaker for fold in predictions for speaker in fold.speakers],
        [label for fold in predictions for label in fold.references],
        labels,
        np.concatenate([fold.logits for fold in predictions]),
    )
