"""Probabilities against scikit-learn, a plain loop, and what a temperature must do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from ser import calibration


def made_up(clips=400, classes=5, sharp=1.0, seed=0):
    """Return logits [N, C] that are right when ``sharp`` is 1, and references drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((clips, classes))
    probabilities = np.exp(calibration.log_softmax(logits))
    references = np.array([rng.choice(classes, p=row) for row in probabilities])
    return logits * sharp, references


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_and_brier_are_scikit_learns(seed):
    logits, references = made_up(seed=seed)
    probabilities = np.exp(calibration.log_softmax(logits))
    labels = list(range(5))
    assert calibration.nll(probabilities, references).mean() == pytest.approx(
        log_loss(references, probabilities, labels=labels), abs=1e-12
    )
    assert calibration.brier(probabilities, references).mean() == pytest.approx(
        brier_score_loss(references, probabilities, labels=labels, scale_by_half=False), abs=1e-12
    )


def test_calibration_error_is_that_of_a_plain_loop():
    logits, references = made_up(sharp=2.0)
    probabilities = np.exp(calibration.log_softmax(logits))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == references
    expected = 0.0
    for number in range(calibration.BINS):
        low, high = number / calibration.BINS, (number + 1) / calibration.BINS
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    groups = np.arange(len(references)) % 7
    sums = calibration.confidence_sums(probabilities, references, groups, 7)
    assert calibration.ece(sums.sum(0)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_a_temperature_brings_back_what_was_sharpened(sharp):
    logits, references = made_up(4000, sharp=sharp)
    assert calibration.temperature(logits, references) == pytest.approx(sharp, rel=0.06)


@given(st.integers(0, 2**31), st.floats(0.2, 5.0))
def test_a_temperature_is_the_best_there_is_and_changes_no_answer(seed, sharp):
    logits, references = made_up(60, sharp=sharp, seed=seed)
    best = calibration.temperature(logits, references)

    def loss(temperature):
        return calibration.nll(np.exp(calibration.log_softmax(logits / temperature)), references).mean()

    assert all(loss(best) <= loss(other) + 1e-9 for other in (1.0, best * 1.02, best / 1.02))
    assert (logits.argmax(1) == (logits / best).argmax(1)).all()


@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_stays_within_bounds_where_likelihood_has_no_peak(right):
    references = np.array([0, 1, 0, 1])
    logits = 3 * np.eye(2)[references if right else 1 - references]
    low, high = calibration.TEMPERATURES
    found = calibration.temperature(logits, references)
    assert low <= found < 0.2 if right else found == pytest.approx(high)


def test_risk_over_all_clips_is_the_share_of_errors_and_the_surest_come_first():
    logits, references = made_up()
    probabilities = np.exp(calibration.log_softmax(logits))
    coverage, risk = calibration.risk_coverage(probabilities, references)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx((probabilities.argmax(1) != references).mean())
    half = np.argsort(-probabilities.max(1))[: len(risk) // 2]
    assert risk[len(half) - 1] == pytest.approx((probabilities[half].argmax(1) != references[half]).mean())
    assert risk[len(half) - 1] < risk[-1]


def test_the_bins_are_those_that_the_documents_name():
    assert calibration.BINS == 15
