"""Every figure of a set of predictions, with intervals that resample speakers.

All figures are made of sums by speaker, so that a draw of speakers is a weight for each of them and 2000 draws are
matrix products. The figure itself is the draw that takes every speaker once. S speakers, C classes, B bins, W draws.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ser import calibration, metrics, stats
from ser.predictions import Predictions

__all__ = ["LIKELIHOODS", "Sums", "draws_of", "interval_reason", "paired", "score", "sums_of", "validation_figures"]

LIKELIHOODS = ("nll", "brier", "ece")  # what a temperature changes
CURVE = 20  # points of the curve of risk and coverage that are kept


@dataclass(frozen=True)
class Sums:
    """What figures are made from.

    Attributes:
        counts: confusion matrices [S, C, C].
        likelihood: sums of negative log-likelihood and Brier score [S, 2].
        bins: ``calibration.confidence_sums`` [S, B, 3].
        pairs: for each class [C, S, S], pairs of a clip of the class (by speaker) and one of another (by speaker)
            that the class's probability tells apart; a tie counts a half.
        members: clips of each class [C, S].
        clips: of each speaker [S].
    """

    counts: np.ndarray
    likelihood: np.ndarray
    bins: np.ndarray
    pairs: np.ndarray
    members: np.ndarray
    clips: np.ndarray

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each figure of each draw [W]; ``weights`` is [W, S]."""
        counts = stats.weighted(self.counts, weights)
        clips = weights @ self.clips
        likelihood = weights @ self.likelihood / clips[:, None]
        return {
            **{name: figure(counts) for name, figure in metrics.FIGURES.items()},
            "auc": metrics.mean_of_present(self.auc(weights)),
            "nll": likelihood[:, 0],
            "brier": likelihood[:, 1],
            "ece": calibration.ece(np.tensordot(weights, self.bins, 1)),
        }

    def class_figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return precision, recall, F1 and AUC of each class [W, C]; NaN where a draw does not define it."""
        counts = stats.weighted(self.counts, weights)
        return {
            "precision": metrics.precisions(counts),
            "recall": metrics.recalls(counts),
            "f1": metrics.f1s(counts),
            "auc": self.auc(weights),
        }

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the area under the curve of each class against the rest [W, C]; NaN where one of both is missing."""
        told = np.stack([((weights @ pairs) * weights).sum(1) for pairs in self.pairs], 1)
        inside = weights @ self.members.T
        outside = (weights @ self.clips)[:, None] - inside
        return metrics.ratio(told, inside * outside)


def sums_of(predictions: Predictions) -> Sums:
    """Add up by speaker what figures are made from."""
    references, probabilities = predictions.indices, predictions.probabilities
    names, speaker = np.unique(np.array(predictions.speakers), return_inverse=True)
    classes, count = len(predictions.labels), len(names)
    losses = (calibration.nll(probabilities, references), calibration.brier(probabilities, references))
    pairs, members = np.zeros((classes, count, count)), np.zeros((classes, count))
    for label in range(classes):
        own = references == label
        members[label] = np.bincount(speaker[own], minlength=count)
        for other in range(count):
            rest = np.sort(probabilities[~own & (speaker == other), label])
            below, upto = (np.searchsorted(rest, probabilities[own, label], side) for side in ("left", "right"))
            pairs[label, :, other] = np.bincount(speaker[own], (below + upto) / 2, count)
    return Sums(
        predictions.confusions,
        np.stack([np.bincount(speaker, loss, count) for loss in losses], 1),
        calibration.confidence_sums(probabilities, references, speaker, count),
        pairs,
        members,
        np.bincount(speaker, minlength=count).astype(float),
    )


def interval_reason(predictions: Predictions) -> str | None:
    """Say why these predictions have no interval, or return None where they have one."""
    if "" in predictions.speakers:
        return "the speakers are unknown"
    return stats.too_few_speakers(len(set(predictions.speakers)))


def draws_of(predictions: Predictions) -> np.ndarray:
    """Return how often each draw takes each speaker [W, S], the first each once; none follows where no interval is."""
    return stats.draws(len(set(predictions.speakers)), 0 if interval_reason(predictions) else stats.DRAWS)


def paired(
    predictions: Predictions, first: np.ndarray, second: np.ndarray
) -> tuple[dict[str, list[float] | None], dict[str, float | None]]:
    """Return ``stats.paired_intervals`` and ``stats.permutation_p`` of two systems, None where there are none.

    Args:
        predictions: of one of them; speakers that are unknown can be neither drawn nor exchanged.
        first, second: confusion matrices [S, C, C] of their speakers.
    """
    none = dict.fromkeys(metrics.FIGURES)
    intervals = none if interval_reason(predictions) else stats.paired_intervals(first, second)
    return intervals, none if "" in predictions.speakers else {**stats.permutation_p(first, second)}


def score(predictions: Predictions, tempered: Predictions | None = None) -> dict[str, Any]:
    """Return every figure with its 95 % interval over speakers.

    Args:
        predictions: of a part. Restricted to shared labels they have ``strict`` figures too, in which an answer
            outside them is an error.
        tempered: the same after the temperature that was fitted on validation; for what it changes.

    Returns:
        ``wa uar macro_f1 weighted_f1 auc nll brier ece`` and ``ci95`` of each (None, with ``ci95_reason``, where there
        is none), ``classes`` with the same for each class, ``confusion``, ``absent`` classes, ``reliability`` (clips,
        mean confidence and accuracy of each bin), ``risk_coverage``, and ``calibrated``.
    """
    sums = sums_of(predictions)
    reason = interval_reason(predictions)
    weights = draws_of(predictions)
    by_class = sums.class_figures(weights)
    absent = [label for label, clips in zip(predictions.labels, sums.members.sum(1), strict=True) if not clips]
    result: dict[str, Any] = {
        **with_intervals(sums.figures(weights)),
        "n_clips": len(predictions.clips),
        "n_speakers": len(set(predictions.speakers) - {""}),
        "labels": list(predictions.labels),
        "classes": {
            label: {
                "clips": int(sums.members[number].sum()),
                **with_intervals({name: values[:, number] for name, values in by_class.items()}),
            }
            for number, label in enumerate(predictions.labels)
        },
        "absent": absent,
        "confusion": sums.counts.sum(0).tolist(),
        "reliability": reliability(sums),
        "risk_coverage": risk_coverage(predictions),
    }
    if reason:
        result["ci95_reason"] = reason
    if tempered is not None:
        after = sums_of(tempered)
        changed = {name: values for name, values in after.figures(weights).items() if name in LIKELIHOODS}
        result["calibrated"] = {**with_intervals(changed), "reliability": reliability(after)}
    if predictions.strict is not None:
        result["strict"] = with_intervals(strict_figures(predictions, weights))
    return result


def strict_figures(predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return WA and UAR of each draw [W], an answer outside the labels being an error."""
    classes = len(predictions.labels)
    place = {label: number for number, label in enumerate(predictions.labels)}
    answers = np.array([place.get(label, classes) for label in predictions.strict or ()], dtype=np.int64)
    per_speaker = stats.speaker_confusions(np.array(predictions.speakers), predictions.indices, answers, classes + 1)
    counts = stats.weighted(per_speaker, weights)  # the last column: outside the shared labels
    return {"wa": metrics.wa(counts), "uar": metrics.uar(counts)}


def with_intervals(figures: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return each figure, the first of its draws [W], and ``ci95``: the interval of the others."""
    values: dict[str, Any] = {name: stats.number(draws[0]) for name, draws in figures.items()}
    return values | {"ci95": {name: stats.interval(draws[1:]) for name, draws in figures.items()}}


def reliability(sums: Sums) -> list[list[float]]:
    """Return clips, mean confidence and accuracy of each bin that holds clips."""
    bins = sums.bins.sum(0)
    return [[count, confidence / count, right / count] for count, confidence, right in bins.tolist() if count]


def risk_coverage(predictions: Predictions) -> dict[str, Any]:
    """Return some points of the curve and the area under all of it."""
    coverage, risk = calibration.risk_coverage(predictions.probabilities, predictions.indices)
    places = np.unique(np.linspace(0, len(risk) - 1, CURVE + 1).round().astype(int)[1:])
    return {"coverage": coverage[places].tolist(), "risk": risk[places].tolist(), "area": float(risk.mean())}


def validation_figures(predictions: Predictions) -> dict[str, Any]:
    """Return what training looks at after an epoch: figures without intervals, recalls, mean loss, confusion."""
    references, labels = predictions.indices, predictions.labels
    counts = metrics.confusion(references, predictions.answers, len(labels))
    recalls = dict(zip(labels, metrics.recalls(counts), strict=True))
    return {
        **metrics.figures(counts),
        "loss": float(calibration.nll(predictions.probabilities, references).mean()),
        "recall": {label: float(value) for label, value in recalls.items() if not np.isnan(value)},
        "confusion": counts.tolist(),
    }
