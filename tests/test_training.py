"""The loop: one step of every experiment, resume equals a straight run, faults stop it with one line."""

import json
import signal
import sys
import time
import types

import pytest
import torch
from conftest import Beside, StopAfter, check_test_part_untouched, command, one_error_line
from corpus_factory import prepare_corpus
from encoder_factory import instead

from ser import checkpoints, config, gin_files, preparing, runs, training
from ser.corpora import corpus_named
from ser.errors import Interrupted, UserError
from ser.extraction import extract
from ser.metadata import read_table, remember_raw, write_table
from ser.tracking import read_log
from ser.training_setup import set_up

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 2", "train/crop_seconds = 0.5",
    "train/batch_size = 16", "Tracking.every = 1",
]  # fmt: skip


# test_custom runs these, on corpora of its own
ELSEWHERE = ("custom_ecapa", "custom_stats_probe", "emodb_ecapa", "emodb_stats_probe")


def start(experiment: str, *overrides: str):
    return runs.create(config.load(experiment, [*SMALL, *overrides]))


@pytest.mark.parametrize("experiment", [name for name in gin_files.experiments() if name not in ELSEWHERE])
def test_every_experiment_file_builds_and_runs_a_step(experiment, encoded, trained_home, capsys):
    whole = [] if "whisper" in experiment or "finetune" in experiment else ["train/crop_seconds = 0.5"]
    kept = ("track/", "Tracking", *(["ecapa/"] if "_ecapa" in experiment else []))
    small = [override for override in SMALL if override.startswith(kept)] + ["train/batch_size = 4", *whole]
    small += instead(experiment, trained_home)
    small += ["encoder/copies = ['gain 1']"] if experiment.endswith("_copies") else []
    built = config.build(config.load(experiment, small))
    for copy in built.features.copies:
        extract(read_table(built.protocol.corpus), copy, progress=False)
    if built.features.cached and ("hubert" in experiment or "whisper" in experiment):
        extract(read_table(built.protocol.corpus), built.features, progress=False)
    training.dry_run(built, steps=1)
    printed = capsys.readouterr().out
    assert "step   1  loss" in printed
    assert "gradient norm" in printed
    assert "inputs: [" in printed
    assert "all finite" in printed


def test_a_run_leaves_everything_that_describes_it(trained_home):
    experiment, run = start("ravdess_ecapa")
    runs.train(experiment, run, progress=False)
    folder = run.folder
    assert folder.name.startswith("ravdess_ecapa-fold1-s1-")
    assert (folder / "run.gin").read_text() == run.config
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    (environment,) = json.loads((folder / "environment.json").read_text())["sessions"]
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (trained_home / "outputs/last").read_text().strip() == folder.name
    log = read_log(folder)
    epochs = [line for line in log if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all(0 <= line["val/uar"] <= 1 for line in epochs)
    assert [line["step"] for line in log if "train/loss" in line] == list(range(1, log[-1]["step"] + 1))
    best = checkpoints.load(run.best)
    assert best["labels"] == list(experiment.model.labels)
    assert best["protocol"]["split_sha256"] == experiment.protocol.split.sha256
    assert set(best["train_speakers"]) == {clip.speaker for clip in experiment.protocol.part("train")}
    assert "optimizer" not in best
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    "overrides",
    [(), ("ecapa/normalisation = 'speaker'",), ("Features.cached = False",)],
    ids=["corpus", "speaker", "sound"],
)
def test_the_test_part_is_never_read_in_training(trained_home, heard, overrides):
    experiment, run = start("demo_ecapa", "train/epochs = 1", *overrides)
    runs.train(experiment, run, progress=False)
    check_test_part_untouched(experiment, run, heard)


def test_a_finished_run_is_left_alone(trained_home, capsys):
    experiment, run = start("demo_ecapa")
    runs.train(experiment, run, progress=False)
    before = run.last.stat().st_mtime_ns
    experiment, run = start("demo_ecapa")
    runs.train(experiment, run, progress=False)
    assert "already trained" in capsys.readouterr().out
    assert run.last.stat().st_mtime_ns == before


def timeless(run) -> list[dict]:
    """Return a run's log without the times, which no two runs share."""
    lines = read_log(run.folder)
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def test_an_interrupted_and_resumed_run_equals_a_straight_one(trained_home, monkeypatch):
    dropout = ("EcapaTdnn.dropout = 0.3",)  # draws from torch's generator at every step
    experiment, straight = start("ravdess_ecapa", *dropout)
    runs.train(experiment, straight, progress=False)
    content, log = checkpoints.load(straight.last), timeless(straight)
    straight.folder.rename(trained_home / "straight")

    for steps in (2, 5):  # that each session makes before it is stopped: seven in all
        with monkeypatch.context() as patch:
            patch.setattr(training, "stop_requests", lambda steps=steps: StopAfter(steps))
            with pytest.raises(Interrupted):
                runs.train(*start("ravdess_ecapa", *dropout), progress=False)
        torch.rand(5)
    assert "optimizer" in checkpoints.load(straight.last)
    runs.train(*start("ravdess_ecapa", *dropout), progress=False)
    resumed = checkpoints.load(straight.last)
    assert "optimizer" not in resumed, "of a finished run nothing is resumed"
    for name, value in content["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    assert timeless(straight) == log
    assert len(json.loads((straight.folder / "environment.json").read_text())["sessions"]) == 3


def test_ctrl_c_in_training_saves_and_resume_finishes(trained_home):
    arguments = ["demo_ecapa", *SMALL, "train/epochs = 400", "train/patience = 400"]
    process = Beside("train.py", *arguments)
    outputs = trained_home / "outputs"
    deadline = time.monotonic() + 120
    while not list(outputs.glob("demo_ecapa-*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "go on with: just resume" in out
    assert "Traceback" not in err
    (folder,) = outputs.glob("demo_ecapa-*")
    assert checkpoints.load(folder / "checkpoints/last.pt")["state"]["step"] > 0


def test_two_processes_do_not_train_one_run(trained_home):
    experiment, run = start("demo_ecapa")
    from ser.files import locked

    with locked(run.folder / ".lock", ""), pytest.raises(UserError, match="another process is training"):
        runs.train(experiment, run, progress=False)


@pytest.mark.parametrize("what", ["split", "run.gin", "clips"])
def test_resuming_over_changed_data_or_settings_is_refused(what, home, monkeypatch):
    """Else speakers that were trained on would be scored as if they were unseen."""
    raw = prepare_corpus(home, "demo")
    extract(read_table("demo"), config.load_features("logmel80"), progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(2))
        with pytest.raises(Interrupted):
            runs.train(*start("demo_ecapa"), progress=False)
    if what == "split":
        path = home / "data/demo/splits/holdout.csv"
        swap = {"train": "test", "test": "train", "val": "val"}
        rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
        path.write_text("clip,part\n" + "".join(f"{clip},{swap[part]}\n" for clip, part in rows))
    elif what == "run.gin":
        path = next((home / "outputs").glob("demo_*/run.gin"))
        path.write_text(path.read_text().replace("train/epochs = 2", "train/epochs = 9"))
    else:
        (raw / start("demo_ecapa")[0].protocol.part("train")[0].path).unlink()
        clips, missing = preparing.clips_of(corpus_named("demo"), raw, allow_missing=True)
        write_table("demo", clips)
        remember_raw("demo", raw, missing)
    with pytest.raises(UserError, match=r"changed since last\.pt was written"):
        runs.train(*runs.reopen("last"), progress=False)


def test_nothing_is_left_of_a_run_that_cannot_start(trained_home):
    experiment, run = start("demo_ecapa", "Features.name = 'other'")
    with pytest.raises(UserError, match="just extract demo EXP"):
        runs.train(experiment, run, progress=False)
    assert not (trained_home / "outputs").exists()


@pytest.mark.parametrize("failing", ["import", "init", "log", "finish"])
def test_wandb_may_fail_at_any_moment(failing, trained_home, monkeypatch, capsys):
    class Broken:
        dir = str(trained_home / "x/files")

        def __init__(self, **_):
            if failing == "init":
                raise RuntimeError("no server")

        def define_metric(self, *_, **__): ...

        def log(self, _):
            if failing == "log":
                raise ConnectionResetError("gone")

        def finish(self):
            if failing == "finish":
                raise OSError("full")

    fake = types.SimpleNamespace(init=Broken, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", None if failing == "import" else fake)
    experiment, run = start("demo_ecapa", "track/wandb = 'offline'", "train/epochs = 1")
    runs.train(experiment, run, progress=False)
    assert capsys.readouterr().err.count("W&B failed") == 1
    assert len(read_log(run.folder)) > 2


def test_an_offline_wandb_run_lies_in_the_run_folder(trained_home, capsys):
    pytest.importorskip("wandb")
    experiment, run = start("demo_ecapa", "track/wandb = 'offline'", "train/epochs = 1")
    runs.train(experiment, run, progress=False)
    assert "wandb sync" in capsys.readouterr().out
    assert list((run.folder / "wandb").glob("offline-run-*"))


def test_a_lost_environment_never_keeps_a_run_from_resuming(trained_home, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(2))
        with pytest.raises(Interrupted):
            runs.train(*start("demo_ecapa"), progress=False)
    experiment, run = runs.reopen("last")
    path = run.folder / "environment.json"
    path.unlink()
    runs.train(experiment, run, progress=False)
    assert "earlier sessions are lost" in capsys.readouterr().err
    assert len(json.loads(path.read_text())["sessions"]) == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_foreign_environment_is_made_anew(text, tmp_path, capsys):
    path = tmp_path / "environment.json"
    path.write_text(text)
    runs.record_session(path, resume=True)
    assert "earlier sessions are lost" in capsys.readouterr().err
    assert len(json.loads(path.read_text())["sessions"]) == 1


def test_a_stop_in_the_last_validation_is_met_and_the_run_is_whole(trained_home, monkeypatch, capsys):
    """Else a cross-validation would go on with its next fold."""
    experiment, run = start("demo_ecapa")
    steps = 2 * len(set_up(experiment).order(0)) + 1  # looked at in each step, after each epoch
    monkeypatch.setattr(training, "stop_requests", lambda: StopAfter(steps))
    with pytest.raises(Interrupted, match="stopped after epoch 2; which was the last"):
        runs.train(experiment, run, progress=False)
    assert checkpoints.is_finished(run.last)
    runs.train(*start("demo_ecapa"), progress=False)
    assert "already trained" in capsys.readouterr().out


def test_a_run_that_another_process_trained_meanwhile_is_left_alone(trained_home, monkeypatch):
    experiment, run = start("demo_ecapa")
    prepare = runs.set_up

    def slow(*arguments, **options):
        monkeypatch.setattr(runs, "set_up", prepare)
        runs.train(*start("demo_ecapa"), progress=False)
        return prepare(*arguments, **options)

    monkeypatch.setattr(runs, "set_up", slow)
    with pytest.raises(UserError, match="another process has trained this run meanwhile"):
        runs.train(experiment, run, progress=False)
    assert checkpoints.is_finished(run.last)


def test_early_stopping_ends_after_the_patience(trained_home):
    experiment, run = start("demo_ecapa", "train/epochs = 50", "train/patience = 3", "train/lr = 0.0")
    runs.train(experiment, run, progress=False)
    state = checkpoints.load(run.last)["state"]
    assert state["finished"]
    assert state["epoch"] - state["best_epoch"] == 3


def test_a_loss_that_is_not_finite_names_clips(trained_home):
    experiment, run = start("demo_ecapa", "train/lr = 1e30", "Training.clip_norm = 1e30", "train/batch_size = 4")
    with pytest.raises(UserError, match=r"in a batch of s\d\d_.*lower train/lr"):
        runs.train(experiment, run, progress=False)


def test_a_label_that_the_model_does_not_know_is_named(trained_home):
    with pytest.raises(UserError, match=r"neutral, sad apart, but the protocol is of .*, sad, surprised; set both by"):
        start("ravdess_ecapa", "label_set.corpus = 'crema_d'")


def test_sound_can_be_read_at_every_step_with_noise_and_gain(trained_home):
    heavy = [
        "Features.cached = False",
        "Augmentation.operations = [@Noise(), @SoundMixup(), @Gain(), @SpecAugment(), @Mixup()]",
    ]
    experiment, run = start("ravdess_ecapa", *heavy, "train/epochs = 1")
    runs.train(experiment, run, progress=False)


def test_a_cut_checkpoint_is_refused_by_the_real_command(trained_home):
    experiment, run = start("demo_ecapa", "train/epochs = 1")
    runs.train(experiment, run, progress=False)
    for name in ("best.pt", "last.pt"):
        path = run.folder / "checkpoints" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "last.pt: not a whole checkpoint" in one_error_line(command("train.py", "--resume", "last"))
    assert "last.pt: not a whole checkpoint" in one_error_line(command("eval_model.py", "last"))
    run.last.unlink()
    assert "best.pt: not a whole checkpoint" in one_error_line(command("eval_model.py", "last"))
