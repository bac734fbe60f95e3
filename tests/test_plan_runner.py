"""A plan: steps in order, each once, a failure held apart, a signal obeyed; and the full plan names what exists."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import PROJECT, command, one_error_line

from ser import config, plan, plan_runner, rehearsal
from ser.corpora import parse_crema_d
from ser.encoders import Pretrained
from ser.errors import UserError
from ser.plan_runner import Options, Step, carry_out, prepared
from ser.votes import plurality, read_votes

JUST = """#!/bin/bash
# notes its arguments; fails where a file says so; train and cv say what run they leave behind
echo "$*" >> "$SER_HOME/calls"
for word in "$@"; do
    if [ "$word" = sleep ]; then trap 'echo told >> "$SER_HOME/calls"; exit 75' TERM; sleep 30 & wait; fi
    if [ "$word" = "$(cat "$SER_HOME/broken" 2>/dev/null)" ]; then echo "error: $word is broken" >&2; exit 2; fi
done
echo other-run-s1-000000 > "$SER_HOME/outputs/last"  # somebody else trains meanwhile
if [[ "$*" == *"train "* ]]; then mkdir -p "$SER_HOME/outputs/model-fold1-s1-abcdef"; fi
if [[ "$*" == *"train mute"* ]]; then exit 0; fi
if [[ "$*" == *"train "* ]]; then echo "training $SER_HOME/outputs/model-fold1-s1-abcdef"; fi
if [[ "$*" == *"cv "* ]]; then
    mkdir -p "$SER_HOME/outputs/model-cv-s1-123456"
    echo "training $SER_HOME/outputs/model-fold6-s1-fedcba"
    echo "model-cv-s1-123456: all folds"
fi
"""

RUN, FOLDS = "model-fold1-s1-abcdef", "model-cv-s1-123456"


@pytest.fixture
def just(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    path = tmp_path / "just"
    path.write_text(JUST)
    path.chmod(0o755)
    return [str(path)]


def calls(folder) -> list[str]:
    path = folder / "calls"
    found = path.read_text().splitlines() if path.is_file() else []
    path.unlink(missing_ok=True)
    return found


STEPS = [
    Step("table", ("prepare ravdess",), 0.1, 0),
    Step("net", ("train model", "eval last"), 1, 2),
    Step("folds", ("cv model 'a/b = \"c d\"'",), 1, 2),
    Step("both", ("ensemble @net @folds",), 1, 2),
    Step("other", ("summary",), 0.1, 1),
]


def test_each_step_is_done_once_in_order_and_runs_go_by_their_names(just, tmp_path, capsys):
    assert carry_out(STEPS, just) == 0
    assert calls(tmp_path) == [
        "prepare ravdess", "train model", f"eval {RUN}", 'cv model a/b = "c d"',
        f"ensemble {RUN} {FOLDS}", "summary",
    ]  # fmt: skip
    assert "all 5 steps are done" in capsys.readouterr().out
    assert "$ " + just[0] + " train model" in (tmp_path / "outputs/plan/net.log").read_text()
    assert carry_out(STEPS, just) == 0
    assert calls(tmp_path) == []


def test_a_failure_keeps_back_only_what_needs_it(just, tmp_path, capsys):
    (tmp_path / "broken").write_text("train")
    assert carry_out(STEPS, just) == 1
    assert calls(tmp_path) == ["prepare ravdess", "train model", 'cv model a/b = "c d"', "summary"]
    said = capsys.readouterr().out
    assert "net: failed: error: train is broken" in said
    assert "both: left out, it needs net" in said
    assert "2 of 5 steps are open: net, both" in said
    (tmp_path / "broken").unlink()
    assert carry_out(STEPS, just) == 0
    assert calls(tmp_path) == [
        "train model",
        f"eval {RUN}",
        f"ensemble {RUN} {FOLDS}",
    ]


def test_other_commands_make_a_step_anew(just, tmp_path):
    assert carry_out(STEPS[:2], just) == 0
    calls(tmp_path)
    assert carry_out([STEPS[0], Step("net", ("train model x",), 1, 2)], just) == 0
    assert calls(tmp_path) == ["train model x"]


def test_options_reach_the_recipes_that_know_them(just, tmp_path):
    assert carry_out(STEPS, just, Options(4, 3, True, lambda words: [f"n = {len(words)}"])) == 0
    assert calls(tmp_path) == [
        "allow_missing=1 prepare ravdess", "gpus=4 train model n = 2", f"eval {RUN}",
        'gpus=4 jobs=3 cv model a/b = "c d" n = 3',
        f"ensemble {RUN} {FOLDS}", "summary",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train ravdess_stats_probe", "train ravdess_stats_probe"),  # a solver would run in each of them
        ("cv ravdess_stats_probe_whisper", "jobs=3 cv ravdess_stats_probe_whisper"),
        ("cv ravdess_ecapa", "gpus=4 jobs=3 cv ravdess_ecapa"),
        ("extract ravdess hubert_large", "gpus=4 extract ravdess hubert_large"),
    ],
)
def test_processes_share_what_they_can_share(command, words):
    assert prepared(command, {}, Options(4, 3)) == words.split()


def test_another_number_of_processes_does_not_void_what_is_done(just, tmp_path):
    assert carry_out(STEPS, just) == 0
    calls(tmp_path)
    assert carry_out(STEPS, just, Options(4, 3)) == 0
    assert calls(tmp_path) == []


def test_only_steps_whose_names_begin_so(just, tmp_path, capsys):
    assert carry_out(STEPS, just, only="o") == 0
    assert calls(tmp_path) == ["summary"]
    assert carry_out(STEPS, just, only="both") == 1
    assert "both: left out, it needs net, folds" in capsys.readouterr().out
    assert carry_out(STEPS, just) == 0
    assert "summary" not in calls(tmp_path)


def test_a_step_goes_on_behind_the_command_that_went_through(just, tmp_path):
    (tmp_path / "broken").write_text("eval")
    assert carry_out(STEPS[:2], just) == 1
    (tmp_path / "broken").unlink()
    calls(tmp_path)
    assert carry_out(STEPS[:2], just) == 0
    assert calls(tmp_path) == [f"eval {RUN}"]


def test_a_step_may_need_another_without_its_run(just, tmp_path, capsys):
    (tmp_path / "broken").write_text("prepare")
    steps = [STEPS[0], Step("net", ("train model",), 1, 2, after=("table",))]
    assert carry_out(steps, just) == 1
    assert "net: left out, it needs table" in capsys.readouterr().out
    assert calls(tmp_path) == ["prepare ravdess"]


def test_other_members_make_an_ensemble_anew_and_so_does_a_run_that_is_gone(just, tmp_path):
    assert carry_out(STEPS, just) == 0
    calls(tmp_path)
    (tmp_path / "outputs/model-cv-s1-123456").rmdir()
    assert carry_out(STEPS, just) == 0
    assert calls(tmp_path) == ['cv model a/b = "c d"']


def test_a_command_that_leaves_no_run_behind_has_failed(just, tmp_path, capsys):
    assert carry_out([Step("net", ("train mute",), 1, 1)], just) == 1
    assert "net: failed: error: the command names no run" in capsys.readouterr().out


def test_while_a_command_of_a_killed_plan_runs_no_other_begins(just, tmp_path):
    code = f"from ser.plan_runner import Step, carry_out; carry_out([Step('b', ('sleep',), 1, 1)], {just!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.DEVNULL)
    wait_for(tmp_path, "sleep")
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="a plan is being carried out here"):
        carry_out(STEPS, just)
    (child,) = [
        int(line)
        for line in subprocess.run(["pgrep", "-f", f"{just[0]} sleep"], capture_output=True, text=True).stdout.split()
    ]
    os.killpg(child, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert carry_out(STEPS[:1], just) == 0
            return
        except UserError:
            time.sleep(0.1)
    raise AssertionError("the lock outlives the command")


def wait_for(folder, word: str) -> None:
    """Wait until a call was noted, and the child has set its trap."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (folder / "calls").is_file() and word in (folder / "calls").read_text():
            time.sleep(0.3)
            return
        time.sleep(0.02)
    raise AssertionError(f"{word} was not called")


def test_a_signal_is_handed_on_and_the_same_command_goes_on(just, tmp_path):
    code = (
        "from ser.plan_runner import Step, carry_out; import sys\n"
        f"sys.exit(carry_out([Step('a', ('summary',), 1, 1), Step('b', ('sleep',), 1, 1)], {just!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path, "sleep")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "stopped in b; the same command goes on" in said
    assert calls(tmp_path) == ["summary", "sleep", "told"]
    assert carry_out([Step("a", ("summary",), 1, 1), Step("b", ("summary",), 1, 1)], just) == 0
    assert calls(tmp_path) == ["summary"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step("a", ("ensemble @b @b",), 1, 1), Step("b", ("train x",), 1, 1)], "'a' needs 'b', which does not come"),
        ([Step("a", ("summary",), 1, 1), Step("a", ("summary",), 1, 1)], "two steps are called 'a'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(just, steps, message):
    with pytest.raises(UserError, match=message):
        carry_out(steps, just)


@pytest.mark.parametrize("damage", ["[]", "{", '{"through": 9}', '{"through": "x"}', '{"through": -1}'])
def test_a_damaged_record_makes_the_step_anew(just, tmp_path, damage):
    assert carry_out(STEPS[:1], just) == 0
    path = tmp_path / "outputs/plan/table.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | json.loads(damage)) if damage.startswith('{"') else damage)
    calls(tmp_path)
    assert carry_out(STEPS[:1], just) == 0
    assert calls(tmp_path) == ["prepare ravdess"]


def words_of_the_full_plan() -> list[list[str]]:
    return [shlex.split(line) for step in plan.full_plan() for line in step.commands]


def test_the_full_plan_is_in_order_and_its_recipes_exist():
    plan_runner.check(plan.full_plan())
    listed = (PROJECT / "Justfile").read_text()
    for words in words_of_the_full_plan():
        recipe = next(word for word in words if "=" not in word)
        assert re.search(rf"^{re.escape(recipe)}[ :]", listed, re.MULTILINE), recipe


@pytest.mark.parametrize(
    "words", [words for words in words_of_the_full_plan() if words[0] in plan_runner.GIN_RECIPES], ids=" ".join
)
def test_the_full_plans_settings_are_right_also_when_rehearsed(words):
    for more in ([], rehearsal.overrides(words)):
        if words[0] in ("train", "cv"):
            config.load(words[1], [*words[2:], *more])
        else:
            config.load_features(words[2], [*words[3:], *more])


def test_a_rehearsal_makes_everything_small():
    assert rehearsal.overrides(["extract", "ravdess", "logmel80"]) == []
    small = ["encoder/width = 32", "encoder/states = 4"]
    assert rehearsal.overrides(["extract", "ravdess", "hubert_large_ll60k"]) == small
    frames = rehearsal.overrides(["extract", "ravdess", "hubert_large_ll60k", "encoder/layers = [12]"])
    assert frames == [*small, "encoder/layers = [2]"]
    assert "ecapa/channels = 32" in rehearsal.overrides(["train", "ravdess_ecapa"])
    assert "encoder/layers = [2]" in rehearsal.overrides(["cv", "ravdess_hubert_attn"])


def test_a_rehearsal_has_recordings_votes_and_encoders(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    rehearsal.prepare(tmp_path)
    for corpus in ("ravdess", "crema_d"):
        assert json.loads((tmp_path / f"data/{corpus}/local.json").read_text())["raw"] == str(tmp_path / "raw" / corpus)
    votes = read_votes(tmp_path / "raw/crema_d/tabulatedVotes.csv")
    assert set(votes) == set(rehearsal.clip_names("crema_d"))
    assert all(plurality(one.voice) == parse_crema_d(clip)["emotion"] for clip, one in votes.items())
    for source, bands in (("facebook/hubert-large-ll60k", None), ("openai/whisper-large-v3", 128)):
        encoder = Pretrained(source, rehearsal.WIDTH, rehearsal.STATES).load()
        assert bands is None or encoder.front_end.shape == (bands,)
    made = (tmp_path / "raw").stat().st_mtime_ns
    rehearsal.prepare(tmp_path)
    assert (tmp_path / "raw").stat().st_mtime_ns == made
    rehearsal.close(tmp_path)
    (tmp_path / "outputs").mkdir()
    rehearsal.prepare(tmp_path)
    assert not (tmp_path / "outputs").exists()
    (tmp_path / "raw").rename(tmp_path / "unfinished")  # as if it had been stopped
    rehearsal.prepare(tmp_path)
    assert len(list((tmp_path / "raw").rglob("*.wav"))) == len(votes) + len(rehearsal.clip_names("ravdess"))


def test_without_a_gpu_the_plan_stops_before_it_begins(tmp_path, run_here, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "go on all the same: just plan --cpu" in one_error_line(run_here("plan.py", "just", "Justfile"))
    assert not os.listdir(tmp_path)


def test_the_list_shows_hours_memory_and_commands(tmp_path):
    listed = command("plan.py", "just", "Justfile", "--list", home=tmp_path).stdout
    assert "cv ravdess_ecapa" in listed
    assert "GPU GiB" in listed
    done = command("plan.py", "just", "Justfile", "--only", "nothing", home=tmp_path)
    assert "no step's name begins so" in one_error_line(done)
    assert not os.listdir(tmp_path)
