"""Model x clips -> predictions -> figures; the one place where test figures are made."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import dist, metrics, plots, stats
from ser.batches import ClipReader
from ser.errors import UserError
from ser.features import Features
from ser.files import append_line, read_csv, write_csv, write_json
from ser.interfaces import Classifier
from ser.layers import normalises_by_speaker
from ser.metadata import Clip
from ser.progress import progress as progress_bar
from ser.samplers import bucketed
from ser.speakers import SpeakerPool

__all__ = ["Predictions", "count_scoring", "pool", "predict", "read_predictions", "score", "write_evaluation"]

BUDGET_SECONDS = 128.0  # padded sound of an evaluation batch


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
        shifted = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True)

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


@torch.inference_mode()
def predict(
    model: Classifier,
    features: Features,
    reader: ClipReader,
    clips: Sequence[Clip],
    precision: str = "float32",
    progress: bool = False,
    company: Sequence[Clip] | None = None,
) -> Predictions:
    """Run a model over whole clips, in batches of similar length; the order of ``clips`` is kept.

    A model that normalises embeddings by speaker sees those of all of ``company`` (by default ``clips``) before it
    answers. Several processes share the batches, and each returns all predictions.

    Raises:
        UserError: an input that cannot be read, or an answer that is not finite.
    """
    device = dist.device()
    was_training = model.training
    model.eval()
    rate = features.input_rate
    twice = normalises_by_speaker(model) and model.speakers_at == "embedding"
    asked = {clip.clip for clip in clips}
    heard = [*clips, *(clip for clip in company or () if clip.clip not in asked)] if twice else clips
    batches = bucketed([reader.source.length(clip) for clip in heard], round(BUDGET_SECONDS * rate))
    done: list[int] = []
    outputs: list[torch.Tensor] = []
    with progress_bar(None, "evaluate", len(heard), shown=progress) as bar:
        for rows in batches[dist.rank() :: dist.world_size()]:
            batch = reader.whole([heard[row] for row in rows]).to(device)
            inputs, lengths = features.frames(batch.inputs, batch.lengths)
            with dist.autocast(device, precision):
                out = model.embed(inputs, lengths) if twice else model(inputs, lengths, batch.speakers)
            done += rows
            outputs.append(out.double().cpu())
            bar.update(len(rows))
    answers = joined(done, outputs)
    if twice:
        place = {clip.clip: row for row, clip in enumerate(heard)}
        speakers = SpeakerPool(heard, lambda clip: answers[place[clip.clip]], None, reader.limit).of(clips)
        answers = model.classify(answers[: len(clips)].float().to(device), speakers.to(device)).double().cpu()
    logits = answers.numpy()
    model.train(was_training)
    bad = np.flatnonzero(~np.isfinite(logits).all(1)).tolist()
    if bad:
        raise UserError(f"clip '{clips[bad[0]].clip}': the model's answer is not finite; train again, lower train/lr")
    return Predictions(
        [clip.clip for clip in clips], [clip.speaker for clip in clips], [clip.emotion for clip in clips],
        reader.labels, logits,
    )  # fmt: skip


def joined(rows: list[int], outputs: list[torch.Tensor]) -> torch.Tensor:
    """Return the outputs of all processes in the order of the clips; ``rows`` are those of this process."""
    parts = dist.gathered((rows, torch.cat(outputs) if outputs else None))
    values = torch.cat([part for _, part in parts if part is not None])
    order = torch.tensor([row for where, _ in parts for row in where])
    return torch.empty_like(values).index_copy(0, order, values)


def score(predictions: Predictions) -> dict[str, Any]:
    """Return WA, UAR and macro-F1 with 95 % intervals over speakers, recalls and the confusion matrix.

    Where the predictions are restricted to shared labels, ``strict`` holds the figures in which an answer
    outside them is an error.
    """
    classes = len(predictions.labels)
    index = {label: number for number, label in enumerate(predictions.labels)}
    references = np.array([index[label] for label in predictions.references], dtype=np.int64)
    counts = metrics.confusion(references, predictions.answers, classes)
    speakers = np.array(predictions.speakers)
    per_speaker = stats.speaker_confusions(speakers, references, predictions.answers, classes)
    recall = metrics.recalls(counts)
    known = len(set(predictions.speakers) - {""})
    reason = stats.interval_reason(known) if "" not in predictions.speakers else "the speakers are unknown"
    result: dict[str, Any] = {
        **metrics.figures(counts),
        "ci95": dict.fromkeys(metrics.FIGURES) if reason else stats.speaker_intervals(per_speaker),
        "n_clips": len(references),
        "n_speakers": known,
        "labels": list(predictions.labels),
        "recall": {label: none_if_nan(value) for label, value in zip(predictions.labels, recall, strict=True)},
        "absent": [label for label, value in zip(predictions.labels, recall, strict=True) if np.isnan(value)],
        "confusion": counts.tolist(),
    }
    if reason:
        result["ci95_reason"] = reason
    if predictions.strict is not None:
        answers = np.array([index.get(label, classes) for label in predictions.strict], dtype=np.int64)
        strict = metrics.confusion(references, answers, classes + 1)  # the last column: outside the shared labels
        result["strict"] = {"wa": float(metrics.wa(strict)), "uar": float(metrics.uar(strict))}
    return result


def none_if_nan(value: float) -> float | None:
    """Return None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)


def write_evaluation(folder: Path, predictions: Predictions, about: Mapping[str, Any]) -> dict[str, Any]:
    """Score and write ``metrics.json``, ``predictions.csv`` and ``confusion.png``; return the metrics.

    Args:
        folder: ``<run>/eval/<corpus>-<scheme>-<part>``.
        predictions: of a part.
        about: protocol, tags and counts that stand beside the figures.
    """
    if not predictions.clips:
        raise UserError(f"{folder}: no clip to score")
    result = {**score(predictions), **about}
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["clip", "speaker", "label", "predicted", *(f"p_{label}" for label in predictions.labels)]
    rows, probabilities = [], predictions.probabilities
    for number in np.argsort(predictions.clips):
        row: dict[str, Any] = {
            "clip": predictions.clips[number],
            "speaker": predictions.speakers[number],
            "label": predictions.references[number],
            "predicted": predictions.labels[predictions.answers[number]],
        }
        rows.append(
            row | {f"p_{label}": f"{p:.8f}" for label, p in zip(predictions.labels, probabilities[number], strict=True)}
        )
    write_csv(folder / "predictions.csv", columns, rows)
    fold = "" if about["fold"] is None else f" fold {about['fold']}"
    title = f"{about['corpus']} {about['split_scheme']}{fold} {about['part']}: UAR {result['uar']:.3f}"
    title = "\n".join([title, " ".join(about["tags"])]) if about["tags"] else title
    plots.confusion(folder / "confusion.png", np.array(result["confusion"]), predictions.labels, title)
    write_json(folder / "metrics.json", result)
    return result


def read_predictions(path: Path) -> Predictions:
    """Read a ``predictions.csv`` back; logits are the logarithms of its probabilities.

    Raises:
        UserError: missing or malformed.
    """
    rows = [row for _, row in read_csv(path, ("clip", "speaker", "label", "predicted"))]
    if not rows:
        raise UserError(f"{path}: holds no predictions")
    labels = tuple(column[2:] for column in rows[0] if column.startswith("p_"))
    try:
        probabilities = np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows])
    except ValueError as error:
        raise UserError(f"{path}: a probability is not a number ({error}); score again: just eval RUN") from error
    return Predictions(
        [row["clip"] for row in rows], [row["speaker"] for row in rows], [row["label"] for row in rows],
        labels, np.log(probabilities.clip(1e-12)),
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


def count_scoring(run: Path, what: str) -> int:
    """Record that ``what`` (a test part or another corpus) was scored with this run; return how often so far."""
    path = run / "scorings.jsonl"
    append_line(path, json.dumps({"scored": what}))
    return path.read_text().splitlines().count(json.dumps({"scored": what}))
