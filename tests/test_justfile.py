"""The interface: every recipe parses, stands in its group, and hands its arguments on whole."""

import os
import re
import shlex
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


@pytest.mark.parametrize(
    ("words", "passed_on"),
    [
        (["part=val", "eval", "last"], "--part 'val'"),
        (["labels=voice", "eval", "last"], "--labels 'voice'"),
        (["speaker_clips=5", "eval", "last"], "--speaker-clips '5'"),
        (["seen=1", "eval", "last"], "--seen"),
        (["part=val", "compare", "A", "B"], "--part 'val'"),
        (["part=val", "robustness", "last"], "--part 'val'"),
        (["adapt=1", "cross", "last", "crema_d"], "--adapt"),
        (["calm=leave_out", "cross", "last", "crema_d"], "--calm 'leave_out'"),
        (["average=logits", "ensemble", "A", "B"], "--average 'logits'"),
        (["weights=fitted", "ensemble", "A", "B"], "--weights 'fitted'"),
        (["sound=1", "report", "last"], "--sound"),
        (["overwrite=1", "publish", "last", "file:///x"], "--overwrite"),
        (["seeds=5", "ablate", "demo_ecapa", "x"], "--seeds '5'"),
        (["jobs=2", "cv", "ravdess_ecapa"], "--jobs '2'"),
        (["gpus=2", "train", "demo_ecapa"], "launch.py '2' "),
        (["gpus=2", "cv", "ravdess_ecapa"], "--gpus '2'"),
        (["allow_missing=1", "metadata", "crema_d"], "--allow-missing"),
    ],
    ids=" ".join,
)
def test_a_variable_reaches_its_tool_and_is_absent_without(words, passed_on):
    name = words[0].partition("=")[0]
    told, plain = just("--dry-run", *words), just("--dry-run", *words[1:])
    assert told.returncode == plain.returncode == 0, told.stderr
    assert passed_on in told.stderr
    assert passed_on not in plain.stderr, f"{name} is not its default"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["eval", "A", "--part", "val"], "--part"), (["compare", "A", "B", "--part", "val"], "--part"),
        (["ensemble", "A", "B", "--weights", "fitted"], "--weights"), (["robustness", "A", "--part", "val"], "--part"),
        (["cross", "A", "demo", "--calm", "leave_out"], "--calm"),
        (["ablate", "E", "x = 1", "--seeds", "5"], "--seeds"),
        (["cv", "E", "--jobs", "3"], "--jobs"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_option_behind_the_recipe_wins(words, option):
    (line,) = [line for line in just("--dry-run", *words).stderr.splitlines() if "/tools'/" in line]
    assert line.index(option) < line.index('"$@"')  # of two, the last counts


def test_a_checkout_may_lie_anywhere(tmp_path):
    folder = tmp_path / "o'neil's $HOME"
    folder.mkdir()
    shutil.copy(PROJECT / "Justfile", folder)
    for recipe in recipes():
        words = [JUST, "--dry-run", "--justfile", str(folder / "Justfile"), recipe, *ARGUMENTS.get(recipe, [])]
        done = subprocess.run(words, capture_output=True, text=True)
        (*_, last) = done.stderr.strip().splitlines()
        assert str(folder) in "".join(shlex.split(last)), (recipe, last)


def test_results_hand_on_how_many_share_the_work():
    shown = just("--dry-run", "jobs=3", "gpus=2", "results", "ravdess").stderr
    assert "'jobs=3' 'gpus=2'" in shown


@pytest.mark.parametrize("name", ["seen", "adapt", "sound", "overwrite", "allow_missing"])
def test_a_switch_is_1_or_nothing(name):
    done = just("--dry-run", f"{name}=2", "eval", "last")
    assert done.returncode != 0
    assert f"{name} is '2'; expected 1, or nothing" in done.stderr


def variables(recipe: str) -> tuple[set[str], set[str]]:
    """Return which variables a recipe says that it takes, and those that its body looks at."""
    (said, body) = re.search(rf"^{recipe}\b[^:\n]*: \(_takes '{recipe}'([^)]*)\)\n((?:    .*\n)+)", TEXT, re.M).groups()
    behind = {"speaker_clips_flag", "seen_flag", "sound_flag", "adapt_flag", "overwrite_flag", "missing_flag", "launch"}
    used = set(re.findall(r"\w+", " ".join(re.findall(r"{{(.*?)}}", body)) + " ".join(re.findall(r"\$\{(\w+)", body))))
    own = {"missing_flag": "allow_missing", "launch": "gpus"}
    names = {own.get(name, name.removesuffix("_flag")) if name in behind else name for name in used}
    return set(re.findall(r"'(\w+)'", said)), names & set(re.findall(r"^(?:export )?(\w+) := \"", TEXT, re.M))


TEXT = (PROJECT / "Justfile").read_text()
TAKING = re.findall(r"^([a-z-]+)\b[^:\n]*: \(_takes", TEXT, re.M)
SHARED = {"split", "histogram", "plan"}  # what of `prepare` needs no recordings, and what says more of them itself


@pytest.mark.parametrize("recipe", TAKING)
def test_a_recipe_takes_the_variables_that_it_looks_at(recipe):
    said, used = variables(recipe)
    assert said - {"raw", "allow_missing"} == used - {"raw", "allow_missing"}
    assert said == used or recipe in SHARED


@pytest.mark.parametrize("recipe", TAKING)
def test_a_variable_that_a_recipe_would_not_look_at_is_refused(recipe, tmp_path):
    said, _ = variables(recipe)
    name = next(name for name in ("labels", "weights") if name not in said)
    done = just(f"{name}=voice", recipe, *ARGUMENTS.get(recipe, []), SER_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"error: {name}= means nothing to {recipe}, which takes" in done.stderr


def test_relative_paths_count_from_where_the_caller_stands(tmp_path):
    (tmp_path / "my sound").mkdir()
    done = just("raw=my sound", "verify", "ravdess", cwd=tmp_path, SER_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert "error: my sound: no sound file of RAVDESS speech here" in done.stderr


def test_results_look_where_the_caller_says(tmp_path):
    (tmp_path / "my sound").mkdir()
    done = just("raw=my sound", "allow_missing=1", "results", "ravdess", cwd=tmp_path, SER_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert r"just raw=my\ sound allow_missing=1 prepare ravdess" in done.stdout
    assert "error: my sound: no sound file of RAVDESS speech here" in done.stderr


def test_results_go_by_the_names_of_their_runs(prepared, tmp_path):
    fake = tmp_path / "just"
    fake.write_text('#!/bin/bash\nshift 2; printf "%s|" "$@" >> "$CALLS"; echo >> "$CALLS"\n')
    fake.chmod(0o755)
    env = dict(os.environ) | {"SER_HOME": str(prepared), "CALLS": str(tmp_path / "calls")}
    script = [str(PROJECT / "tools/results.sh"), str(fake), str(PROJECT / "Justfile")]
    subprocess.run([*script, "ravdess", "jobs=3", "gpus=1", "raw=x"], env=env, check=True, capture_output=True)
    calls = [line.split("|")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[0] == ["raw=x", "prepare", "ravdess"]
    name = next(call[1] for call in calls if call[0] == "eval")
    assert re.fullmatch(r"ravdess_stats_probe_copies-fold1-s1-[0-9a-f]{6}", name)
    assert ["report", name] in calls
    assert ["export", name] in calls
    assert ["jobs=3", "gpus=1", "cv", "ravdess_stats_probe_copies"] in calls
    assert calls[-1] == ["summary"]


def test_a_users_mistake_keeps_exit_status_2(tmp_path):
    done = just("eval", "nothing", SER_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1


def test_doctor_says_what_was_found_and_what_to_do_next(tmp_path):
    done = just("doctor", SER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for text in ("torch", "CPU", "crema_d", "not prepared", "just demo", "just raw=PATH prepare ravdess"):
        assert text in done.stdout
