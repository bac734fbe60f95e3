"""Figures against scikit-learn, also where classes are absent."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from ser import metrics

CLASSES = 5
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=30)


@settings(deadline=None, database=None, max_examples=60)
@given(pairs=PAIRS)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_figures_are_those_of_scikit_learn(pairs):
    references, answers = np.array(pairs).T
    counts = metrics.confusion(references, answers, CLASSES)
    np.testing.assert_array_equal(counts, confusion_matrix(references, answers, labels=range(CLASSES)))
    figures = metrics.figures(counts)
    assert figures["wa"] == pytest.approx(accuracy_score(references, answers), abs=1e-12)
    assert figures["uar"] == pytest.approx(balanced_accuracy_score(references, answers), abs=1e-12)
    for average in ("macro", "weighted"):
        assert figures[f"{average}_f1"] == pytest.approx(f1_score(references, answers, average=average), abs=1e-12)


def test_a_worked_example():
    """Four angry (3 right, 1 answered sad), two sad (1 right, 1 answered angry), happy absent."""
    counts = metrics.confusion(np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 2, 2, 0]), 3)
    assert counts.tolist() == [[3, 0, 1], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_array_equal(metrics.recalls(counts), [0.75, np.nan, 0.5])
    assert metrics.figures(counts) == pytest.approx(
        {"wa": 4 / 6, "uar": 0.625, "macro_f1": (0.75 + 0.5) / 2, "weighted_f1": 4 / 6}
    )


def test_classes_that_are_only_answered_lower_f1_but_not_uar():
    counts = metrics.confusion(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 4)
    figures = metrics.figures(counts)
    assert figures["uar"] == pytest.approx((0.5 + 1) / 2)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_confusion_takes_small_integer_types():
    references = np.array([19, 19, 3], dtype=np.int8)
    counts = metrics.confusion(references, references, 20)
    assert counts[19, 19] == 2
    assert counts.sum() == 3


def test_many_matrices_at_once_give_what_each_gives():
    stack = np.random.default_rng(1).integers(0, 4, size=(6, 2, 3, 3))
    for name, figure in metrics.FIGURES.items():
        together = figure(stack)
        assert together.shape == (6, 2)
        for place in np.ndindex(6, 2):
            assert together[place] == pytest.approx(metrics.figures(stack[place])[name], abs=1e-15, nan_ok=True)


def test_no_clips_give_nan_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = metrics.figures(np.zeros((3, 3), dtype=np.int64))
    assert np.isnan(list(figures.values())).all()
