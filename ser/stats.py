"""Confidence intervals that resample speakers, the unit that a speaker-independent figure generalises over."""

import numpy as np

from ser import metrics

__all__ = ["DRAWS", "FEWEST_SPEAKERS", "interval_reason", "speaker_confusions", "speaker_intervals"]

DRAWS = 2000  # bootstrap draws
FEWEST_SPEAKERS = 8  # below this many speakers a percentile interval is too narrow to be believed
LEVEL = 0.95


def speaker_confusions(speakers: np.ndarray, references: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return one confusion matrix a speaker, int64 [S, C, C], speakers in sorted order."""
    names, index = np.unique(speakers, return_inverse=True)
    joint = (index * classes + references) * classes + answers
    return np.bincount(joint, minlength=len(names) * classes**2).reshape(len(names), classes, classes)


def interval_reason(speakers: int) -> str | None:
    """Say why there is no interval for this many speakers, or return None where there is one."""
    if speakers >= FEWEST_SPEAKERS:
        return None
    return f"{speakers} speakers, fewer than {FEWEST_SPEAKERS}: pool the folds of a cross-validation to get an interval"


def speaker_intervals(per_speaker: np.ndarray, seed: int = 0) -> dict[str, list[float] | None]:
    """Return the 95 % percentile bootstrap interval of each figure, resampling speakers with replacement.

    A class missing from a draw is left out of that draw's UAR, as it would be from a test part without it.
    The interval covers the choice of speakers, not the variation between training seeds.

    Args:
        per_speaker: confusion matrices [S, C, C] of ``speaker_confusions``.
        seed: of the draws.

    Returns:
        ``{"wa": [low, high], ...}``, or None for each figure below ``FEWEST_SPEAKERS`` speakers.
    """
    speakers = len(per_speaker)
    if interval_reason(speakers):
        return dict.fromkeys(metrics.FIGURES)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(speakers, np.full(speakers, 1 / speakers), size=DRAWS)  # [draws, S]
    classes = per_speaker.shape[-1]
    # Products of small counts are exact in float64, and BLAS makes 2000 draws one matrix product.
    drawn = (weights.astype(float) @ per_speaker.reshape(speakers, -1).astype(float)).reshape(-1, classes, classes)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        name: [float(edge) for edge in np.nanquantile(figure(drawn), tails)] for name, figure in metrics.FIGURES.items()
    }
