"""Are a model's probabilities right? Likelihood, Brier score, calibration error, temperature, risk and coverage.

Shapes: N clips, C classes, B bins. ``probabilities`` are float [N, C], ``references`` int [N].
"""

import numpy as np

__all__ = ["BINS", "brier", "confidence_sums", "ece", "log_softmax", "nll", "risk_coverage", "temperature"]

BINS = 15  # of equal width over the confidence
TEMPERATURES = (0.05, 20.0)  # a fit stays between these
SMALLEST = 1e-12  # a probability of zero counts as this


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of logits [N, C]."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def nll(probabilities: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return each clip's negative log-likelihood [N], nats."""
    own = probabilities[np.arange(len(references)), references]
    return -np.log(own.clip(SMALLEST))


def brier(probabilities: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return each clip's Brier score [N], the squared distance to the reference, 0 to 2 (Brier 1950)."""
    own = probabilities[np.arange(len(references)), references]
    return np.square(probabilities).sum(1) - np.square(own) + np.square(1 - own)


def confidence_sums(probabilities: np.ndarray, references: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return clips, sum of confidence and right answers of each group's bins [count, B, 3]; ``groups`` is int [N]."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == references
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    cells = groups * BINS + bins
    columns = (np.ones(len(cells)), confidence, right.astype(float))
    sums = [np.bincount(cells, column, count * BINS).reshape(count, BINS) for column in columns]
    return np.stack(sums, -1)


def ece(sums: np.ndarray) -> np.ndarray:
    """Return the expected calibration error [...] of ``confidence_sums`` [..., B, 3] (Naeini et al. 2015).

    Mean distance of confidence and accuracy over bins, weighted by their clips.
    """
    return np.abs(sums[..., 1] - sums[..., 2]).sum(-1) / sums[..., 0].sum(-1)


def temperature(logits: np.ndarray, references: np.ndarray) -> float:
    """Return the temperature that logits are to be divided by for the highest likelihood (Guo et al. 2017).

    The likelihood is concave in the inverse temperature, so Newton's method finds its only peak.
    """
    inverse, low, high = 1.0, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    own = logits[np.arange(len(references)), references]
    for _ in range(50):
        probabilities = np.exp(log_softmax(inverse * logits))
        mean = (probabilities * logits).sum(1)
        slope = (own - mean).mean()
        curvature = ((probabilities * np.square(logits)).sum(1) - np.square(mean)).mean()
        step = slope / max(curvature, SMALLEST)
        # Far from the peak Newton's step may leap over it: at most a factor of two at a time.
        inverse, before = float(np.clip(inverse + step, max(low, inverse / 2), min(high, inverse * 2))), inverse
        if abs(inverse - before) < 1e-10:
            break
    return 1 / inverse


def risk_coverage(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage [N] and risk [N]: the share of errors among the n most confident answers (El-Yaniv 2010)."""
    order = np.argsort(-probabilities.max(1), kind="stable")
    wrong = (probabilities.argmax(1) != references)[order]
    answered = np.arange(1, len(wrong) + 1)
    return answered / len(wrong), np.cumsum(wrong) / answered
