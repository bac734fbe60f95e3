"""Two runs on the same clips: figures that are those of each, flips that are counted, and what cannot be compared."""

import json

import numpy as np
import pytest
from conftest import command, one_error_line

from ser import comparing
from ser.errors import UserError
from ser.files import read_csv, write_json
from ser.predictions import Predictions, write_predictions
from ser.scoring import score

LABELS = ("angry", "happy", "sad")


def predictions(seed: int, skill: float, speakers: int = 9, labels=LABELS) -> Predictions:
    rng = np.random.default_rng(1)
    count = speakers * 12
    references = rng.integers(0, 3, count)
    logits = np.random.default_rng(seed).standard_normal((count, 3)) + skill * np.eye(3)[references]
    return Predictions(
        [f"clip{number:03}" for number in range(count)], [f"s{number % speakers}" for number in range(count)],
        [labels[reference] for reference in references], labels, logits,
    )  # fmt: skip


def write(home, name: str, made: Predictions, label: str = "demo-holdout-val", tags=()):
    folder = home / "outputs" / name
    write_predictions(folder / "eval" / label / "predictions.csv", made)
    known = {"classes": {}, "gaps": {}, "reliability": [], "part": "val", "tags": list(tags), "clips_missing": 0}
    write_json(folder / "eval" / label / "metrics.json", known)
    (folder / "run.gin").write_text("")
    return folder


def test_figures_are_those_of_each_and_flips_add_up(home):
    one, other = predictions(1, 0.5), predictions(2, 2.0)
    write(home, "one", one)
    write(home, "other", other)
    folder, result = comparing.compare("one", "other", "val")
    for side, made in (("first", one), ("second", other)):
        scored = score(made)
        for name, figure in result["figures"].items():
            assert figure[side] == pytest.approx(scored[name])
    uar = result["figures"]["uar"]
    assert uar["difference"] == pytest.approx(uar["second"] - uar["first"])
    assert uar["ci95"][0] < uar["difference"] < uar["ci95"][1]
    assert uar["p"] < 0.05
    assert result["won"] - result["lost"] == round(result["figures"]["wa"]["difference"] * result["n_clips"])
    rows = [row for _, row in read_csv(folder / "flips.csv", ("clip", "first", "second"))]
    assert len(rows) == result["won"] + result["lost"]
    assert all((row["first"] == row["label"]) != (row["second"] == row["label"]) for row in rows)
    assert json.loads((folder / "comparison.json").read_text()) == result


def test_what_is_compared_keeps_its_tags(home):
    write(home, "one", predictions(1, 0.5))
    write(home, "other", predictions(2, 2.0), tags=["speaker-normalised", "speakers-seen"])
    folder, result = comparing.compare("one", "other", "val")
    assert (result["first_tags"], result["second_tags"]) == ([], ["speaker-normalised", "speakers-seen"])
    first, second, *_ = comparing.table(folder, result).splitlines()
    assert first == "first   one"
    assert second == "second  other  [speaker-normalised]  [speakers-seen]"


def test_figures_of_an_earlier_ser_are_not_compared(home):
    for name, seed in (("one", 1), ("other", 2)):
        folder = write(home, name, predictions(seed, 1.0))
    for foreign in ({"recall": {}, "tags": []}, {"classes": {}}, None, []):
        write_json(folder / "eval/demo-holdout-val/metrics.json", foreign)
        with pytest.raises(UserError, match="other: demo-holdout-val was scored before the run was finished, or by an"):
            comparing.compare("one", "other", "val")


def test_a_cross_validation_has_no_part_of_its_own_to_score(home):
    write(home, "one", predictions(1, 1.0))
    folder = write(home, "a-cv-s1", predictions(2, 1.0), "demo-kfold3-test")
    (folder / "run.gin").unlink()
    with pytest.raises(UserError, match="a-cv-s1: is made of several runs' answers and has no 'val' of its own"):
        comparing.compare("one", "a-cv-s1", "val")
    with pytest.raises(UserError, match="just cross RUN CORPUS"):
        comparing.compare("one", "a-cv-s1", "ravdess-none-all")


def test_the_order_of_clips_does_not_matter_and_the_sign_turns(home):
    one, other = predictions(1, 0.5), predictions(2, 2.0)
    write(home, "one", one)
    write(home, "other", other)
    there, back = comparing.compare("one", "other", "val")[1], comparing.compare("other", "one", "val")[1]
    assert there["figures"]["wa"]["difference"] == -back["figures"]["wa"]["difference"]
    assert there["figures"]["uar"]["p"] == back["figures"]["uar"]["p"]
    assert (there["won"], there["lost"]) == (back["lost"], back["won"])


def test_unknown_speakers_give_neither_an_interval_nor_a_p_value(home):
    one, other = predictions(1, 0.5, speakers=14), predictions(2, 2.0, speakers=14)
    for made in (one, other):
        made.speakers[::5] = [""] * len(made.speakers[::5])
    write(home, "one", one)
    write(home, "other", other)
    folder, result = comparing.compare("one", "other", "val")
    assert all(figure["ci95"] is None and figure["p"] is None for figure in result["figures"].values())
    assert result["n_speakers"] == 14
    shown = comparing.table(folder, result)
    assert "no interval: the speakers are unknown" in shown
    assert "p -" in shown


def test_a_tiny_p_value_is_not_called_nothing(home):
    write(home, "one", predictions(1, 0.0, speakers=14))
    write(home, "other", predictions(2, 4.0, speakers=14))
    assert "p < 0.001" in comparing.table(*comparing.compare("one", "other", "val"))


def test_the_command_prints_differences_and_says_why_there_is_no_interval(home):
    write(home, "one", predictions(1, 0.5, speakers=4))
    write(home, "other", predictions(2, 2.0, speakers=4))
    done = command("compare.py", "one", "other", "--part", "val", home=home)
    assert done.returncode == 0, done.stderr
    assert "no interval: 4 speakers" in done.stdout
    assert "clips won" in done.stdout
    assert "p 0.125" in done.stdout  # the smallest that four speakers allow


@pytest.mark.parametrize(
    "what", ["clips", "labels", "references", "speakers", "unscored", "same", "absent", "ambiguous"]
)
def test_what_cannot_be_compared_is_one_line(run_here, home, what):
    one, other = predictions(1, 0.5), predictions(2, 2.0)
    write(home, "one", one)
    names = ["one", "other"]
    if what == "clips":
        other.clips[0] = "another"
    elif what == "labels":
        other = predictions(2, 2.0, labels=("angry", "happy", "surprised"))
    elif what == "references":
        other.references[:] = [LABELS[0]] * len(other.references)
    elif what == "speakers":
        other.speakers[:] = [f"speaker {name}" for name in other.speakers]
    says = {
        "speakers": "speakers have other names now",
        "clips": "different clips", "labels": "different labels (", "references": "different labels of",
        "unscored": "other: not scored on 'val' yet; run: just part=val eval other", "same": "the same run twice",
        "absent": "no run", "ambiguous": "give the whole name",
    }[what]  # fmt: skip
    if what == "unscored":
        write(home, "other", other, "demo-holdout-test")
    elif what == "same":
        names = ["one", "one"]
    elif what == "absent":
        names = ["one", "nothing"]
    else:
        write(home, "other", other)
    if what == "ambiguous":
        for name in names:
            write(home, name, one, "ravdess-emobox6-val")
    with pytest.raises(UserError) as caught:
        comparing.compare(*names, "val")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert one_error_line(run_here("compare.py", *names, "--part", "val"))
