"""From a run to its figures: evaluation, cross-corpus, cross-validation, summary, and who may not be scored."""

import csv
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT, one_error_line
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from ser import (
    calibration,
    checkpoints,
    config,
    cross_validation,
    evaluation,
    launching,
    robustness,
    runs,
    schemes,
    scoring_count,
    splits,
    summary,
)
from ser.batches import ClipReader
from ser.cross_corpus import cross
from ser.errors import UserError
from ser.features import Features
from ser.files import read_json, write_csv
from ser.labels import label_set
from ser.metadata import read_table
from ser.predictions import Predictions, pool, read_predictions
from ser.run_evaluation import embeddings, evaluate
from ser.scoring import score
from ser.tracking import read_log

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
    "train/batch_size = 16",
]  # fmt: skip


@pytest.fixture(scope="module")
def once(prepared, tmp_path_factory):
    """Return a home in which a small RAVDESS run was trained, to be copied."""
    home = tmp_path_factory.mktemp("once")
    (home / "data").symlink_to(prepared / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(home))
        experiment, run = runs.create(config.load("ravdess_ecapa", SMALL))
        runs.train(experiment, run, progress=False)
    return home


@pytest.fixture
def run(once, trained_home):
    """Return a trained small RAVDESS run."""
    shutil.copytree(once / "outputs", trained_home / "outputs")
    return runs.create(config.load("ravdess_ecapa", SMALL))[1]


def test_metrics_hold_the_contract_and_agree_with_scikit_learn(run):
    folder, metrics = evaluate("last", progress=False)
    assert folder == run.folder / "eval/ravdess-emobox6-test"
    assert metrics == json.loads((folder / "metrics.json").read_text())
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    truth, answers = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert metrics["wa"] == pytest.approx(accuracy_score(truth, answers), abs=1e-12)
    assert metrics["uar"] == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-12)
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"), abs=1e-12)
    assert metrics["n_clips"] == len(rows)
    assert metrics["n_speakers"] == len({row["speaker"] for row in rows}) >= 2
    assert set(metrics["ci95"].values()) == {None}
    assert "fewer than 8" in metrics["ci95_reason"]
    assert np.array(metrics["confusion"]).sum() == len(rows)
    assert metrics["labels"] == list(label_set("ravdess"))
    assert (metrics["fold"], metrics["part"], metrics["split_scheme"]) == (1, "test", "emobox6")
    assert metrics["speaker_independent"] is True
    assert len(metrics["split_sha256"]) == 64
    probabilities = np.array([[float(row[f"p_{label}"]) for label in metrics["labels"]] for row in rows])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert [metrics["labels"][i] for i in probabilities.argmax(1)] == answers


def test_seeds_and_folds_of_one_setting_share_a_group_and_other_settings_have_their_own(run, trained_home):
    def group(*overrides):
        return runs.create(config.load("ravdess_ecapa", ["track/wandb = 'off'", *overrides]))[1].group

    plain = group()
    assert plain.startswith("ravdess_ecapa-")
    assert group("seed = 2", "split/fold = 3") == plain
    assert group("train/lr = 0.5") != plain
    assert runs.reopen("last")[1].group == run.group


def test_scorings_of_the_test_part_are_counted_and_validation_is_not(run):
    assert evaluate("last", "val", progress=False)[1]["test_scorings"] == 0
    assert evaluate("last", progress=False)[1]["test_scorings"] == 1
    assert evaluate(run.folder.name, progress=False)[1]["test_scorings"] == 2


def test_an_evaluation_gives_the_validation_figure_of_training(run):
    best = max(line["val/uar"] for line in map(json.loads, (run.folder / "log.jsonl").open()) if "val/uar" in line)
    assert evaluate("last", "val", progress=False)[1]["uar"] == pytest.approx(best, abs=1e-9)


def test_the_temperature_is_that_of_validation_and_lies_in_the_checkpoint(run):
    folder, metrics = evaluate("last", "val", progress=False)
    made = read_predictions(folder / "predictions.csv")
    wanted = calibration.temperature(made.logits, made.indices)
    assert checkpoints.load(run.best)["temperature"] == pytest.approx(wanted, rel=1e-3)
    assert metrics["temperature"] == pytest.approx(wanted, rel=1e-3)
    assert metrics["temperature"] != 1
    assert metrics["calibrated"]["nll"] < metrics["nll"]


def test_an_evaluation_leaves_what_the_readme_names(run):
    folder, _ = evaluate("last", "val", progress=False)
    wanted = {"metrics.json", "predictions.csv", "subgroups.csv", "confusion.png", "calibration.png"}
    assert {path.name for path in folder.iterdir()} == wanted


def test_a_snapshot_trains_in_the_same_folder(run, capsys):
    settings = config.load(str(run.folder / "run.gin"))
    made, again = runs.create(settings)
    assert again.folder == run.folder
    runs.train(made, again, progress=False)
    assert "already trained" in capsys.readouterr().out


def test_an_answer_that_is_not_finite_is_named(run, monkeypatch):
    trained = runs.load_trained("last")
    clips = trained.experiment.protocol.part("val")

    def broken(self, embedding, speakers=None):
        return torch.full((len(embedding), len(self.labels)), torch.nan)

    monkeypatch.setattr(type(trained.experiment.model), "classify", broken)
    with pytest.raises(UserError, match=f"clip '{clips[0].clip}': the model's answer is not finite"):
        evaluate("last", "val", progress=False)


def test_embeddings_are_what_the_classifier_reads(run):
    answers = read_predictions(evaluate("last", "val", progress=False)[0] / "predictions.csv")
    trained = runs.load_trained("last")
    clips, values = embeddings(trained, "val", progress=False)
    assert len(values) == len(answers.clips)
    assert len(values.unique(dim=0)) > len(values) / 2
    logits = trained.experiment.model.classify(values).detach()
    wanted = answers.probabilities[[answers.clips.index(clip.clip) for clip in clips]]
    np.testing.assert_allclose(logits.softmax(1).numpy(), wanted, atol=1e-5)


def test_a_speaker_that_was_trained_on_is_never_scored(run):
    with pytest.raises(UserError, match="what a model was trained on is not scored"):
        evaluate("last", "train", progress=False)


def test_a_split_changed_since_training_is_refused(run, trained_home, prepared):
    path = prepared / "data/ravdess/splits/emobox6.csv"
    before = path.read_text()
    rows = list(csv.DictReader(before.splitlines()))
    try:
        write_csv(path, ("clip", "fold"), [row | {"fold": str(int(row["fold"]) % 6 + 1)} for row in rows])
        with pytest.raises(UserError, match="changed since"):
            evaluate("last", progress=False)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("calm", ["neutral", "leave_out"])
def test_cross_corpus_scores_shared_labels_and_strictly(run, calm):
    folder, metrics = cross("last", "crema_d", calm, progress=False)
    assert folder.name == ("crema_d-none-all" if calm == "neutral" else "crema_d-none-all-leave_out")
    assert metrics["strict"]["uar"] <= metrics["uar"]
    assert metrics["labels"] == list(label_set("crema_d"))
    assert metrics["calm_policy"] == calm
    assert metrics["tags"] == ["cross-corpus"]
    assert 0 <= metrics["strict"]["uar"] <= 1
    assert set(metrics["ci95"]) >= {"wa", "uar", "macro_f1", "nll", "ece", "auc"}
    assert metrics["n_speakers"] >= 8
    assert metrics["ci95"]["uar"][0] <= metrics["uar"] <= metrics["ci95"]["uar"][1]


def test_a_damaged_evaluation_is_left_out_of_the_summary(run, capsys):
    folder, made = evaluate("last", progress=False)
    for name, text in (
        ("a", "{}"),
        ("b", "[]"),
        ("c", "{"),
        ("d", '{"ci95": null}'),
        ("e", json.dumps(made | {"uar": None})),
    ):
        (folder.parent / name).mkdir()
        (folder.parent / name / "metrics.json").write_text(text)
    _, rows, _ = summary.write()
    assert len(rows) == 1
    assert capsys.readouterr().err.count("not an evaluation of ser") == 5


def test_figures_need_only_the_best_checkpoint_and_survive_a_cut_count(run):
    run.last.unlink()
    assert evaluate("last", progress=False)[1]["tags"] == ["unfinished"]
    with open(run.folder / "scorings.jsonl", "a") as file:
        file.write('{"scored": "rav')
    assert evaluate("last", progress=False)[1]["test_scorings"] == 2


def test_an_edited_configuration_is_refused(run):
    path = run.folder / "run.gin"
    path.write_text(path.read_text().replace("split/fold = 1", "split/fold = 2"))
    with pytest.raises(UserError, match=r"run.gin: changed since best.pt was written"):
        evaluate("last", progress=False)


def test_figures_of_a_speaker_dependent_scheme_carry_the_tag(trained_home):
    experiment, run = runs.create(config.load("crema_d_ecapa", [*SMALL, "split/scheme = 'emobox1'"]))
    runs.train(experiment, run, progress=False)
    _, metrics = evaluate("last", progress=False)
    assert metrics["speaker_independent"] is False
    assert metrics["tags"] == ["speaker-dependent"]


def test_cross_on_its_own_corpus_is_refused(run):
    with pytest.raises(UserError, match="was trained on ravdess; score its test part"):
        cross("last", "ravdess", progress=False)


def predictions(labels, references, logits, speakers=None):
    names = [f"c{number}" for number in range(len(references))]
    return Predictions(names, speakers or names, references, labels, np.array(logits, dtype=float))


def test_restricted_and_strict_figures_by_hand():
    model = predictions(
        ("angry", "calm", "neutral", "surprised"),
        ["angry", "neutral", "calm", "surprised"],
        [[1, 0, 0, 5], [0, 3, 1, 0], [0, 2.0, 2.1, 0], [0, 0, 0, 9]],
    )
    mapping = {"angry": "angry", "neutral": "neutral", "calm": "neutral"}
    restricted = model.mapped(("angry", "neutral"), mapping)
    assert restricted.references == ["angry", "neutral", "neutral"]  # the surprised clip is left out
    # Calm adds to neutral: for clip 0, log(e^0 + e^0) = 0.69 < 1.
    assert [restricted.labels[i] for i in restricted.answers] == ["angry", "neutral", "neutral"]
    assert restricted.strict == ["surprised", "neutral", "neutral"]  # surprised is outside
    metrics = score(restricted)
    assert metrics["uar"] == 1
    assert (metrics["strict"]["wa"], metrics["strict"]["uar"]) == (pytest.approx(2 / 3), 0.5)

    left_out = model.mapped(("angry", "neutral"), {"angry": "angry", "neutral": "neutral"})
    assert left_out.references == ["angry", "neutral"]
    assert score(left_out)["strict"]["uar"] == 0  # calm and surprised answers are outside


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=2, max_size=12), st.booleans())
def test_the_strict_figure_is_never_above_the_restricted_one(logits, calm_is_neutral):
    labels = ("angry", "calm", "neutral", "surprised")
    mapping = {"angry": "angry", "neutral": "neutral"} | ({"calm": "neutral"} if calm_is_neutral else {})
    references = [("angry", "neutral")[number % 2] for number in range(len(logits))]
    metrics = score(predictions(labels, references, logits).mapped(("angry", "neutral"), mapping))
    assert metrics["strict"]["uar"] <= metrics["uar"] + 1e-12
    assert metrics["strict"]["wa"] <= metrics["wa"] + 1e-12


def test_an_absent_class_is_said_and_left_out_of_uar():
    metrics = score(predictions(("a", "b", "c"), ["a", "a", "b"], [[2, 0, 0], [0, 0, 2], [0, 2, 0]]))
    assert metrics["absent"] == ["c"]
    assert metrics["classes"]["c"]["recall"] is None
    assert metrics["uar"] == pytest.approx(0.75)


def test_pooling_refuses_a_clip_scored_twice():
    fold = predictions(("a", "b"), ["a"], [[1, 0]])
    with pytest.raises(UserError, match="two folds"):
        pool([fold, fold])


def test_trainings_at_once_get_gpus_of_their_own_also_of_those_that_a_scheduler_names(monkeypatch, tmp_path):
    handed = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launching.subprocess, "Popen", lambda *_, env, **__: handed.append(env["CUDA_VISIBLE_DEVICES"]))
    work = launching.Job("fold 1", [], tmp_path / "log")
    for visible, gpus, expected in [
        (None, 1, ["0", "1", "2", "3", "0"]),
        ("4,5,GPU-a,7", 1, ["4", "5", "GPU-a", "7", "4"]),
        ("4,5,GPU-a,7", 2, ["4,5", "GPU-a,7", "4,5", "GPU-a,7", "4,5"]),
    ]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        handed.clear()
        for slot in range(5):
            launching.start("demo_ecapa", work, gpus, slot, 5)
        assert handed == expected


def test_a_finished_run_is_not_taken_for_one_of_other_clips(run, prepared):
    path = prepared / "data/ravdess/metadata.csv"
    before = path.read_text()
    gone = runs.reopen(run.folder.name)[0].protocol.part("train")[0].clip
    try:
        path.write_text("".join(line for line in before.splitlines(keepends=True) if f",{gone}," not in line))
        experiment, again = runs.reopen(run.folder.name)
        with pytest.raises(UserError, match=r"clips_sha256 changed since last\.pt was written"):
            runs.train(experiment, again, progress=False)
    finally:
        path.write_text(before)


def test_cross_validation_pools_every_fold_once_and_resumes(trained_home, capsys):
    splits.write_split(schemes.make_split("demo", "kfold3"))
    done = cross_validation.cross_validate("demo_ecapa", [*SMALL, "split/scheme = 'kfold3'"], progress=False)
    folder, metrics = done
    assert len(metrics["folds"]) == 3
    assert metrics["fold"] is None
    assert metrics["trained_on"] == "demo kfold3, each fold on the others but those that validate"
    clips = [row["clip"] for row in csv.DictReader((folder / "predictions.csv").open())]
    table = list(csv.DictReader((trained_home / "data/demo/metadata.csv").open()))
    assert sorted(clips) == sorted(row["clip"] for row in table)
    assert metrics["ci95"]["uar"] is not None
    assert {"mean", "sd"} == metrics["over_folds"]["uar"].keys()
    pooled = score(read_predictions(folder / "predictions.csv"))
    assert metrics["uar"] == pytest.approx(pooled["uar"])
    capsys.readouterr()
    other = trained_home / "outputs" / folder.parents[1].name.replace("-s1-", "-s2-")
    shutil.copytree(folder.parents[1], other)
    (other / "cv.gin").write_text((other / "cv.gin").read_text().replace("seed = 1", "seed = 2"))
    shutil.copytree(other, other.with_name(f"{other.name}-backup"))
    (row,) = summary.write()[2]
    assert (row["evaluation"], row["seeds"]) == ("demo-kfold3-test", 2)
    said = capsys.readouterr().err
    assert said.strip() == f"left out: {other.name}-backup: a copy of {other.name}, no further seed"
    again = cross_validation.cross_validate("demo_ecapa", [*SMALL, "split/scheme = 'kfold3'"], progress=False)
    assert capsys.readouterr().out.count("already trained") == 3
    assert again[1]["uar"] == metrics["uar"]
    assert again[1]["test_scorings"] == 1


def test_folds_that_train_at_the_same_time_are_pooled(trained_home, run_here, monkeypatch):
    """One fold in a process of its own; the others here, which saves the imports."""
    splits.write_split(schemes.make_split("demo", "kfold3"))
    settings, start = [*SMALL, "split/scheme = 'kfold3'"], launching.start

    def begin(experiment, training, gpus, slot, jobs):
        if slot == 0:
            return start(experiment, training, gpus, slot, jobs)
        runs.train(*runs.create(config.load(experiment, training.overrides)), progress=False)
        training.log.write_text("trained")
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.setattr(launching, "start", begin)
    done = run_here("cv_train.py", "demo_ecapa", *settings, "--jobs", 3)
    assert done.returncode == 0, done.stderr
    (folder,) = trained_home.glob("outputs/demo_ecapa-cv-*")
    assert sorted(path.name for path in folder.glob("*.log")) == [f"fold{k}.log" for k in range(1, 4)]
    metrics = read_json(folder / "eval/demo-kfold3-test/metrics.json")
    assert [fold["fold"] for fold in metrics["folds"]] == [1, 2, 3]
    assert metrics["n_speakers"] == 12


def test_a_fold_that_fails_is_named_and_no_other_begins(trained_home, tmp_path, monkeypatch):
    begun = []

    def start(experiment, work, gpus, slot, jobs):
        begun.append((work.overrides[-1], slot))
        code = "import sys, time; time.sleep(0.3); sys.exit('error: too warm\\n=====')" if len(begun) == 2 else "pass"
        with work.log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=subprocess.STDOUT)

    monkeypatch.setattr(launching, "start", start)
    works = [
        launching.Job(f"fold {fold}", ["x", f"split/fold = {fold}"], tmp_path / f"fold{fold}.log")
        for fold in range(1, 41)
    ]
    with pytest.raises(UserError, match=r"fold 2 ended with status 1: too warm \(see .*fold2\.log\)"):
        launching.train_in_processes("demo_ecapa", works, 2, 1)
    assert begun[:2] == [("split/fold = 1", 0), ("split/fold = 2", 1)]
    assert len(begun) < 40
    with pytest.raises(UserError, match="expected 1 or more"):
        cross_validation.cross_validate("demo_ecapa", [*SMALL, "split/scheme = 'kfold5'"], jobs=0)


def test_cross_validation_needs_folds(trained_home):
    with pytest.raises(UserError, match="has no folds"):
        cross_validation.cross_validate("demo_ecapa", SMALL, progress=False)


def test_a_run_on_two_corpora_is_tagged_and_never_scored_on_either_as_another(trained_home):
    experiment, run = runs.create(config.load("ravdess_ecapa", [*SMALL, 'data/extra = ["crema_d"]']))
    runs.train(experiment, run, progress=False)
    metrics = evaluate("last", "val", progress=False)[1]
    assert metrics["tags"] == ["extra-crema_d"]
    assert metrics["trained_on"] == "ravdess emobox6 fold 1 and crema_d (7298 clips of crema_d missing)"
    assert metrics["speaker_independent"] is True
    with pytest.raises(UserError, match="was trained on crema_d, too"):
        cross("last", "crema_d", progress=False)
    assert cross("last", "demo", progress=False)[1]["tags"] == ["cross-corpus", "extra-crema_d"]


def test_seeds_of_one_experiment_are_averaged(trained_home, capsys):
    uars = []
    for seed in (1, 2, 3):
        experiment, run = runs.create(config.load("demo_ecapa", [*SMALL, f"seed = {seed}"]))
        runs.train(experiment, run, progress=False)
        uars.append(evaluate(str(run.folder), "val", progress=False)[1]["uar"])
    path, _, (row,) = summary.write()
    assert (row["seeds"], row["evaluation"]) == (3, "demo-holdout-val")
    assert row["mean"] == pytest.approx(np.mean(uars))
    assert row["sd"] == pytest.approx(np.std(uars, ddof=1))
    assert row["ci95"] is None  # too few speakers
    assert "Over seeds" in path.with_suffix(".md").read_text()
    (run.folder / "eval/demo-holdout-val/predictions.csv").write_text("clip,speaker,label,predicted\n")
    assert summary.write()[2] == []
    assert "holds no predictions" in capsys.readouterr().err


def test_summary_has_a_line_for_every_evaluation(run, trained_home):
    evaluate("last", "val", progress=False)
    evaluate("last", progress=False)
    cross("last", "demo", progress=False)
    path, rows, seeds = summary.write()
    assert seeds == []
    assert "# Evaluations" in path.with_suffix(".md").read_text()
    (tex,) = [line for line in path.with_suffix(".tex").read_text().splitlines() if "emobox6 fold 1, test part" in line]
    assert tex.startswith(run.folder.name.replace("_", r"\_") + " & ravdess")
    assert tex.endswith(r"\\")
    assert tex.count("&") == 5
    read = list(csv.DictReader(path.open()))
    assert len(rows) == len(read) == 3
    assert tuple(read[0]) == summary.COLUMNS
    printed = summary.table(summary.cells(rows))
    assert printed.count(run.folder.name) == 3
    assert summary.scorings_text(rows) == ["ravdess emobox6, test: 1 run (a fold is a run), scored 1 time in all"]
    assert summary.scorings_text(rows)[0] in path.with_suffix(".md").read_text()
    with open(run.folder / "scorings.jsonl", "ab") as file:
        file.write(b'\xff\n{"scored": "ravd')  # foreign, and cut short by a crash
    scoring_count.count_scoring(run.folder, "ravdess-emobox6-test", "-robustness")
    assert "scored 2 times in all" in summary.scorings_text(rows)[0]
    by_part = {(row["corpus"], row["part"]): row for row in read}
    metrics = read_json(run.folder / "eval/ravdess-emobox6-test/metrics.json")
    assert by_part["ravdess", "test"]["uar"] == f"{metrics['uar']:.4f}"
    assert by_part["ravdess", "test"]["uar_low"] == ""
    log = read_log(run.folder)
    assert by_part["ravdess", "test"]["memory_gib"] == f"{max(line.get('speed/memory_gib', 0) for line in log):.4f}"
    assert by_part["demo", "all"]["tags"] == "cross-corpus"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval_model.py", "nothing"], "no run of this name"),
        (["eval_model.py", "ravdess_ecapa"], "that is an experiment: a run of it is made by: just train ravdess_ecapa"),
        (["eval_model.py", "last", "part=val"], "variables come before the recipe: just part=val ..."),
        (["eval_model.py", "last", "--lables", "voice"], "did you mean '--labels'?"),
        (["eval_model.py"], "the following arguments are required: run; see: eval_model.py --help"),
        (["train.py", "last"], "'last' is a run, not an experiment of gin/exp/; go on with it: just resume last"),
        (["train.py", "ravdess"], "those that begin so: ravdess_ecapa, "),
        (
            ["train.py", "ravdess_ecapa", "train/epochs", "=", "5"],
            "each binding in quotes as a whole: 'train/epochs = 5'",
        ),
        (["train.py", "ravdess_ecapa", "train/epochs = '5'"], "override `train/epochs = '5'`: line 1: train/epochs is"),
        (["train.py", "ravdess_ecapa", "train/lr = 1e-3x"], "not a Python literal in `train/lr = 1e-3x`"),
        (["train.py", "ravdess_ecapa", "train/epochs = 0"], "train/epochs is 0; expected 1 or more"),
        (["eval_model.py", "last", "--part", "tset"], "did you mean 'test'?"),
        (["cross_corpus.py", "last", "cremad"], "did you mean 'crema_d'?"),
        (["cross_corpus.py", "", "demo"], "the name of a run is empty"),
        (["cross_corpus.py", "last", "crema_d", "--calm", "neutrl"], "did you mean 'neutral'?"),
        (["train.py", "--resume", "last", "seed = 2"], "keeps its settings"),
        (["train.py", "ravdess_ecpa"], "did you mean 'ravdess_ecapa'?"),
        (["train.py", "ravdess_ecapa", "split/fold = 7"], "has folds 1 to 6"),
        (["train.py", "crema_d_ecapa", "split/fold = 1"], "has no folds"),
        (["eval_model.py", "last", "--labels", "voice"], "ravdess has no votes"),
        (["train.py", "ravdess_ecapa", "split/scheme = 'holdut'"], "did you mean 'holdout'?"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_line(run, run_here, arguments, says):
    assert says in one_error_line(run_here(*arguments))


@pytest.mark.parametrize("overrides", [(), ("ecapa/normalisation = 'speaker'",)], ids=["corpus", "speaker"])
def test_a_clip_is_scored_the_same_alone_and_among_others(once, trained_home, monkeypatch, overrides):
    if overrides:
        runs.train(*runs.create(config.load("ravdess_ecapa", [*SMALL, *overrides])), progress=False)
    else:
        shutil.copytree(once / "outputs", trained_home / "outputs")
    whole, sizes = ClipReader.whole, []
    monkeypatch.setattr(ClipReader, "whole", lambda self, clips: sizes.append(len(clips)) or whole(self, clips))
    together = read_predictions(evaluate("last", "val", progress=False)[0] / "predictions.csv")
    assert max(sizes) > 1
    sizes.clear()
    monkeypatch.setattr(evaluation, "BUDGET_SECONDS", 0.0)
    alone = read_predictions(evaluate("last", "val", progress=False)[0] / "predictions.csv")
    assert set(sizes) == {1}
    assert alone.clips == together.clips
    assert len(set(alone.probabilities[:, 0])) > 1
    np.testing.assert_allclose(alone.probabilities, together.probabilities, rtol=0, atol=1e-4)
    monkeypatch.setattr(evaluation, "BUDGET_SECONDS", 128.0)
    frames = Features.frames

    def too_many(self, inputs, lengths):
        if len(lengths) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return frames(self, inputs, lengths)

    monkeypatch.setattr(Features, "frames", too_many)
    halved = read_predictions(evaluate("last", "val", progress=False)[0] / "predictions.csv")
    np.testing.assert_allclose(halved.probabilities, alone.probabilities, rtol=0, atol=1e-6)


def test_every_figure_says_how_many_clips_are_missing(run):
    _, metrics = evaluate("last", "val", progress=False)
    assert metrics["clips_missing"] == read_table("ravdess").missing > 0


AFTER_TRAINING = [
    (["train.py", "--resume", "last"], "already trained with these settings"),
    (["eval_model.py", "last", "--part", "val"], "ravdess emobox6 fold 1, validation part"),
    (["eval_model.py", "last"], "test scorings 1"),
    (["cross_corpus.py", "last", "demo"], "[cross-corpus]"),
    (["cross_corpus.py"], "adapted: normalised by the other corpus's statistics"),
    (["report.py", "last", "--sound"], "report.html"),
    (["robustness.py", "last", "--part", "val"], "first seconds"),
    (["summarize.py"], "summary.csv"),
]


def test_every_command_after_training_does_its_work(run, run_here, monkeypatch):
    kept = {"first seconds": {1.0: robustness.CONDITIONS["first seconds"][1.0]}}
    monkeypatch.setattr(robustness, "CONDITIONS", kept)
    for arguments, says in AFTER_TRAINING:
        done = run_here(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert says in done.stdout, arguments
    done = run_here("eval_model.py", "last")
    assert "note: scored 2 times by now" in done.stderr


def test_the_keys_that_the_readme_names_are_those_of_a_metrics_file(run, trained_home):
    """Of a run's part, of another corpus, or of a cross-validation, whose own are pooled."""
    text = (PROJECT / "README.md").read_text().partition("The main keys of `metrics.json`:")[2].partition("\n\n\n")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert {"uar", "ci95", "strict", "folds"} <= named
    held = set(evaluate("last", progress=False)[1]) | set(cross("last", "demo", progress=False)[1])
    assert named - held == {"folds", "over_folds"}
