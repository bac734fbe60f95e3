"""Predictions as text: a table for people, JSON lines, CSV, or the labels of an Audacity track."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only names: listing the formats costs no torch
    from ser.inference import Prediction

__all__ = ["FORMATS", "format_predictions"]

UNSURE = "unsure"  # stands for the label of an answer that has none (below the threshold, or silence), but in JSON


def format_predictions(predictions: Iterable[Prediction], labels: Sequence[str], form: str) -> Iterator[str]:
    """Yield the lines of predictions in one of ``FORMATS``, each as soon as its prediction is there.

    Args:
        predictions: in their order.
        labels: of the model.
        form: name of the format.
    """
    header, line = FORMATS[form]
    if header is not None:
        yield header(labels)
    for prediction in predictions:
        yield line(prediction)


def json_line(prediction: Prediction) -> str:
    """Return one JSON object; an answer without a label, below the threshold or of silence, has null."""
    content: dict[str, object] = {"file": prediction.source, "start": prediction.start, "end": prediction.end}
    if prediction.speaker:
        content["speaker"] = prediction.speaker
    content["label"] = prediction.label
    content["probabilities"] = {label: round(value, 6) for label, value in prediction.probabilities.items()}
    return json.dumps(content)


def csv_line(values: Sequence[object]) -> str:
    """Return one line of CSV without its end."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def csv_header(labels: Sequence[str]) -> str:
    """Return the header of the CSV."""
    return csv_line(["file", "start", "end", "speaker", "label", *(f"p_{label}" for label in labels)])


def csv_row(prediction: Prediction) -> str:
    """Return a prediction as CSV."""
    values = [f"{value:.6f}" for value in prediction.probabilities.values()]
    head = [prediction.source, prediction.start, prediction.end, prediction.speaker, prediction.label or UNSURE]
    return csv_line([*head, *values])


def table_header(labels: Sequence[str]) -> str:
    """Return the header of the table."""
    return f"{'label':<10} {'start':>8} {'end':>8}  " + " ".join(f"{label:>9}" for label in labels) + "  file"


def table_row(prediction: Prediction) -> str:
    """Return a prediction as a line of the table."""
    values = " ".join(f"{value:>9.3f}" for value in prediction.probabilities.values())
    label = prediction.label or UNSURE
    return f"{label:<10} {prediction.start:>8.2f} {prediction.end:>8.2f}  {values}  {prediction.source}"


def audacity_row(prediction: Prediction) -> str:
    """Return a prediction as a label of an Audacity track: File, Import, Labels."""
    label = prediction.label or UNSURE
    probability = max(prediction.probabilities.values())
    return f"{prediction.start:.6f}\t{prediction.end:.6f}\t{label} {probability:.2f}"


FORMATS: dict[str, tuple[Callable[[Sequence[str]], str] | None, Callable[[Prediction], str]]] = {
    "table": (table_header, table_row),
    "jsonl": (None, json_line),
    "csv": (csv_header, csv_row),
    "audacity": (None, audacity_row),
}
