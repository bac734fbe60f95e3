"""The interface: every recipe parses, stands in its group, and hands its arguments on whole."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PROJECT

JUST = shutil.which("just", path=f"{PROJECT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(JUST is None, reason="just is not installed")

ARGUMENTS = {
    "download": ["ravdess"],
    "verify": ["demo"], "metadata": ["demo"], "split": ["demo", "holdout"], "histogram": ["demo"],
    "prepare": ["demo"], "extract": ["demo", "logmel80"], "show": ["demo_ecapa"], "dry-run": ["demo_ecapa"],
    "train": ["demo_ecapa"], "resume": ["last"], "cv": ["ravdess_ecapa"], "eval": ["last"],
    "ablate": ["ravdess_ecapa", "train/lr = 3e-3"],
    "cross": ["last", "demo"], "compare": ["last", "last"], "robustness": ["last"],
    "ensemble": ["last", "last"], "report": ["last"], "augment-demo": [], "bench": ["startup"],
    "probe": ["ravdess", "whisper_tiny_en"], "results": ["ravdess"], "export": ["last"], "predict": ["last", "a.wav"],
    "publish": ["last", "file:///tmp/x"],
}  # fmt: skip


def just(*arguments: str, cwd: Path = PROJECT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [JUST, "--justfile", str(PROJECT / "Justfile"), *arguments], capture_output=True, text=True, cwd=cwd,
        env=dict(os.environ) | env, timeout=120,
    )  # fmt: skip


def recipes() -> list[str]:
    return just("--summary").stdout.split()


def test_every_recipe_parses_and_names_tools_that_exist():
    for recipe in recipes():
        done = just("--dry-run", recipe, *ARGUMENTS.get(recipe, []))
        assert done.returncode == 0, (recipe, done.stderr)
        for word in done.stderr.replace("'", " ").split():
            if word.startswith(str(PROJECT / "tools")) and "." in Path(word).name:
                assert Path(word).is_file(), (recipe, word)


def test_recipes_are_listed_by_phase_with_a_line_each():
    listed = just().stdout
    groups = [line.strip() for line in listed.splitlines() if line.strip().startswith("[")]
    assert groups == [
        "[setup]", "[the whole job]", "[1 data]", "[2 features]", "[3-5 training]", "[6-7 evaluation]", "[8 delivery]",
        "[upkeep]",
    ]  # fmt: skip
    for recipe in recipes():
        (line,) = [line for line in listed.splitlines() if line.strip().split(" ")[0] == recipe]
        assert "#" in line, recipe


def test_an_override_arrives_whole_from_any_folder(tmp_path):
    done = just("show", "demo_ecapa", "Tracking.project = 'a  b = $HOME'", cwd=tmp_path)
    assert "Tracking.project = 'a  b = $HOME'" in done.stdout, done.stderr


def test_relative_paths_count_from_where_the_caller_stands(tmp_path):
    (tmp_path / "my sound").mkdir()
    done = just("raw=my sound", "verify", "ravdess", cwd=tmp_path, SER_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert "error: my sound: no sound file of RAVDESS speech here" in done.stderr


def test_results_look_where_the_caller_says(tmp_path):
    (tmp_path / "my sound").mkdir()
    done = just("raw=my sound", "allow_missing=1", "results", "ravdess", cwd=tmp_path, SER_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert "just 'raw=my sound' 'allow_missing=1' 'prepare' 'ravdess'" in done.stdout
    assert "error: my sound: no sound file of RAVDESS speech here" in done.stderr


def test_a_users_mistake_keeps_exit_status_2(tmp_path):
    assert just("eval", "nothing", SER_HOME=str(tmp_path)).returncode == 2


def test_doctor_says_what_was_found_and_what_to_do_next(tmp_path):
    done = just("doctor", SER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for text in ("torch", "CPU", "crema_d", "not prepared", "just demo", "just raw=PATH prepare ravdess"):
        assert text in done.stdout
