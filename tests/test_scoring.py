"""All figures and their intervals: equal to scikit-learn's, drawn over speakers, and fast."""

import json
import time

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from ser import stats
from ser.errors import UserError
from ser.files import write_csv
from ser.metadata import Clip
from ser.predictions import Predictions, read_predictions, write_predictions
from ser.scoring import score, sums_of, validation_figures
from ser.subgroups import COLUMNS, age_band, read_subgroups, subgroups

LABELS = ("angry", "calm", "disgust", "happy", "sad")


def made_up(clips=300, speakers=10, skill=1.5, seed=0, labels=LABELS):
    """Return predictions of which about half are right."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, len(labels), clips)
    logits = rng.standard_normal((clips, len(labels))) + skill * np.eye(len(labels))[references]
    logits[::7] = logits[::7].round()  # some ties
    return Predictions(
        [f"clip{number:05}" for number in range(clips)], [f"s{number % speakers:02}" for number in range(clips)],
        [labels[reference] for reference in references], labels, logits,
    )  # fmt: skip


def clip_of(name: str, speaker: str, **fields) -> Clip:
    """Return a row of metadata."""
    names = "path emotion intensity split corpus sex age race ethnicity statement repetition"
    texts = dict.fromkeys(names.split(), "")
    numbers = {"seconds": 2.5, "sample_rate": 16000, "channels": 1}
    return Clip(**(texts | numbers | {"clip": name, "speaker": speaker} | fields))


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_classes_are_scikit_learns(seed):
    predictions = made_up(seed=seed)
    metrics, references = score(predictions), predictions.indices
    each = precision_recall_fscore_support(references, predictions.answers, labels=range(5))
    for number, label in enumerate(LABELS):
        found = metrics["classes"][label]
        for name, values in zip(("precision", "recall", "f1", "clips"), each, strict=True):
            assert found[name] == pytest.approx(values[number], abs=1e-12)
        alone = roc_auc_score(references == number, predictions.probabilities[:, number])
        assert found["auc"] == pytest.approx(alone, abs=1e-12)
    whole = roc_auc_score(references, predictions.probabilities, multi_class="ovr", average="macro")
    assert metrics["auc"] == pytest.approx(whole, abs=1e-12)


def test_a_draw_gives_what_the_drawn_clips_give():
    """A speaker that is drawn twice counts as if each of its clips appeared twice."""
    predictions = made_up(120, 8)
    drawn = stats.draws(8, 5)[1:]
    together = sums_of(predictions).figures(drawn)
    for row, times in enumerate(drawn.astype(int)):
        which = [n for n, speaker in enumerate(predictions.speakers) for _ in range(times[int(speaker[1:])])]
        alone = score(predictions.rows(which))
        for name, values in together.items():
            assert values[row] == pytest.approx(alone[name], abs=1e-12), name


def test_every_figure_has_an_interval_that_holds_it():
    metrics = score(made_up(600, 12))
    for name, interval in metrics["ci95"].items():
        assert interval[0] < interval[1]
        assert interval[0] <= metrics[name] <= interval[1] or name == "ece", name
    for values in metrics["classes"].values():
        assert all(low <= values[name] <= high for name, (low, high) in values["ci95"].items())
    json.dumps(metrics, allow_nan=False)


def test_too_few_or_unknown_speakers_leave_no_interval_but_a_reason():
    few = score(made_up(speakers=7))
    assert set(few["ci95"].values()) == {None}
    assert "7 speakers" in few["ci95_reason"]
    unknown = score(made_up(speakers=1).rows(range(20)))
    assert "1 speakers" in unknown["ci95_reason"]


def test_a_class_that_is_absent_or_never_answered_is_said_and_not_hidden():
    predictions = made_up(labels=LABELS).rows(range(100))
    present = [row for row in range(100) if predictions.references[row] != "calm"]
    logits = predictions.logits.copy()
    logits[:, LABELS.index("sad")] = -9
    some = Predictions(predictions.clips, predictions.speakers, predictions.references, LABELS, logits).rows(present)
    metrics = score(some)
    assert metrics["absent"] == ["calm"]
    assert metrics["classes"]["calm"]["recall"] is None
    assert metrics["classes"]["calm"]["auc"] is None
    assert metrics["classes"]["sad"]["precision"] is None
    assert metrics["classes"]["sad"]["recall"] == 0
    json.dumps(metrics, allow_nan=False)


def test_a_temperature_changes_likelihoods_alone():
    predictions = made_up(600, 12)
    metrics = score(predictions, predictions.tempered(3.0))
    assert set(metrics["calibrated"]) == {"nll", "brier", "ece", "ci95", "reliability"}
    assert metrics["calibrated"]["nll"] == pytest.approx(score(predictions.tempered(3.0))["nll"])
    assert metrics["calibrated"]["nll"] != pytest.approx(metrics["nll"])


def test_two_thousand_draws_over_the_whole_of_crema_d_take_less_than_a_few_seconds():
    """The aim is a second on an idle machine; this one may be busy, so the bound only catches a loop over draws."""
    predictions = made_up(7442, 91, labels=(*LABELS, "neutral"))
    started = time.perf_counter()
    score(predictions)
    assert time.perf_counter() - started < 10


def test_training_sees_the_same_figures():
    predictions = made_up()
    quick, full = validation_figures(predictions), score(predictions)
    assert all(quick[name] == pytest.approx(full[name], abs=1e-12) for name in ("uar", "wa", "macro_f1"))
    assert quick["loss"] == pytest.approx(full["nll"])
    assert quick["confusion"] == full["confusion"]
    assert quick["recall"] == pytest.approx({label: full["classes"][label]["recall"] for label in LABELS})


def test_predictions_are_read_back_as_they_were_written(tmp_path):
    predictions = made_up(40)
    write_predictions(tmp_path / "predictions.csv", predictions)
    back = read_predictions(tmp_path / "predictions.csv")
    assert (back.clips, back.speakers, back.references) == (
        predictions.clips,
        predictions.speakers,
        predictions.references,
    )
    np.testing.assert_allclose(back.probabilities, predictions.probabilities, rtol=1e-6)


# Subgroups


def test_groups_have_the_figures_of_their_clips_and_gaps_their_difference():
    predictions = made_up(480, 16)
    clips = [
        clip_of(name, speaker, sex=("female", "male")[int(speaker[1:]) % 2], age=str(20 + 3 * int(speaker[1:])))
        for name, speaker in zip(predictions.clips, predictions.speakers, strict=True)
    ]
    rows, gaps = subgroups(predictions, clips)
    by_group = {(row["grouping"], row["group"]): row for row in rows}
    assert set(gaps) == {"sex", "age"}
    for sex in ("female", "male"):
        own = [n for n, clip in enumerate(clips) if clip.sex == sex]
        row, alone = by_group["sex", sex], score(predictions.rows(own))
        assert (row["clips"], row["speakers"]) == (len(own), 8)
        assert (row["uar"], row["wa"]) == (pytest.approx(alone["uar"]), pytest.approx(alone["wa"]))
        assert row["uar_low"] < row["uar"] < row["uar_high"]
    gap = gaps["sex"]
    assert gap["gap"] == pytest.approx(by_group["sex", gap["best"]]["uar"] - by_group["sex", gap["worst"]]["uar"])
    assert gap["ci95"][0] < gap["gap"] < gap["ci95"][1]
    assert {row["group"] for row in rows if row["grouping"] == "age"} == {
        "below 30 years", "30-45 years", "45-60 years", "from 60 years",
    }  # fmt: skip
    assert by_group["age", "from 60 years"]["uar_low"] is None  # too few speakers
    assert "from 60 years" not in (gaps["age"]["best"], gaps["age"]["worst"])
    assert sum(row["grouping"] == "speaker" for row in rows) == 16


def test_statements_and_lengths_are_groups():
    predictions = made_up(480, 16)
    clips = [
        clip_of(name, speaker, statement=("01", "02")[number % 2], seconds=(1.5, 2.0, 3.9, 4.0)[number % 4])
        for number, (name, speaker) in enumerate(zip(predictions.clips, predictions.speakers, strict=True))
    ]
    rows, gaps = subgroups(predictions, clips)
    counts = {(row["grouping"], row["group"]): row["clips"] for row in rows if row["grouping"] != "speaker"}
    assert counts == {
        ("statement", "01"): 240, ("statement", "02"): 240, ("length", "below 2 s"): 120, ("length", "2-3 s"): 120,
        ("length", "3-4 s"): 120, ("length", "from 4 s"): 120,
    }  # fmt: skip
    assert set(gaps) == {"statement", "length"}


def test_an_age_that_is_no_number_stands_for_itself():
    assert [age_band(age) for age in ("29.5", "30", "71", "thirties", "nan", "")] == [
        "below 30 years", "30-45 years", "from 60 years", "thirties", "nan", "",
    ]  # fmt: skip


def test_malformed_predictions_are_one_line(tmp_path):
    path = tmp_path / "predictions.csv"
    for header, row in (("", ""), (",p_sad", ",1")):
        path.write_text(f"clip,speaker,label,predicted{header}\na,s,angry,sad{row}\n")
        with pytest.raises(UserError, match="no column of probabilities for angry; score again"):
            read_predictions(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-0.5", ""])
def test_probabilities_that_are_none_are_refused(tmp_path, value):
    path = tmp_path / "predictions.csv"
    path.write_text(f"clip,speaker,label,predicted,p_sad,p_calm\na,s,sad,sad,0.5,0.5\nb,s,sad,sad,{value},0.5\n")
    with pytest.raises(UserError, match="a probability is not a number"):
        read_predictions(path)


def test_a_clip_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("clip,speaker,label,predicted,p_sad\na,s,sad,sad,1\na,s,sad,sad,1\n")
    with pytest.raises(UserError, match="clip 'a' appears twice"):
        read_predictions(path)


def test_what_clips_do_not_tell_is_in_no_group_and_a_tiny_group_makes_no_gap():
    predictions = made_up(200, 10)
    clips = [
        clip_of(name, speaker, intensity="" if n % 2 else "strong" if n > 5 else "normal")
        for n, (name, speaker) in enumerate(zip(predictions.clips, predictions.speakers, strict=True))
    ]
    rows, gaps = subgroups(predictions, clips)
    assert {row["group"]: row["clips"] for row in rows if row["grouping"] == "intensity"} == {"normal": 3, "strong": 97}
    assert gaps == {}


def test_subgroups_are_read_back_and_a_spoilt_figure_is_one_line(tmp_path):
    path = tmp_path / "subgroups.csv"
    good = ("sex", "female", 9, 4, 0.5, "", "", 0.25, 0.2, 0.3)
    write_csv(path, COLUMNS, [good])
    (row,) = read_subgroups(path)
    assert (row["uar"], row["uar_low"], row["wa_high"]) == (0.5, None, 0.3)
    write_csv(path, COLUMNS, [good, ("sex", "male", 9, 4, "half", "", "", 0.25, 0.2, 0.3)])
    with pytest.raises(UserError, match=r"subgroups\.csv, line 3: .*'half'; score the run again"):
        read_subgroups(path)
