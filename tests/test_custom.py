"""Corpora without an official list: EmoDB by its names, and any table of one's own."""

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import command, one_error_line
from corpus_factory import synthetic_sound
from encoder_factory import instead

from ser import audio, cli, config, runs, verify, wording
from ser.corpora import corpus_named, emodb_left_out, parse_emodb
from ser.cross_corpus import cross
from ser.custom import read_clips
from ser.errors import UserError
from ser.files import read_json
from ser.run_evaluation import evaluate

SMALL = [
    "track/wandb = 'off'", "ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5",
    "train/batch_size = 8",
]  # fmt: skip
WORDS = {"Anger": "angry", "joy": "happy", " SAD ": "sad"}


def own_corpus(folder: Path, speakers: bool = True) -> Path:
    """Write 60 clips of ten speakers in folders of their own, and a table of them; return the table."""
    lines = ["file_id,path,emotion" + (",speaker" if speakers else "")]
    for number in range(60):
        word = list(WORDS)[number % 3]
        path = f"people/p{number % 10}/clip {number}.wav"
        audio.write(folder / path, synthetic_sound(f"c{number}", WORDS[word], 0.6))
        lines.append(f"{number},{path},{word}" + (f",p{number % 10}" if speakers else ""))
    table = folder / "table.csv"
    table.write_text("\r\n".join(lines) + "\r\n")
    return table


def phases(run: Callable[..., subprocess.CompletedProcess], corpus_name: str, raw: Path) -> None:
    """Run the tools from verification to features."""
    for arguments in (
        ("verify_raw.py", corpus_name, "--raw", raw), ("build_csv.py", corpus_name, "--raw", raw),
        ("make_split.py", corpus_name), ("class_hist.py", corpus_name), ("extract.py", corpus_name, "logmel80"),
    ):  # fmt: skip
        done = run(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


def test_a_table_of_ones_own_goes_all_the_way(home, tmp_path, run_here):
    phases(run_here, "custom", own_corpus(tmp_path / "mine"))
    rows = list(csv.DictReader((home / "data/custom/metadata.csv").open()))
    assert len(rows) == 60
    assert {row["emotion"] for row in rows} == {"angry", "happy", "sad"}
    assert {row["clip"] for row in rows} >= {"people_p3_clip 3"}
    experiment, run = runs.create(config.load("custom_ecapa", SMALL))
    runs.train(experiment, run, progress=False)
    _, metrics = evaluate("last", progress=False)
    assert metrics["speaker_independent"] is True
    assert metrics["tags"] == []
    assert metrics["absent"] == ["calm", "disgust", "fearful", "neutral", "surprised"]
    encoder = instead("whisper", tmp_path)
    done = run_here("extract.py", "custom", "whisper_tiny", *encoder)
    assert done.returncode == 0, done.stderr
    assert cli.corpora_found()["custom"][1] == "just train custom_stats_probe"
    experiment, run = runs.create(config.load("custom_stats_probe", ["track/wandb = 'off'", *encoder]))
    runs.train(experiment, run, progress=False)
    _, metrics = evaluate("last", progress=False)
    assert metrics["tags"] == []


def test_without_speakers_every_figure_says_so(home, tmp_path, run_here):
    table = own_corpus(tmp_path / "mine", speakers=False)
    phases(run_here, "custom", table)
    built, split = run_here("build_csv.py", "custom", "--raw", table), run_here("make_split.py", "custom", "holdout")
    assert "60 clips, 0 speakers" in built.stdout
    assert "60 clips without a speaker" in built.stdout
    assert "60 clips without a speaker" in split.stdout
    assert "independent of the speaker" not in split.stdout
    assert "60 clips without a speaker" in " ".join(read_json(home / "data/custom/verify.json")["notes"])
    experiment, run = runs.create(config.load("custom_ecapa", SMALL))
    runs.train(experiment, run, progress=False)
    folder, metrics = evaluate("last", progress=False)
    assert metrics["speaker_independent"] is False
    assert metrics["tags"] == ["speakers-unknown"]
    assert "[speakers-unknown]" in wording.evaluation(folder, metrics).splitlines()[0]
    assert metrics["ci95"]["uar"] is None
    assert metrics["ci95_reason"] == "the speakers are unknown"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("file,label\na.wav,happy\n", "line 1: the header lacks"),
        ("path,emotion\n", "no row below the header"),
        ("path,emotion\na.wav,hapy\n", "line 2: emotion 'hapy' is none of angry, calm, disgust"),
        ("path,emotion\na.wav,happy\n../b.wav,sad\n", "line 3: path '../b.wav'; expected one below"),
        ("path,emotion\n/etc/a.wav,happy\n", "expected one below the folder"),
        ("path,emotion\n,happy\n", "line 2: path ''"),
        ("path,emotion\na\0b.wav,happy\n", r"line 2: path 'a\x00b.wav' holds a control character"),
        ("path,emotion,speaker\na.wav,sad,Ann\u200b\nb.wav,sad,ANN\n", "line 3: speaker 'ANN' is 'Ann' in line 2"),
        ("path,emotion\na.wav,happy\na.wav,sad\n", "line 3: clip 'a' appears twice"),
        (
            "path,emotion\na/b_1.wav,happy\na_b/1.wav,sad\n",
            "line 3: 'a_b/1.wav' and 'a/b_1.wav' (line 2) have one name",
        ),
        ("path;emotion\na.wav;happy\n", "seems to be separated by ';': save it with commas"),
        ("Path,emotion,path\na.wav,happy,b.wav\n", "the header has column 'path' twice"),
        ("path,emotion,speaker\na.wav,sad,anna\nb.wav,sad,ANNA\n", "line 3: speaker 'ANNA' is 'anna' in line 2"),
        ("path,emotion\n" + "long/" * 50 + "a.wav,sad\n", "too long to name a clip"),
        ('path,emotion\n"a.wav,happy\n', "not a CSV file"),
        ("path,emotion\na.wav\n", "line 2: expected 2 fields"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(rows, says, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(rows)
    with pytest.raises(UserError) as caught:
        read_clips(table)
    assert says in str(caught.value)
    assert str(table) in str(caught.value)


def test_columns_and_speakers_are_read_as_people_write_them(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("Path, Emotion , SPEAKER,Sex\na.wav,sad,Zoe\u0301  B,female\nb.wav,sad, Zo\u00e9 B,female\n")
    clips = read_clips(table)
    assert {clip["speaker"] for clip in clips.values()} == {"Zo\u00e9 B"}
    assert {clip["sex"] for clip in clips.values()} == {"female"}


def test_one_bad_row_among_many_is_named_by_its_line(tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"{number}.wav,happy" for number in range(100_000)]
    rows[77_777] = "77777.wav,hapy"
    table.write_text("path,emotion\n" + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match="line 77779: emotion 'hapy'"):
        read_clips(table)


def test_latin1_and_missing_sound_end_with_one_line(home, tmp_path):
    table = own_corpus(tmp_path / "mine")
    (tmp_path / "mine/people/p3/clip 3.wav").unlink()
    assert "ERROR" in command("verify_raw.py", "custom", "--raw", table).stdout
    assert "clip 3.wav: no such file" in one_error_line(command("build_csv.py", "custom", "--raw", table))
    table.write_bytes(table.read_bytes() + "m\xfcde.wav,sad,p1,\n".encode("latin-1"))
    assert "line 62: not UTF-8" in one_error_line(command("build_csv.py", "custom", "--raw", table))
    assert "expected a CSV" in one_error_line(command("verify_raw.py", "custom", "--raw", tmp_path))


def test_a_table_too_small_to_split_can_still_be_scored_on(trained_home, tmp_path):
    """Only the emotions that occur in it are shared with the model."""
    lines = ["path,emotion"]
    for number in range(6):
        emotion = ("happy", "sad", "neutral")[number % 3]
        audio.write(tmp_path / "few" / f"{number}.wav", synthetic_sound(f"f{number}", emotion, 0.6))
        lines.append(f"{number}.wav,{emotion}")
    table = tmp_path / "few/T.CSV"
    table.write_text("\n".join(lines) + "\n")
    experiment, run = runs.create(config.load("ravdess_ecapa", SMALL))
    runs.train(experiment, run, progress=False)
    data = trained_home / "data"
    original = data.resolve()
    data.unlink()
    shutil.copytree(original, data)
    for arguments in (("build_csv.py", "custom", "--raw", table), ("extract.py", "custom", "logmel80")):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    _, metrics = cross("last", "custom", progress=False)
    assert metrics["labels"] == ["happy", "neutral", "sad"]
    assert metrics["n_clips"] == 6
    assert metrics["speaker_independent"] is False
    assert metrics["tags"] == ["cross-corpus", "speakers-unknown"]


def test_emodb_names():
    clip = parse_emodb("03a01Wa")
    assert (clip["speaker"], clip["sex"], clip["emotion"], clip["statement"], clip["repetition"]) == (
        "03", "male", "angry", "a01", "a",
    )  # fmt: skip
    emotions = {letter: parse_emodb(f"16b10{letter}b")["emotion"] for letter in "WEAFTN"}
    assert emotions == {"W": "angry", "E": "disgust", "A": "fearful", "F": "happy", "T": "sad", "N": "neutral"}
    assert emodb_left_out("08a02Lb") == "boredom"
    assert parse_emodb("08a02Lb") is None
    for name in ("07a01Wa", "03c01Wa", "03a1Wa", "03a01Xa", "03a01W", "s01_angry_t1_r1"):
        assert parse_emodb(name) is None
        assert emodb_left_out(name) is None


def test_emodb_without_an_official_list_counts_its_clips(home, tmp_path, run_here):
    raw = tmp_path / "wav"
    for speaker in ("03", "08", "09", "10", "11"):
        for letter in "WLEAFTN":
            text = "a01" if letter in "WET" else "b02"
            audio.write(raw / f"{speaker}{text}{letter}a.wav", synthetic_sound(speaker + letter, "sad", 0.5))
    report = verify.check(corpus_named("emodb"), raw, progress=False)
    assert report.found.left_out == {"boredom": 5}
    assert any("30 clips, expected 454" in error for error in report.errors)
    assert "30 clips, expected 454" in " ".join(verify.check(corpus_named("emodb"), raw, True, progress=False).notes)
    assert "424 of 454 clips are missing" in one_error_line(run_here("build_csv.py", "emodb", "--raw", raw))
    assert run_here("build_csv.py", "emodb", "--raw", raw, "--allow-missing").returncode == 0
    assert run_here("make_split.py", "emodb").returncode == 0
    parts = {row["fold"] for row in csv.DictReader((home / "data/emodb/splits/kfold5.csv").open())}
    assert parts == {"1", "2", "3", "4", "5"}
    assert run_here("extract.py", "emodb", "logmel80").returncode == 0
    for experiment, overrides in (("ecapa", SMALL), ("stats_probe", instead("whisper", tmp_path))):
        if overrides is not SMALL:
            assert run_here("extract.py", "emodb", "whisper_tiny", *overrides).returncode == 0
        done = run_here("train.py", "--dry-run", f"emodb_{experiment}", *overrides)
        assert "all finite" in done.stdout, done.stderr


def test_bad_and_odd_sound_of_a_table_is_found_like_that_of_any_corpus(home, tmp_path):
    sound = synthetic_sound("a", "happy", 1.0)
    half = len(sound) // 2
    audio.write(tmp_path / "good.wav", sound)
    whole = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "pointer.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "text.wav").write_text("this is not sound\n" * 50)
    (tmp_path / "cut.wav").write_bytes(whole[:half])
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(len(sound)) == 5, np.nan, sound), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "slow.wav", sound, 8000)
    soundfile.write(tmp_path / "deep.wav", sound * 0.9, 16000, subtype="PCM_24")
    soundfile.write(tmp_path / "stereo.wav", np.stack([sound, -sound * 0.5], 1), 48000)
    bad = {
        "pointer": "git-lfs pointer", "text": "not a sound file", "cut": "truncated", "nothing": "empty file",
        "nan": "NaN", "gone": "no such file",
    }  # fmt: skip
    odd = {"silent": "silent", "slow": "rate below", "stereo": "stereo"}
    names = [*bad, *odd, "good", "deep"]
    table = tmp_path / "table.csv"
    table.write_text("path,emotion,speaker\n" + "".join(f"{name}.wav,happy,s{name}\n" for name in names))
    report = verify.check(corpus_named("custom"), table, progress=False)
    assert len(report.errors) == len(bad)
    for name, says in bad.items():
        assert any(f"{name}.wav" in error and says in error and "\n" not in error for error in report.errors), name
    flags = report.as_dict()["flags"]
    assert flags.keys() == odd.keys()
    for name, says in odd.items():
        assert any(says in flag for flag in flags[name])
    one_error_line(command("verify_raw.py", "custom", "--raw", table))
