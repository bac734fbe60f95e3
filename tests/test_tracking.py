"""Tracking: what is logged is read back, W&B's mode follows the wish, the environment is described."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT
from wandb_server import wandb_server

from ser.audio import SOUND_SUFFIXES
from ser.environment import commits, environment, short
from ser.errors import UserError
from ser.tracking import Tracker, Tracking, read_log, wandb_mode
from ser.wording import commits_text


def test_lines_are_read_back_and_a_cut_one_is_left_out(tmp_path):
    tracker = Tracker(Tracking("off"), tmp_path, {}, "group")
    tracker.log(1, {"train/loss": 0.5})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "train/lo')
    tracker.log(3, {"train/loss": 0.25})
    assert read_log(tmp_path) == [{"step": 1, "train/loss": 0.5}, {"step": 3, "train/loss": 0.25}]


def test_rewinding_drops_what_a_resumed_run_writes_again(tmp_path):
    tracker = Tracker(Tracking("off"), tmp_path, {}, "group")
    for step in range(1, 6):
        tracker.log(step, {})
    tracker.log(3, {"epoch": 1})
    tracker.rewind(3, 1)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 3]
    tracker.rewind(3, 0)  # saved before that epoch was validated, which is done again
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
    for name, value in ({"NETRC": os.devnull} | variables).items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


def test_auto_is_online_after_a_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password x\n")
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.lab:8080")
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine wandb.lab:8080 login user password x\n")
    assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").write_bytes(b"machine \xff\xfe")
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("not of its kind")
    assert wandb_mode("auto") == "offline"


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="did you mean 'offline'"):
        Tracking("ofline")
    with pytest.raises(UserError, match="expected a number of steps"):
        Tracking("off", every=0)


def test_the_environment_names_versions_machine_and_revision():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=PROJECT).stdout.strip()
    assert found["git"].keys() == {"commit", "changed"}
    assert found["git"]["commit"] == head
    json.dumps(found)


def test_a_commit_of_changed_code_is_marked(tmp_path):
    def session(commit, **changes):
        return {"git": {"commit": commit, **changes}}

    sessions = [session("a" * 40, changed=""), session("b" * 40, changed=" M ser/optim.py"), session(None, changed="")]
    sessions.append(session("c" * 40, diff="1 file changed"))  # as an earlier version of ser wrote it
    (tmp_path / "environment.json").write_text(json.dumps({"sessions": sessions}))
    assert commits(tmp_path) == ["a" * 40, "b" * 40 + "+", "c" * 40 + "+"]
    assert short("b" * 40 + "+") == "bbbbbbb+"
    assert commits_text(["a" * 40]) == ""
    assert commits_text(["b" * 40 + "+"]).startswith("trained by bbbbbbb+")
    assert "different versions: aaaaaaa, bbbbbbb+" in commits_text(commits(tmp_path)[:2])


CHILD = """
import sys
from pathlib import Path
from ser import tracking
tracking.FINISH_SECONDS = 1
settings = {"train/lr": 0.1, "train/epochs": 3}
tracker = tracking.Tracker(tracking.Tracking("online"), Path(sys.argv[1]), settings, "folds", ["tagged"])
tracker.log(1, {"train/loss": 2.0})
tracker.confusion(1, [[3, 1], [0, 4]], ["angry", "sad"])
print("logged", flush=True)
input()
tracker.log(2, {"train/loss": 1.0})
tracker.close()
"""


def start_online(folder, server):
    """Start a process that tracks online, and wait until it has logged."""
    env = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_PROJECT": "emotions"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], text=True, env=env, **pipes)
    assert child.stdout.readline().strip() == "logged"
    return child


def is_sound(name: str, content: bytes) -> bool:
    """Say whether an uploaded file is sound, by its name or by what it begins with."""
    begins = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b"caff", b".snd")
    suffixes = (*SOUND_SUFFIXES, ".aif", ".aiff", ".au", ".m4a", ".ogg", ".opus", ".raw")
    return name.lower().endswith(suffixes) or content.startswith(begins) or content[4:8] == b"ftyp"


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_sound_is_told_by_its_name_and_by_its_content(tmp_path, suffix):
    import soundfile

    soundfile.write(tmp_path / f"clip{suffix}", [0.0, 0.1] * 4000, 16_000)
    assert is_sound(f"media/audio/clip{suffix}", b"")
    assert is_sound("clip", (tmp_path / f"clip{suffix}").read_bytes())
    assert not is_sound("media/images/confusion.png", b"\x89PNG")


def test_wandb_receives_typed_settings_curves_and_the_confusion_matrix(tmp_path):
    with wandb_server() as server:
        out, err = start_online(tmp_path, server).communicate("\n", timeout=60)
    assert out == ""
    assert err == ""
    assert [line["train/loss"] for line in server.history if "train/loss" in line] == [2, 1]
    assert {line["step"] for line in server.history} == {1, 2}
    assert any(name.startswith("media/images/val/confusion") for name in server.files)
    assert not [name for name, content in server.files.items() if is_sound(name, content)]
    assert server.config["train/epochs"] == 3
    assert "folds" in server.groups
    assert server.projects == {"emotions"}
    assert "tagged" in server.tags


def test_an_outage_ends_neither_training_nor_waits_long_and_what_was_kept_is_synced_later(tmp_path):
    with wandb_server() as server:
        child = start_online(tmp_path, server)
    out, err = child.communicate("\n", timeout=60)
    assert child.returncode == 0
    assert [line["train/loss"] for line in read_log(tmp_path) if "train/loss" in line] == [2.0, 1.0]
    assert "TimeoutError" in err
    command = out.strip().partition("upload it with: ")[2]
    with wandb_server() as later:
        env = os.environ | {"WANDB_BASE_URL": later.url, "WANDB_API_KEY": "a" * 40}
        subprocess.run(shlex.split(command), check=True, env=env, timeout=60, capture_output=True)
    assert [line["train/loss"] for line in later.history if "train/loss" in line] == [2, 1]
