"""The layer probe: a table, a picture, and no look at validation or test speakers."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import command, one_error_line
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ser import config, probing
from ser.batches import ClipReader, open_source
from ser.errors import UserError

PARTS = ("data/ravdess", "features/whisper_tiny_en", "augment/none", "model/stats_probe")


def experiment(*overrides: str):
    return config.build(config.compose("ravdess_probe", PARTS, overrides))


def test_the_figures_are_those_of_a_cross_validation_by_speaker(encoded, trained_home):
    what = experiment()
    folder, rows = probing.probe(what, progress=False)
    assert [row["layer"] for row in rows] == ["0", "1", "2", "3", "4", "all"]
    clips = what.protocol.part("train")
    reader = ClipReader(open_source(what.features, what.protocol.table), what.model.labels)
    x = reader.whole(clips).inputs.numpy().astype(float)
    y, speakers = np.array([c.emotion for c in clips]), np.array([c.speaker for c in clips])
    answers = np.empty(len(y), dtype=object)
    for held_out in probing.folds_by_speaker(speakers):
        rest = np.setdiff1d(np.arange(len(y)), held_out)
        assert not set(speakers[rest]) & set(speakers[held_out])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        answers[held_out] = model.fit(x[rest, 3], y[rest]).predict(x[held_out, 3])
    assert rows[3]["uar"] == pytest.approx(recall_score(y, answers.astype(str), average="macro"), abs=0.02)
    with open(folder / "layers.csv", newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file)] == [row["layer"] for row in rows]
    assert json.loads((folder / "probe.json").read_text())["split_sha256"] == what.protocol.split.sha256


def test_every_speaker_is_held_out_once():
    speakers = np.array(list("abcdefgabcdefg"))
    folds = probing.folds_by_speaker(speakers)
    assert sorted(np.concatenate(folds).tolist()) == list(range(14))
    assert len(probing.folds_by_speaker(np.array(["a", "b"]))) == 2
    with pytest.raises(UserError, match="at least 2"):
        probing.folds_by_speaker(np.array(["a", "a"]))


def test_validation_and_test_speakers_are_never_read(encoded, tmp_path, monkeypatch):
    shutil.copytree(encoded / "data", tmp_path / "data", symlinks=True)
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    what = experiment()
    for part in ("val", "test"):
        for clip in what.protocol.part(part):
            (tmp_path / f"data/ravdess/feats/whisper_tiny_en-statistics/{clip.clip}.pt").unlink()
    done = command("probe.py", "ravdess", "whisper_tiny_en", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best single layer:  encoder/layers = [" in done.stdout
    assert "all joined are" in done.stdout
    assert "'encoder/keep = \"frames\"'" in done.stdout
    picture = next(line for line in done.stdout.splitlines() if line.endswith("layers.png"))
    with open(picture, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_features_without_layers_are_refused_in_one_line(trained_home, run_here):
    done = run_here("probe.py", "ravdess", "logmel80")
    assert "'logmel80' have no layers to compare" in one_error_line(done)


def test_unknown_features_are_one_line_with_the_nearest_name(trained_home, run_here):
    done = run_here("probe.py", "ravdess", "whisper_tiny_eng")
    assert "whisper_tiny_en" in one_error_line(done)


@pytest.mark.parametrize(
    "override", ["stats/normalisation = 'speaker'", "stats/wccn = 0.3", "encoder/copies = ['gain 6']"]
)
def test_settings_that_a_probe_of_layers_does_not_know_are_refused(encoded, trained_home, override):
    with pytest.raises(UserError, match=f"{override.split(' ')[0]}: a probe of layers goes without"):
        probing.probe(experiment(override), progress=False)
