"""The ``ser`` command."""

import json
import subprocess
import sys

import pytest
import torch

from ser import __version__, cli


def ser(*arguments: str) -> subprocess.CompletedProcess:
    code = "from ser.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def test_version_and_help():
    assert ser("--version").stdout == f"ser {__version__}\n"
    assert "doctor" in ser("--help").stdout
    assert ser("docter").returncode == 2


def test_doctor_follows_the_state_of_each_corpus(trained_home):
    states = cli.corpora_found()
    assert states["ravdess"][1] in ("just train ravdess_ecapa", "just train ravdess_stats_probe")  # as others left it
    assert "features: " in states["ravdess"][0]
    assert "logmel80" in states["ravdess"][0]
    assert "official clips" not in states["emodb"][0]
    assert states["emodb"] == ("EmoDB: not prepared", "just raw=PATH prepare emodb")


@pytest.mark.parametrize(
    ("corpus", "stores", "step"),
    [
        ("crema_d", [], "just extract crema_d whisper_tiny_en"),
        ("crema_d", ["whisper_tiny_en-frames"], "just extract crema_d whisper_tiny_en"),
        ("emodb", [], "just extract emodb whisper_tiny"),
        ("emodb", ["logmel80"], "just train emodb_ecapa"),
        ("demo", [], "just extract demo logmel80"),
        ("crema_d", ["logmel80", "whisper_tiny_en-statistics"], "just train crema_d_stats_probe"),
        ("custom", ["whisper_tiny-statistics"], "just train custom_stats_probe"),
        ("demo", ["logmel80"], "just train demo_ecapa"),
    ],
)
def test_the_next_step_finds_its_features(corpus, stores, step):
    assert cli.next_step(corpus, stores) == step


def test_doctor_names_a_gpu_whose_driver_is_too_old(home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "1 GPU that torch cannot use" in cli.doctor()


def test_doctor_of_a_wheel_names_no_recipe(home, monkeypatch):
    monkeypatch.setattr("ser.files.PROJECT", home)
    said = cli.doctor()
    assert "just" not in said
    assert said.splitlines()[-2:] == ["  ser predict EXPORT speech.wav", "  (training needs the repository)"]


def test_doctor_survives_a_damaged_corpus(home):
    folder = home / "data/demo"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("nonsense\n")
    (folder / "local.json").write_text(json.dumps({"raw": str(home), "missing": 0}))
    assert "the header lacks" in cli.corpora_found()["demo"][0]
