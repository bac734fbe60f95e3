"""Several processes train as one does, an interruption included; one that dies takes the others along."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, Beside, command

from ser import checkpoints, config, runs
from ser.checkpoints import BEST, LAST
from ser.errors import UserError
from ser.launching import run_in_processes

DROPOUT = ("hubert_attn.HubertAttn.dropout = 0.2", "Tracking.every = 1", "train/epochs = 8")
LONG = ("Tracking.every = 1", "train/epochs = 300", "train/patience = 300")
GIN = """include 'gin/base.gin'
include 'gin/data/demo.gin'
include 'gin/features/logmel80.gin'
include 'gin/augment/light.gin'

experiment.Experiment.model = @hubert_attn.HubertAttn()
hubert_attn.HubertAttn.dropout = 0.0
hubert_attn.HubertAttn.hidden = 12
hubert_attn.HubertAttn.labels = @labels.label_set()
hubert_attn.HubertAttn.width = %mel/bands
track/wandb = 'off'
train/batch_size = 12
train/class_weights = 'inverse'
train/crop_seconds = 0.5
train/epochs = 3
"""

# Twenty steps of plain gradient descent in double precision; every process writes its losses, weights and predictions.
STEPS = """
import json, sys, torch
from ser import config, dist
from ser.training_step import Stepper
from ser.training_setup import set_up

with dist.process_group():
    experiment = config.build(config.load(sys.argv[1], sys.argv[2:]))
    setup = set_up(experiment)
    setup.model.double().train()
    groups = [{"params": [p for p in setup.model.parameters()], "scale": 1.0, "lr": 0.1}]
    object.__setattr__(setup, "optimizer", torch.optim.SGD(groups, lr=0.1))
    object.__setattr__(setup, "ema", None)
    setup.weights.data = setup.weights.double()
    stepper, losses = Stepper(setup), []
    plan = [(e, rows) for e in range(9) for rows in setup.order(e)][:20]
    for epoch, rows in plan:
        (parts,) = setup.pieces([rows], epoch)
        losses.append(stepper.step(parts, epoch, 100.0)["train/loss"])
    weights = torch.cat([p.detach().flatten() for p in setup.model.parameters()])
    validation = setup.validate()
    result = [losses, weights.tolist(), validation.logits.tolist(), validation.clips]
    open(f"{sys.argv[1]}.{dist.rank()}", "w").write(json.dumps(result))
"""


def launch(processes: int, *arguments: object) -> subprocess.Popen:
    """Start a Python program in so many processes, as `just gpus=N` does."""
    launcher = ["tools/launch.py", str(processes)] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT, env=dict(os.environ),
    )  # fmt: skip


@pytest.fixture
def experiment(trained_home) -> Path:
    path = trained_home / "demo_attn.gin"
    path.write_text(GIN)
    return path


def twenty_steps(experiment: Path, processes: int, *overrides: str) -> list:
    script = experiment.with_name("steps.py")
    script.write_text(STEPS)
    if processes == 1:  # here, which saves the imports
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), str(experiment), *overrides])
            runpy.run_path(str(script))
    else:
        done = command(script, experiment, *overrides, ranks=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(Path(f"{experiment}.{rank}").read_text()) for rank in range(processes)]
    assert all(result == results[0] for result in results), "every process has the same weights and predictions"
    return results[0]


def test_two_processes_and_parts_of_a_batch_follow_one_process(experiment):
    losses, weights, logits, clips = twenty_steps(experiment, 1)
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert len(set(clips)) == len(clips)
    for processes, overrides in ((2, ()), (1, ("train/accumulate = 3",)), (2, ("train/accumulate = 2",))):
        other = twenty_steps(experiment, processes, *overrides)
        torch.testing.assert_close(torch.tensor(other[0]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(other[1]), torch.tensor(weights), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(other[2]), torch.tensor(logits), rtol=1e-5, atol=1e-5)
        assert other[3] == clips, "no clip is predicted twice or left out"


def train(processes: int, experiment: Path, *overrides: str) -> subprocess.Popen | Beside:
    if processes == 1:
        return Beside("train.py", experiment, *overrides)
    return launch(processes, "tools/train.py", experiment, *overrides)


def train_here(experiment: Path, *overrides: str) -> None:
    """Train in this process."""
    runs.train(*runs.create(config.load(str(experiment), overrides)), progress=False)


def put_aside(home: Path, name: str) -> Path:
    """Move the one run away, so that the same may be trained again."""
    (home / "outputs/last").unlink()
    return folder_of(home).rename(home / name)


def workers(experiment: Path) -> list[int]:
    """Return the processes that train an experiment; what started them is not among them."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if str(experiment) in line and "launch.py" not in line]
    return [int(line.split()[0]) for line in lines]


def folder_of(home: Path) -> Path:
    (folder,) = [path for path in (home / "outputs").iterdir() if path.is_dir()]
    return folder


def wait_for_step(home: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = list(home.glob("outputs/*/log.jsonl"))
        if logs and any(f'"step": {step}' in line for line in logs[0].read_text().splitlines()):
            return
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


def timeless(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def same_weights(one: Path, other: Path) -> bool:
    loaded = [[checkpoints.load(run / path)["model"] for run in (one, other)] for path in (BEST, LAST)]
    return all(torch.equal(first[name], second[name]) for first, second in loaded for name in first)


def test_killed_and_resumed_a_run_ends_as_it_would_have(experiment, trained_home, capsys):
    train_here(experiment, *DROPOUT)
    straight = put_aside(trained_home, "straight")
    killed = train(1, experiment, *DROPOUT)
    wait_for_step(trained_home, timeless(straight)[-1]["step"] // 3)
    killed.kill()
    killed.communicate(timeout=60)
    capsys.readouterr()
    train_here(experiment, *DROPOUT)
    assert "resuming" in capsys.readouterr().out
    assert timeless(folder_of(trained_home)) == timeless(straight)
    assert same_weights(folder_of(trained_home), straight)


def test_when_one_process_dies_all_end_and_resumed_they_end_as_they_would_have(experiment, trained_home):
    straight = command("train.py", experiment, *DROPOUT, ranks=2)
    assert straight.returncode == 0, straight.stderr[-3000:]
    kept = put_aside(trained_home, "straight")
    log = timeless(kept)

    killed = train(2, experiment, *DROPOUT)
    wait_for_step(trained_home, log[-1]["step"] // 3)
    started = time.monotonic()
    os.kill(max(workers(experiment)), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert killed.returncode not in (0, None)
    checkpoints.load(folder_of(trained_home) / LAST)
    resumed = command("train.py", experiment, *DROPOUT, ranks=2)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resuming" in resumed.stdout
    assert timeless(folder_of(trained_home)) == log
    assert same_weights(folder_of(trained_home), kept)


def test_a_scheduler_may_stop_a_run_and_start_it_again(experiment, trained_home):
    process = train(1, experiment, *LONG)
    wait_for_step(trained_home, 5)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "go on with: just resume" in out
    assert checkpoints.load(folder_of(trained_home) / LAST)["state"]["step"] >= 5


def test_a_mistake_ends_all_processes_with_one_line(experiment):
    process = train(2, experiment, "train/epoch = 3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: ")
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize("number", ["0", "two", "-1"])
def test_a_number_of_processes_that_is_none_is_refused(number):
    with pytest.raises(UserError, match="expected"):
        run_in_processes(number, ["tools/train.py", "demo_ecapa"])


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="gpus is 2, but 1 can be seen"):
        run_in_processes("2", ["tools/train.py", "demo_ecapa"])


def test_another_number_of_processes_is_refused(experiment, trained_home):
    process = train(2, experiment, *LONG)
    wait_for_step(trained_home, 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in err
    saved = checkpoints.load(folder_of(trained_home) / LAST)["state"]["step"]
    assert saved == timeless(folder_of(trained_home))[-1]["step"], "the signal is handed on, and the step is saved"
    with pytest.raises(UserError, match="of 2 processes, now 1; go on with as many: just gpus=2 resume"):
        train_here(experiment, *LONG)
