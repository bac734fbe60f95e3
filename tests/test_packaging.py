"""The wheel: built from a copy of the tree, installed into an empty environment, it predicts there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT

import ser
from ser import audio


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Return a folder with wheel and source archive."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tree / name)
    shutil.copytree(PROJECT / "ser", tree / "ser", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", "."], cwd=tree, check=True,
        capture_output=True,
    )  # fmt: skip
    return tree / "out"


def test_wheel_and_source_archive_are_whole(dist):
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.name == f"ser_toolkit-{ser.__version__}-py3-none-any.whl"
    modules = {f"ser/{path.name}" for path in (PROJECT / "ser").iterdir() if path.suffix in (".py", ".typed")}
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = [file.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {name for name in names if name.startswith("ser/")} == modules
    assert "ser/py.typed" in modules
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    for line in ("Name: ser-toolkit", "License: MIT", "Classifier: Typing :: Typed", "Provides-Extra: s3"):
        assert line in metadata.splitlines()
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert modules <= inside


def test_installed_into_an_empty_environment_it_predicts(dist, delivered, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", *map(str, dist.glob("*.whl"))], check=True,
    )  # fmt: skip
    packages = next((tmp_path / "env/lib").iterdir()) / "site-packages"
    (packages / "those.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch, numpy, soundfile: not twice
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SER_HOME")}
    tone = (np.sin(np.arange(16_000) / 7) * 0.3).astype(np.float32)
    audio.write(tmp_path / "tone.wav", tone)

    def run(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(packages) in run(python, "-c", "import ser; print(ser.__file__)")
    assert run(tmp_path / "env/bin/ser", "--version") == f"ser {ser.__version__}\n"
    answer = json.loads(run(tmp_path / "env/bin/ser", "predict", delivered / "outputs/small/export", "tone.wav"))
    assert answer["label"] in answer["probabilities"]
