"""Confidence intervals that resample speakers, the unit that a speaker-independent figure generalises over."""

from collections.abc import Sequence

import numpy as np

from ser import metrics

__all__ = [
    "DRAWS",
    "FEWEST_SPEAKERS",
    "columns",
    "draws",
    "interval",
    "number",
    "paired_intervals",
    "permutation_p",
    "speaker_confusions",
    "too_few_speakers",
    "weighted",
]

DRAWS = 2000  # bootstrap draws
FEWEST_SPEAKERS = 8  # below this many speakers a percentile interval is too narrow to be believed
LEVEL = 0.95
EXACT_SPEAKERS = 14  # up to this many, all exchanges are tried


def speaker_confusions(speakers: np.ndarray, references: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return one confusion matrix a speaker, int64 [S, C, C], speakers in sorted order."""
    names, index = np.unique(speakers, return_inverse=True)
    joint = (index * classes + references) * classes + answers
    return np.bincount(joint, minlength=len(names) * classes**2).reshape(len(names), classes, classes)


def too_few_speakers(speakers: int) -> str | None:
    """Say why there is no interval for this many speakers, or return None where there is one."""
    if speakers >= FEWEST_SPEAKERS:
        return None
    return f"{speakers} speakers, fewer than {FEWEST_SPEAKERS}: pool the folds of a cross-validation to get an interval"


def draws(speakers: int, count: int, seed: int = 0) -> np.ndarray:
    """Return how often each draw takes each speaker, [1 + count, S]: first each once, then drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=count)
    return np.concatenate([np.ones((1, speakers)), drawn])


def interval(values: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval of draws [W], leaving NaN out; None where there is nothing to go by."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    return [float(edge) for edge in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def columns(name: str, value: float | None, interval: Sequence[float] | None) -> dict[str, float | None]:
    """Return a figure and the ends of its interval as columns of a table: ``name``, ``name_low``, ``name_high``."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def number(value: float) -> float | None:
    """Return a float, or None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)


def paired_intervals(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, list[float] | None]:
    """Return the 95 % percentile bootstrap interval of each figure's difference, second less first.

    Both were scored on the same clips; a draw takes the same speakers of both. A class missing from a draw is left
    out of that draw's UAR, as it would be from a test part without it. The interval covers the choice of speakers,
    not the variation between training seeds.

    Args:
        first, second: confusion matrices [S, C, C] of the same S speakers.
        seed: of the draws.

    Returns:
        ``{"wa": [low, high], ...}``, or None for each figure below ``FEWEST_SPEAKERS`` speakers.
    """
    speakers = len(first)
    if too_few_speakers(speakers):
        return dict.fromkeys(metrics.FIGURES)
    weights = draws(speakers, DRAWS, seed)[1:]
    one, other = weighted(first, weights), weighted(second, weights)
    return {name: interval(figure(other) - figure(one)) for name, figure in metrics.FIGURES.items()}


def permutation_p(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return the two-sided p-value of each figure's difference, under exchange of the two systems speaker by speaker.

    Exact up to ``EXACT_SPEAKERS`` speakers; above, of ``DRAWS`` random exchanges and the one that happened.
    """
    speakers = len(first)
    exact = speakers <= EXACT_SPEAKERS
    if exact:
        swapped = (np.arange(2**speakers)[:, None] >> np.arange(speakers)) & 1  # [2^S, S], the first as it is
    else:
        swapped = np.random.default_rng(seed).integers(0, 2, (DRAWS, speakers))
        swapped[0] = 0
    one = weighted(first, 1 - swapped) + weighted(second, swapped)
    other = weighted(second, 1 - swapped) + weighted(first, swapped)
    result = {}
    for name, figure in metrics.FIGURES.items():
        apart = np.abs(figure(other) - figure(one))
        result[name] = float(np.mean(apart >= apart[0] - 1e-12))
    return result


def weighted(per_speaker: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sums of confusion matrices [S, C, C] over speakers, for each row of weights [draws, S]."""
    classes = per_speaker.shape[-1]
    # Products of small counts are exact in float64, and BLAS makes all draws one matrix product.
    return (weights.astype(float) @ per_speaker.reshape(len(per_speaker), -1).astype(float)).reshape(
        -1, classes, classes
    )
