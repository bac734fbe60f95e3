"""Figures from pooled predictions: WA, UAR, macro-F1 and weighted F1, from one confusion matrix.

WA (weighted accuracy) is plain accuracy. UAR (unweighted average recall, balanced accuracy) is the mean of
recalls over the classes that occur. Macro-F1 averages over the classes that occur among references or
answers, weighted F1 weighs them by their clips, as scikit-learn does. A confusion matrix is [..., C, C]: rows are
references, columns are answers.
"""

import numpy as np

__all__ = [
    "FIGURES",
    "confusion",
    "f1s",
    "figures",
    "macro_f1",
    "mean_of_present",
    "precisions",
    "ratio",
    "recalls",
    "uar",
    "wa",
    "weighted_f1",
]


def confusion(references: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Count int64 [C, C]: references in rows, answers in columns; both inputs are int [N] in 0..C-1."""
    cells = references.astype(np.int64) * classes + answers.astype(np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def wa(counts: np.ndarray) -> np.ndarray:
    """Return accuracy [...] of confusion matrices [..., C, C]; NaN where there are no clips."""
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def recalls(counts: np.ndarray) -> np.ndarray:
    """Return the recall of each class [..., C]; NaN where a class does not occur."""
    return ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def uar(counts: np.ndarray) -> np.ndarray:
    """Return the mean recall [...] over the classes that occur; NaN where there are no clips."""
    return mean_of_present(recalls(counts))


def precisions(counts: np.ndarray) -> np.ndarray:
    """Return the precision of each class [..., C]; NaN where a class is never answered."""
    return ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def f1s(counts: np.ndarray) -> np.ndarray:
    """Return the F1 of each class [..., C]; NaN where it occurs neither among references nor answers."""
    return ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 [...] over the classes that occur among references or answers."""
    return mean_of_present(f1s(counts))


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 [...], each class weighted by its clips; NaN where there are none."""
    clips = counts.sum(-1)
    return ratio((np.nan_to_num(f1s(counts)) * clips).sum(-1), clips.sum(-1))


FIGURES = {"wa": wa, "uar": uar, "macro_f1": macro_f1, "weighted_f1": weighted_f1}


def figures(counts: np.ndarray) -> dict[str, float]:
    """Return every figure of ``FIGURES`` for one confusion matrix [C, C]."""
    return {name: float(figure(counts)) for name, figure in FIGURES.items()}


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN instead of a warning where the denominator is zero."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=np.asarray(bottom) > 0)


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """Average over the last axis, leaving NaN (absent classes) out."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(-1), present.sum(-1))
