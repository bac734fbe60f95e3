"""Pictures are drawn without a display, whole, and of the numbers that they were given."""

import numpy as np
import pytest
from PIL import Image

from ser import plots
from ser.errors import UserError


@pytest.fixture(autouse=True)
def _every_picture_is_drawn(monkeypatch):
    monkeypatch.setattr(plots, "save", plots.save.__wrapped__)


def ink(path) -> float:
    """Return the share of pixels of a PNG that are not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def test_a_confusion_matrix_shows_where_the_answers_are(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    plots.confusion(good, np.diag([5, 5, 5]), ("a", "b", "c"), "all right")
    plots.confusion(bad, np.roll(np.diag([5, 5, 5]), 1, axis=1), ("a", "b", "c"), "all right")
    assert ink(good) > 0.1
    assert good.read_bytes() != bad.read_bytes()


def test_a_confusion_matrix_may_have_an_absent_class(tmp_path):
    plots.confusion(tmp_path / "a.png", np.array([[3, 1], [0, 0]]), ("a", "b"), "no b")
    assert ink(tmp_path / "a.png") > 0.05


def test_curves_of_one_epoch_and_of_many(tmp_path):
    line = {"train/loss": 1.0, "step": 1}
    epochs = [
        {"epoch": n, "epoch/train_loss": 2 / n, "val/loss": 2.5 / n, "val/uar": 1 - 1 / n, "val/wa": 0.5}
        for n in range(1, 40)
    ]
    plots.curves(tmp_path / "one.png", [line, epochs[0]], "one")
    plots.curves(tmp_path / "many.png", [line, *epochs], "many")
    assert ink(tmp_path / "many.png") > ink(tmp_path / "one.png") > 0.01


def test_an_epoch_without_a_loss_is_a_gap(tmp_path):
    lines = [{"epoch": n, "epoch/train_loss": 1.0, "val/loss": 1.0, "val/uar": 0.5, "val/wa": 0.5} for n in range(1, 5)]
    del lines[1]["epoch/train_loss"], lines[2]["val/loss"]  # a log leaves out what is not finite
    plots.curves(tmp_path / "curves.png", lines, "gaps")
    assert ink(tmp_path / "curves.png") > 0.01


def test_a_histogram_has_a_panel_for_each_grouping(tmp_path):
    counts = {"part": {"train": [5, 3], "test": [1, 1]}}
    plots.histogram(tmp_path / "one.png", counts, ("a", "b"), "x")
    plots.histogram(tmp_path / "two.png", counts | {"sex": {"female": [3, 3]}}, ("a", "b"), "x")
    assert Image.open(tmp_path / "two.png").width > Image.open(tmp_path / "one.png").width


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plots.confusion(tmp_path / "file/a.png", np.eye(2, dtype=int), ("a", "b"), "x")
