"""Tracking: what is logged is read back, W&B's mode follows the wish, the environment is described."""

import json

import pytest

from ser.errors import UserError
from ser.tracking import Tracking, environment, read_log, wandb_mode


def test_lines_are_read_back_and_a_cut_one_is_left_out(tmp_path):
    tracker = Tracking("off").open(tmp_path, {}, "group")
    tracker.log(1, {"train/loss": 0.5})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "train/lo')
    tracker.log(3, {"train/loss": 0.25})
    assert read_log(tmp_path) == [{"step": 1, "train/loss": 0.5}, {"step": 3, "train/loss": 0.25}]


def test_rewinding_drops_what_a_resumed_run_writes_again(tmp_path):
    tracker = Tracking("off").open(tmp_path, {}, "group")
    for step in range(1, 6):
        tracker.log(step, {})
    tracker.rewind(3)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("asked", "variables", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, "off"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("off", {"WANDB_API_KEY": "x"}, "off"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
    ],
)
def test_the_mode_follows_the_setting_then_the_environment(asked, variables, mode, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="did you mean 'offline'"):
        Tracking("ofline")
    with pytest.raises(UserError, match="expected a number of steps"):
        Tracking("off", every=0)


def test_the_environment_names_versions_machine_and_revision():
    found = environment()
    assert found["packages"]["torch"]
    assert found["machine"]["cores"] >= 1
    assert set(found["git"]) == {"commit", "diff"}
    json.dumps(found)
