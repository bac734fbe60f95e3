"""The commands of phases 1 and 2 as a user runs them: what they write, and how they refuse."""

import csv
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import command, command_on_a_full_disk, one_error_line
from corpus_factory import clip_names, make_corpus, official_split, prepare_corpus, synthetic_sound

from ser import audio, config, splits
from ser.extraction import extract
from ser.features import FeatureStore
from ser.metadata import read_table
from ser.splits import read_split

ACTORS = ("01", "02", "11")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> tuple[Path, dict[str, subprocess.CompletedProcess]]:
    """Return a home in which every command ran once on a small RAVDESS, and what each printed."""
    home = tmp_path_factory.mktemp("worked")
    raw = make_corpus(home, "ravdess", ACTORS, per_class=1, seconds=0.2)
    audio.write(raw / "Actor_01/03-02-05-01-01-01-01.wav", synthetic_sound("song", "angry"))
    return home, {
        "verify": command("verify_raw.py", "ravdess", "--raw", raw, "--allow-missing", home=home),
        "metadata": command("build_csv.py", "ravdess", "--raw", raw, "--allow-missing", home=home),
        "split": command("make_split.py", "ravdess", home=home),
        "histogram": command("class_hist.py", "ravdess", home=home),
        "extract": command("extract.py", "ravdess", "logmel80", home=home),
    }


@pytest.mark.parametrize("phase", ["verify", "metadata", "split", "histogram", "extract"])
def test_a_command_that_works_says_what_it_wrote_and_nothing_on_stderr(worked, phase):
    home, done = worked
    assert done[phase].returncode == 0, done[phase].stderr
    assert done[phase].stderr == ""
    place = {
        "verify": "data/ravdess/verify.json", "metadata": "data/ravdess/metadata.csv",
        "split": "data/ravdess/splits/emobox6.csv", "histogram": "data/ravdess/histogram.png",
        "extract": "data/ravdess/feats/logmel80",
    }[phase]  # fmt: skip
    assert str(home / place) in done[phase].stdout
    assert (home / place).exists()


def test_the_commands_leave_only_finished_files(worked):
    home, _ = worked
    assert sorted(path.name for path in (home / "data/ravdess").iterdir()) == [
        "feats", "histogram.csv", "histogram.png", "local.json", "metadata.csv", "sound.json", "splits", "verify.json",
    ]  # fmt: skip
    assert not [name for name in content(home / "data") if name.endswith(".tmp") or "journal" in name]


def test_verify_counts_clips_missing_ones_and_songs(worked):
    home, done = worked
    report = json.loads((home / "data/ravdess/verify.json").read_text())
    assert (report["ok"], report["clips"], len(report["missing"])) == (True, 24, 1416)
    assert report["left_out"] == {"song": 1}
    assert "24 of 1440" in done["verify"].stdout
    assert "song: 1" in done["verify"].stdout


def test_metadata_has_a_row_for_every_clip_and_remembers_the_raw_folder(worked, monkeypatch):
    home, done = worked
    monkeypatch.setenv("SER_HOME", str(home))
    with open(home / "data/ravdess/metadata.csv", newline="") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == sorted(clip_names("ravdess", ACTORS, 1))
    table = read_table("ravdess", check_files=True)
    assert table.raw == home / "raw/ravdess"
    assert "24 clips, 3 speakers" in done["metadata"].stdout
    assert "1416 official clips not at hand" in done["metadata"].stdout


def test_split_writes_every_scheme_and_prints_its_hash(worked, monkeypatch):
    home, done = worked
    monkeypatch.setenv("SER_HOME", str(home))
    for scheme in ("holdout", "kfold5", "emobox6"):
        lines = (home / f"data/ravdess/splits/{scheme}.csv").read_text().splitlines(keepends=True)[1:]
        sha256 = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        assert read_split("ravdess", scheme).sha256 == sha256
        assert sha256 in done["split"].stdout
    assert "EmoBox" in done["split"].stdout


def test_extract_makes_the_features_and_a_second_time_keeps_them(worked, run_here, monkeypatch):
    home, done = worked
    monkeypatch.setenv("SER_HOME", str(home))
    assert "24 made, 0 remade, 0 kept" in done["extract"].stdout
    before = content(home / "data/ravdess/feats")
    again = run_here("extract.py", "ravdess", "logmel80")
    assert "0 made, 0 remade, 24 kept" in again.stdout
    assert content(home / "data/ravdess/feats") == before
    reader = FeatureStore("ravdess", config.load_features("logmel80"))
    assert all(reader.read(clip).shape[1] == 80 for clip in read_table("ravdess").clips)


def test_the_raw_folder_needs_to_be_said_only_once(worked, run_here, home):
    before, _ = worked
    shutil.copytree(before / "data", home / "data")
    (home / "data/ravdess/metadata.csv").unlink()
    done = run_here("build_csv.py", "ravdess", "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert content(home / "data") == content(before / "data")


def test_one_scheme_alone_can_be_made(run_here, home):
    done = run_here("make_split.py", "crema_d", "tfds")
    assert done.returncode == 0, done.stderr
    assert list(content(home)) == ["data/crema_d/splits/tfds.csv"]
    speakers = {clip: clip[:4] for clip in official_split("crema_d", "tfds").of}
    for group, clips, who in splits.summary(official_split("crema_d", "tfds"), speakers):
        assert f"{group} {clips} clips of {who} speakers" in done.stdout


# From here on: commands that refuse. Each starts from a small prepared RAVDESS with features.


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Return a home with eight prepared clips and their features."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        prepare_corpus(folder, "ravdess", speakers=["01"], per_class=1, seconds=0.2)
        extract(read_table("ravdess"), config.load_features("logmel80"), progress=False)
    return folder


@pytest.fixture
def spoilt(original, home) -> Path:
    """Return a copy of it that a test may spoil."""
    shutil.copytree(original, home, dirs_exist_ok=True)
    local = home / "data/ravdess/local.json"
    local.write_text(local.read_text().replace(str(original), str(home)))
    return home


def first_sound(home: Path) -> Path:
    """Return the first sound file of the raw folder."""
    return min((home / "raw").rglob("*.wav"))


def overwrite(name: str, data: bytes) -> Callable[[Path], Path]:
    """Return a spoiler that puts ``data`` in place of a file, or of the first sound file; it returns the file."""

    def spoil(home: Path) -> Path:
        path = first_sound(home) if name == "sound" else home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return spoil


def substitute(name: str, old: str, new: str) -> Callable[[Path], Path]:
    """Return a spoiler that replaces the first occurrence of a text in a file; it returns the file."""

    def spoil(home: Path) -> Path:
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new, 1))
        return home / name

    return spoil


def remove(name: str) -> Callable[[Path], Path]:
    """Return a spoiler that removes a file, a folder, or the first sound file; it returns the path."""

    def spoil(home: Path) -> Path:
        path = first_sound(home) if name == "sound" else home / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
        return path

    return spoil


def empty(name: str) -> Callable[[Path], Path]:
    """Return a spoiler that leaves an empty folder; it returns the folder."""

    def spoil(home: Path) -> Path:
        shutil.rmtree(home / name)
        (home / name).mkdir()
        return home / name

    return spoil


def second_file(home: Path) -> Path:
    """Add another file of a clip that is there."""
    path = home / "raw/ravdess" / first_sound(home).name
    audio.write(path, synthetic_sound("second", "sad"))
    return path


def nothing(home: Path) -> Path:
    """Spoil nothing: the mistake is in the command."""
    return home


def bands_of_another_store(home: Path) -> Path:
    """Make the store look as though it had been made with 40 bands."""
    path = home / "data/ravdess/feats/logmel80/index.json"
    path.write_text(path.read_text().replace('"bands": 80', '"bands": 40'))
    return path.parent


METADATA = "data/ravdess/metadata.csv"
INDEX = "data/ravdess/feats/logmel80/index.json"
ANY = "--allow-missing"


@dataclass(frozen=True)
class Mistake:
    """A way of spoiling things, a command, and what its line says; ``{}`` is the path that the spoiler returns."""

    spoil: Callable[[Path], Path]
    command: tuple[str, ...]
    says: str


MISTAKES = {
    "verify: unknown corpus": Mistake(nothing, ("verify_raw.py", "ravdes"), "did you mean 'ravdess'?"),
    "verify: no raw folder": Mistake(remove("raw"), ("verify_raw.py", "ravdess"), "{}/ravdess: no raw recordings"),
    "verify: not prepared": Mistake(nothing, ("verify_raw.py", "crema_d"), "{}/data/crema_d/raw: no raw recordings"),
    "verify: a path that is not there": Mistake(
        nothing, ("verify_raw.py", "ravdess", "--raw", "/nowhere/raw"), "/nowhere/raw: no such folder"
    ),
    "verify: no sound": Mistake(empty("raw/ravdess"), ("verify_raw.py", "ravdess"), "{}: no sound file"),
    "verify: a clip twice": Mistake(second_file, ("verify_raw.py", "ravdess", ANY), "beside {}; keep one of them"),
    "metadata: no sound": Mistake(empty("raw/ravdess"), ("build_csv.py", "ravdess"), "{}: no sound file"),
    "metadata: a clip twice": Mistake(second_file, ("build_csv.py", "ravdess", ANY), "a second file of clip"),
    "metadata: missing clips": Mistake(nothing, ("build_csv.py", "ravdess"), "1432 of 1440 clips are missing"),
    "metadata: git-lfs pointer": Mistake(
        overwrite("sound", LFS_POINTER), ("build_csv.py", "ravdess", ANY), "{}: is a git-lfs pointer"
    ),
    "metadata: strange name": Mistake(
        overwrite("raw/ravdess/take 1.wav", b"RIFF"), ("build_csv.py", "ravdess", ANY), "{}: no grammar of RAVDESS"
    ),
    "metadata: strange demographics": Mistake(
        overwrite("raw/VideoDemographics.csv", b"a,b\n1,2\n"), ("build_csv.py", "crema_d", ANY, "--raw", "CREMA_D"),
        "{}: line 1",
    ),
    "metadata: damaged note of the raw folder": Mistake(
        overwrite("data/ravdess/local.json", b'{"raw": '), ("build_csv.py", "ravdess", ANY), "{}: not valid JSON"
    ),
    "split: unknown corpus": Mistake(nothing, ("make_split.py", "cremad"), "did you mean 'crema_d'?"),
    "split: unknown scheme": Mistake(nothing, ("make_split.py", "ravdess", "emobox"), "did you mean 'emobox6'?"),
    "histogram: not prepared": Mistake(
        nothing, ("class_hist.py", "demo"), "{}/data/demo/metadata.csv: demo is not prepared"
    ),
    "histogram: wrong header": Mistake(
        substitute(METADATA, "emotion", "feeling"), ("class_hist.py", "ravdess"), "{}: line 1: the header lacks"
    ),
    "histogram: unknown emotion": Mistake(
        substitute(METADATA, ",happy,", ",hapy,"), ("class_hist.py", "ravdess"), "did you mean 'happy'?"
    ),
    "histogram: not text": Mistake(
        overwrite(METADATA, b"\xff\xfe\x00p\x00a"), ("class_hist.py", "ravdess"), "{}: line 1: not UTF-8"
    ),
    "extract: not prepared": Mistake(
        nothing, ("extract.py", "demo", "logmel80"), "{}/data/demo/metadata.csv: demo is not prepared"
    ),
    "extract: unknown features": Mistake(
        nothing, ("extract.py", "ravdess", "logmel8"), "features 'logmel8' are unknown; did you mean 'logmel80'?"
    ),
    "extract: sound that is gone": Mistake(
        remove("sound"), ("extract.py", "ravdess", "logmel80"), "1 rows whose sound file is gone"
    ),
    "extract: sound that is not": Mistake(
        overwrite("sound", b"hello, world" * 100), ("extract.py", "ravdess", "logmel80"), "{}: is not a sound file"
    ),
    "extract: a path that climbs out": Mistake(
        substitute(METADATA, "Actor_01/", "../Actor_01/"), ("extract.py", "ravdess", "logmel80"), "{}: line 2: clip"
    ),
    "extract: damaged index": Mistake(
        overwrite(INDEX, b'{"spec": '), ("extract.py", "ravdess", "logmel80"), "{}: not valid JSON"
    ),
    "extract: store made otherwise": Mistake(
        bands_of_another_store, ("extract.py", "ravdess", "logmel80"), "{}: made otherwise"
    ),
}  # fmt: skip


# One of each tool runs as a real command too.
REAL = (
    "verify: no sound", "metadata: git-lfs pointer", "split: unknown scheme", "histogram: unknown emotion",
    "extract: sound that is not",
)  # fmt: skip


@pytest.mark.parametrize(("what", "real"), [*((what, False) for what in MISTAKES), *((what, True) for what in REAL)])
def test_a_mistake_gives_one_line_and_leaves_what_was_there(spoilt, run_here, what, real):
    mistake = MISTAKES[what]
    path = mistake.spoil(spoilt)
    arguments = list(mistake.command)
    if arguments[-1] == "CREMA_D":
        arguments[-1] = str(make_corpus(spoilt, "crema_d", ["1001"], per_class=1, seconds=0.1))
    before = content(spoilt)
    done = command(*arguments, home=spoilt) if real else run_here(*arguments)
    line = one_error_line(done)
    assert mistake.says.format(path) in line
    assert done.stderr.splitlines() == [line]
    assert "Traceback" not in done.stdout
    after = content(spoilt)
    assert not [name for name in after if name.endswith(".tmp")]
    if what != "extract: sound that is not":  # it keeps the features of the other clips and says it is not complete
        assert after == before
    else:
        assert json.loads(after[INDEX])["complete"] is False


def test_verify_names_every_worthless_file_and_keeps_its_report(spoilt, run_here):
    pointer, text = sorted((spoilt / "raw").rglob("*.wav"))[:2]
    pointer.write_bytes(LFS_POINTER)
    text.write_text("not sound at all")
    before = content(spoilt)
    done = run_here("verify_raw.py", "ravdess", ANY)
    line = one_error_line(done)
    report = spoilt / "data/ravdess/verify.json"
    assert f"2 errors in {spoilt / 'raw/ravdess'}" in line
    assert str(report) in line
    for path in (pointer, text):
        assert f"ERROR     {path}: " in done.stdout
    facts = json.loads(report.read_text())
    assert facts["ok"] is False
    assert len(facts["errors"]) == 2
    assert content(spoilt).keys() - before.keys() == {"data/ravdess/verify.json", "data/ravdess/sound.json"}


def test_verify_refuses_missing_clips_unless_told_otherwise(spoilt, run_here):
    line = one_error_line(run_here("verify_raw.py", "ravdess"))
    assert "1 errors" in line
    errors = json.loads((spoilt / "data/ravdess/verify.json").read_text())["errors"]
    assert [error.split(":")[0] for error in errors] == ["1432 of 1440 clips are missing"]
    assert run_here("verify_raw.py", "ravdess", ANY).returncode == 0


@pytest.mark.parametrize("tool", ["verify_raw.py", "make_split.py"])
def test_a_home_that_cannot_be_written_gives_one_line(home, run_here, tool):
    raw = make_corpus(home, "ravdess", ["01"], per_class=1, seconds=0.1)
    (home / "data").write_text("in the way")
    before = content(home)
    options = ("--raw", raw, ANY) if tool == "verify_raw.py" else ("emobox6",)
    line = one_error_line(run_here(tool, "ravdess", *options))
    assert str(home / "data/ravdess") in line
    assert content(home) == before


@pytest.mark.parametrize(
    ("arguments", "remade"),
    [
        (("build_csv.py", "ravdess", ANY), "data/ravdess/metadata.csv"),
        (("make_split.py", "ravdess", "emobox6"), "data/ravdess/splits/emobox6.csv"),
        (("extract.py", "ravdess", "logmel80"), "data/ravdess/feats/logmel80"),
    ],
    ids=["metadata", "split", "extract"],
)
def test_a_full_disk_gives_one_line_and_leaves_nothing_half_written(spoilt, arguments, remade):
    if remade.endswith("logmel80"):
        remove(remade)(spoilt)
    before = content(spoilt)

    done = command_on_a_full_disk(512, *arguments, home=spoilt)
    line = one_error_line(done)
    assert str(spoilt / remade) in line
    assert "space" in line
    after = content(spoilt)
    assert not [name for name in after if name.endswith(".tmp")]
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("tool", ["verify_raw.py", "build_csv.py", "make_split.py", "class_hist.py", "extract.py"])
def test_help_says_what_the_command_is_for(tool):
    done = command(tool, "--help")
    assert done.returncode == 0
    assert "Phase " in done.stdout
    assert "corpus" in done.stdout
