"""Training on the validation speakers, too, once nothing is left to choose: who is heard, and what is then not said."""

import pytest
import torch
from conftest import StopAfter

from ser import checkpoints, config, runs, training
from ser.errors import Interrupted, UserError
from ser.run_evaluation import evaluate
from ser.tracking import read_log
from ser.wording import evaluation

SMALL = ["track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 2", "train/crop_seconds = 0.5"]
BOTH = [*SMALL, "train/with_validation = True", "train/keep = 'last'"]


def test_both_parts_train_and_validation_can_no_longer_be_scored(trained_home):
    experiment, run = runs.create(config.load("demo_ecapa", BOTH))
    runs.train(experiment, run, progress=False)
    best = checkpoints.load(run.best)
    speakers = {part: {clip.speaker for clip in experiment.protocol.part(part)} for part in ("train", "val", "test")}
    assert set(best["train_speakers"]) == speakers["train"] | speakers["val"]
    assert best["state"]["epoch"] == 2
    log = read_log(run.folder)
    clips = len(experiment.protocol.part("train")) + len(experiment.protocol.part("val"))
    assert best["state"]["step"] == 2 * (clips // experiment.training.batch_size)
    assert not [name for line in log for name in line if name.startswith("val/")]
    assert (run.folder / "curves.png").stat().st_size > 1000
    with pytest.raises(UserError, match="to validate, train it with 'train/with_validation = False'"):
        evaluate(run.folder.name, "val", progress=False)
    assert not runs.load_trained(run.folder.name).experiment.model.training
    folder, metrics = evaluate(run.folder.name, progress=False)
    assert metrics["part"] == "test"
    assert metrics["trained_on"].endswith("validation speakers too")
    assert metrics["temperature"] == 1
    assert "temperature" not in evaluation(folder, metrics), "nobody gave one"


def test_interrupted_and_resumed_it_ends_as_it_would_have(trained_home, monkeypatch):
    experiment, run = runs.create(config.load("demo_ecapa", [*BOTH, "seed = 1"]))
    runs.train(experiment, run, progress=False)
    straight = checkpoints.load(run.best)
    run.folder.rename(trained_home / "straight")
    monkeypatch.setattr(training, "stop_requests", lambda: StopAfter(3))
    experiment, run = runs.create(config.load("demo_ecapa", [*BOTH, "seed = 1"]))
    with pytest.raises(Interrupted):
        runs.train(experiment, run, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("SER_HOME", str(trained_home))
    experiment, run = runs.reopen(run.folder.name)
    runs.train(experiment, run, progress=False)
    resumed = checkpoints.load(run.best)
    assert all(torch.equal(straight["model"][name], value) for name, value in resumed["model"].items())


def test_it_needs_a_number_of_epochs_and_steps(prepared, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(prepared))
    with pytest.raises(UserError, match="leaves nobody to choose the epoch on"):
        config.build(config.load("demo_ecapa", [*SMALL, "train/with_validation = True"]))
