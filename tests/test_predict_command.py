"""``ser predict``, ``info`` and ``enrol`` as people call them."""

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from conftest import one_error_line

from ser import audio, cli
from ser.metadata import read_table
from ser.prediction_formats import FORMATS


@pytest.fixture
def sound(delivered, monkeypatch, tmp_path) -> list[Path]:
    """Return three clips, copied into a folder of their own."""
    monkeypatch.setenv("SER_HOME", str(delivered))
    table = read_table("demo")
    (tmp_path / "sound").mkdir()
    paths = []
    for number, clip in enumerate(table.clips[:3]):
        paths.append(tmp_path / "sound" / f"{number}.wav")
        paths[-1].write_bytes(table.sound_path(clip).read_bytes())
    return paths


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ser(*arguments: object, home: Path, out: io.StringIO | None = None) -> subprocess.CompletedProcess:
    """Run the ``ser`` command in this process, which saves the start of one, with all that it keeps in ``home``."""
    words = [str(argument) for argument in arguments]
    out, said = out or io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(said):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["ser", *words])
        patch.setenv("XDG_DATA_HOME", str(home / "share"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        with pytest.raises(SystemExit) as end:
            cli.main()
    return subprocess.CompletedProcess(words, end.value.code or 0, out.getvalue(), said.getvalue())


def ser_process(*arguments: object, home: Path, code: str = "", **options) -> subprocess.CompletedProcess:
    """Run the ``ser`` command in a process of its own, after some code."""
    code = code + "import ser.cli; ser.cli.main()"
    env = dict(os.environ) | {"XDG_DATA_HOME": str(home / "share"), "XDG_CACHE_HOME": str(home / "cache")}
    options.setdefault("text", True)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, env=env, cwd=home, timeout=120,
        **options,
    )  # fmt: skip


@pytest.fixture
def model(delivered) -> Path:
    return delivered / "outputs/small/export"


def test_each_format_tells_the_same(model, sound, tmp_path):
    out = {form: ser("predict", model, *sound, "--format", form, home=tmp_path) for form in list(FORMATS)[:3]}
    assert [done.returncode for done in out.values()] == [0, 0, 0]
    rows = [json.loads(line) for line in out["jsonl"].stdout.splitlines()]
    table = list(csv.DictReader(io.StringIO(out["csv"].stdout)))
    shown = [line.split() for line in out["table"].stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in sound]
    for row, line, cells in zip(rows, table, shown[1:], strict=True):
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get) == line["label"] == cells[0]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        for label, value in row["probabilities"].items():
            assert float(line[f"p_{label}"]) == pytest.approx(value, abs=2e-6)
        assert line["file"] == cells[-1] == row["file"]


def test_on_a_terminal_a_table_comes(model, sound, tmp_path):
    shown = ser("predict", model, sound[0], home=tmp_path, out=Terminal()).stdout.splitlines()
    assert shown[0].split()[-1] == "file"
    assert shown[1].split()[-1] == str(sound[0])
    ser("predict", model, sound[0], "--output", tmp_path / "answers", home=tmp_path, out=Terminal())
    assert json.loads((tmp_path / "answers").read_text())["file"] == str(sound[0])


def test_off_a_terminal_json_lines_come_and_doubt_has_no_label(model, sound, tmp_path):
    done = ser("predict", model, sound[0], "--threshold", 0.999, home=tmp_path)
    assert json.loads(done.stdout)["label"] is None
    done = ser("predict", model, sound[0], "--threshold", 0.999, "--format", "csv", home=tmp_path)
    assert done.stdout.splitlines()[1].split(",")[4] == "unsure"


def test_folders_patterns_tables_and_standard_input_are_read(model, sound, tmp_path):
    (tmp_path / "list.csv").write_text("path,speaker\nsound/0.wav,anna\nsound/1.wav,\n")
    done = ser_process(
        "predict", model, "sound", "sound/[12].wav", "list.csv", "-", home=tmp_path,
        input=sound[2].read_bytes(), text=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == [
        "sound/0.wav", "sound/1.wav", "sound/2.wav", "sound/1.wav", "sound/2.wav", "sound/0.wav", "sound/1.wav", "-",
    ]  # fmt: skip
    assert [row.get("speaker") for row in rows] == [None] * 5 + ["anna", None, None]
    assert rows[-1]["probabilities"] == rows[2]["probabilities"]


def test_one_bad_file_does_not_keep_the_others_from_being_answered(model, sound, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    done = ser("predict", model, sound[0], "bad.wav", sound[1], "--output", "out.jsonl", home=tmp_path)
    assert one_error_line(done).startswith("error: bad.wav: is not a sound file")
    assert "1 of 3 files were not answered" in done.stderr
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [str(sound[0]), str(sound[1])]


def test_a_timeline_becomes_an_audacity_track(model, sound, tmp_path):
    joined = np.concatenate([audio.read(path) for path in sound])
    audio.write(tmp_path / "talk.flac", joined)
    done = ser("predict", model, "talk.flac", "--window", 0.5, "--hop", 0.25, "--format", "audacity", home=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert float(rows[1][0]) == 0.25
    assert float(rows[-1][1]) == pytest.approx(len(joined) / 16_000, abs=1e-3)
    assert all(0 < float(label.split()[1]) <= 1 for *_, label in rows)


def test_a_speaker_is_enrolled_named_and_listed(model, sound, tmp_path):
    done = ser("enrol", model, "anna", *sound[:2], home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "anna: 2 clips known" in done.stdout
    info = json.loads(ser("info", model, "--json", home=tmp_path).stdout)
    assert info["speakers"] == ["anna"]
    plain = json.loads(ser("predict", model, sound[2], home=tmp_path).stdout)
    frozen = ser("predict", model, sound[2], "--speaker", "anna", "--frozen", home=tmp_path).stdout
    hers = json.loads(frozen)
    assert hers["speaker"] == "anna"
    assert hers["probabilities"] != plain["probabilities"]
    assert ser("predict", model, sound[2], "--speaker", "anna", home=tmp_path).stdout == frozen
    later = ser("predict", model, sound[2], "--speaker", "anna", "--frozen", home=tmp_path).stdout
    assert json.loads(later)["probabilities"] != hers["probabilities"], "the clip before was learned"
    done = ser("enrol", model, "bob", sound[0], "nothing.wav", home=tmp_path)
    assert "nothing.wav: no such file" in one_error_line(done)
    assert json.loads(ser("info", model, "--json", home=tmp_path).stdout)["speakers"] == ["anna"], "all or none"


def test_info_says_what_a_model_is_and_pins_it(model, tmp_path):
    done = ser("info", model, home=tmp_path)
    for text in ("EcapaTdnn", "angry, disgust", "model.ts", "sha256", "demo_ecapa", "epoch 1"):
        assert text in done.stdout
    pin = json.loads(ser("info", model, "--json", home=tmp_path).stdout)["sha256"]
    assert ser("info", model, "--sha256", pin, home=tmp_path).returncode == 0
    assert "another version" in one_error_line(ser("info", model, "--sha256", "0" * 64, home=tmp_path))


def test_predicting_imports_torch_numpy_and_soundfile_alone(model, sound, tmp_path):
    guard = """
import importlib.abc, sys
class Guard(importlib.abc.MetaPathFinder):
    names = {"transformers", "speechbrain", "torchaudio", "gin", "wandb", "sklearn", "scipy", "matplotlib", "tqdm",
             "httpx", "huggingface_hub", "fsspec", "onnx", "onnxruntime", "pandas", "requests"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} has no place here")
sys.meta_path.insert(0, Guard())
"""
    done = ser_process("predict", model, *sound, "--speaker", "anna", home=tmp_path, code=guard)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


MISTAKES = {
    "no model": (["predict", "nothing", "a.wav"], "nothing: no run of this name"),
    "no file": (["predict", "MODEL", "gone.wav"], "gone.wav: no such file"),
    "no match": (["predict", "MODEL", "*.mp7"], r"*.mp7: no file matches this pattern"),
    "empty folder": (["predict", "MODEL", "."], ".: no sound file in this folder"),
    "threshold": (["predict", "MODEL", "a.wav", "--threshold", "7"], "--threshold is 7; expected a probability"),
    "silence alone": (["predict", "MODEL", "a.wav", "--silence", "-50"], "--silence needs --window"),
    "loud silence": (
        ["predict", "MODEL", "a.wav", "--window", "1", "--silence", "nan"],
        "--silence is nan; expected dB",
    ),
    "hop alone": (["predict", "MODEL", "a.wav", "--hop", "1"], "--hop needs --window"),
    "audacity of many": (["predict", "MODEL", "a.wav", "b.wav", "--format", "audacity"], "labels one recording, not 2"),
    "no such table": (["predict", "MODEL", "list.csv"], "list.csv: no such file"),
    "unreadable address": (["predict", "nowhere://x/y", "a.wav"], "nowhere://x/y: "),
    "revision of a folder": (["info", "file:///x", "--revision", "v1"], "--revision is of hf://"),
    "speaker's name": (["enrol", "MODEL", "a/b", "a.wav"], "speaker 'a/b': expected letters"),
    "too long a name": (["predict", "MODEL", "x" * 300], "cannot be opened (File name too long)"),
    "window": (["predict", "MODEL", "a.wav", "b.wav", "--window", "31"], "window is 31 s; expected 0.05 to 30 s"),
    "stranger": (["predict", "MODEL", "a.wav", "--window", "1", "--speaker", "ann"], "speaker 'ann' is not enrolled"),
    "frozen stranger": (["predict", "MODEL", "a.wav", "--frozen", "--speaker", "ann"], "speaker 'ann' is not enrolled"),
    "device": (["predict", "MODEL", "a.wav", "--device", "quantum"], "device 'quantum' is not at hand"),
    "device of a run": (["predict", "small", "a.wav", "--device", "quantum"], "device 'quantum' is not at hand"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(model, tmp_path, what):
    arguments, message = MISTAKES[what]
    (tmp_path / "kept").write_text("before")
    output = ["--output", "kept"] if arguments[0] == "predict" else []
    done = ser(*[model if argument == "MODEL" else argument for argument in arguments], *output, home=tmp_path)
    assert message in one_error_line(done)
    assert done.stdout == ""
    assert (tmp_path / "kept").read_text() == "before"


def test_a_run_named_last_is_found_from_anywhere(delivered, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(delivered))
    (delivered / "outputs/last").write_text("small\n")
    done = ser("predict", "last", sound[0], home=delivered / "outputs")
    assert done.returncode == 0, done.stderr


def test_a_tables_speakers_are_passed_over_by_a_model_that_has_no_use_for_them(model, sound, tmp_path, monkeypatch):
    from ser import inference

    for header in ("path,emotion, Speaker", "path,emotion,speaker"):  # as people write it
        (tmp_path / "list.csv").write_text(f"{header}\nsound/0.wav,angry, anna\n")
        done = ser("enrol", model, "bob", "list.csv", home=tmp_path)
        assert "the table's speaker anna is not bob" in one_error_line(done)
    monkeypatch.setattr(
        inference.Predictor, "by_speaker", property(lambda self: False, lambda self, value: None), raising=False
    )
    done = ser("predict", model, "list.csv", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "speaker" not in json.loads(done.stdout)
    assert "not used" in done.stderr


def test_a_name_that_is_not_utf8_is_written_as_it_lies_on_the_disk(model, sound, tmp_path):
    name = os.fsencode(str(tmp_path)) + b"/caf\xe9.wav"
    os.rename(sound[0], name)
    done = ser_process("predict", model, os.fsdecode(name), "--format", "csv", home=tmp_path, text=False)
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9.wav" in done.stdout
    assert ser("predict", model, os.fsdecode(name), "--format", "csv", "--output", "o", home=tmp_path).returncode == 0
    assert b"caf\xe9.wav" in (tmp_path / "o").read_bytes()
