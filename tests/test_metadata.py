"""The table of clips: what is written is read again, and what is wrong is said with file and line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ser import audio, metadata
from ser.errors import UserError
from ser.metadata import Clip, read_table, remember_raw, write_table

FIRST = Clip(
    path="Actor_01/03-01-05-01-01-01-01.wav", speaker="01", emotion="angry", intensity="normal", split="train",
    corpus="ravdess", clip="03-01-05-01-01-01-01", sex="male", age="", race="", ethnicity="", statement="01",
    repetition="01", seconds=3.2533, sample_rate=48000, channels=1,
)  # fmt: skip
SECOND = replace(
    FIRST, path="Actor_02/03-01-02-02-01-01-02.flac", speaker="02", emotion="calm", intensity="strong", split="val",
    clip="03-01-02-02-01-01-02", sex="female", seconds=2.5, sample_rate=16000, channels=2,
)  # fmt: skip


@pytest.fixture
def written(home) -> Path:
    """Return the path of a good table of two clips, whose raw folder is ``home/raw``."""
    (home / "raw").mkdir()
    remember_raw("ravdess", home / "raw", 1438)
    return write_table("ravdess", [FIRST, SECOND])


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that stands in the file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refusal(corpus: str = "ravdess", **options) -> str:
    """Return the one line with which ``read_table`` refuses."""
    with pytest.raises(UserError) as caught:
        read_table(corpus, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_again_sorted_by_clip(written, home):
    table = read_table("ravdess")
    assert table.clips == (SECOND, FIRST)
    assert (table.corpus, table.raw, table.missing) == ("ravdess", home / "raw", 1438)
    assert table.sound_path(FIRST) == home / "raw/Actor_01/03-01-05-01-01-01-01.wav"


def test_the_columns_are_the_published_ones_with_lf_endings(written, home):
    assert written == home / "data/ravdess/metadata.csv"
    assert written.read_bytes().decode().partition("\n")[0] == (
        "path,speaker,emotion,intensity,split,"
        "corpus,clip,sex,age,race,ethnicity,statement,repetition,seconds,sample_rate,channels"
    )
    assert b"\r" not in written.read_bytes()


def test_odd_text_survives(written):
    odd = replace(FIRST, path='takes, "good"/Zoë 1/a.wav', race="two, words", ethnicity="Ñ'")
    write_table("ravdess", [odd])
    assert read_table("ravdess").clips == (odd,)


def test_seconds_are_kept_to_a_tenth_of_a_millisecond(written):
    write_table("ravdess", [replace(FIRST, seconds=1 / 3)])
    assert read_table("ravdess").clips[0].seconds == 0.3333


def test_a_table_saved_by_a_spreadsheet_is_read(written):
    before = read_table("ravdess")
    written.write_bytes(b"\xef\xbb\xbf" + written.read_bytes().replace(b"\n", b"\r\n"))
    assert read_table("ravdess") == before


def test_further_columns_of_the_users_own_are_let_be(written):
    lines = written.read_text().splitlines()
    written.write_text("".join(f"{line},{extra}\n" for line, extra in zip(lines, ("mine", "a", "b"), strict=True)))
    assert read_table("ravdess").clips == (SECOND, FIRST)


def test_an_unprepared_corpus_says_which_command_prepares_it(home):
    message = refusal("crema_d")
    assert str(home / "data/crema_d/metadata.csv") in message
    assert "just raw=PATH prepare crema_d" in message


def test_an_unknown_corpus_names_the_nearest(home):
    assert "did you mean 'ravdess'?" in refusal("ravdes")
    assert not (home / "data").exists()


def test_a_header_that_lacks_a_column_is_refused_with_its_name(written):
    edit(written, "path,speaker,", "path,talker,")
    message = refusal()
    assert f"{written}: line 1" in message
    assert "'speaker'" in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",angry,", ",angy,", "emotion 'angy' is not of ravdess; did you mean 'angry'?"),
        (",angry,", ",surprise d,", "emotion 'surprise d'"),
        (",angry,", ",,", "emotion ''"),
        ("Actor_01/", "../Actor_01/", "path '../Actor_01/03-01-05-01-01-01-01.wav' leaves the raw folder"),
        ("Actor_01/", "Actor_01/../../", "leaves the raw folder"),
        ("Actor_01/", "/etc/", "leaves the raw folder"),
        (".wav,01,", ".wav,,", "the speaker is empty"),
        (",ravdess,03-01-05", ",crema_d,03-01-05", "corpus is 'crema_d', expected 'ravdess'"),
        (",3.2533,", ",long,", "must be numbers"),
        (",48000,", ",48 kHz,", "must be numbers"),
        (",48000,1\n", ",48000\n", "expected 16 fields"),
        (",48000,1\n", ",48000,1,1,1\n", "expected 16 fields"),
    ],
)
def test_a_wrong_row_is_refused_with_file_line_and_value(written, old, new, says):
    edit(written, old, new)
    message = refusal()
    assert f"{written}: line 3" in message
    assert says in message


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1.0"])
def test_a_length_that_no_sound_has_is_refused(written, seconds):
    edit(written, ",3.2533,", f",{seconds},")
    message = refusal()
    assert f"{written}: line 3" in message
    assert seconds in message


def test_a_clip_twice_is_refused(written):
    written.write_text(written.read_text() + written.read_text().splitlines()[1] + "\n")
    assert f"{written}: line 4: clip '{SECOND.clip}' appears twice" in refusal()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "folder/clip"])
def test_a_clip_name_that_would_lead_to_another_folder_is_refused(written, name):
    """Feature files are named by it."""
    edit(written, f",{FIRST.clip},", f",{name},")
    message = refusal()
    assert f"{written}: line 3" in message
    assert name in message


def test_a_table_without_rows_is_refused(written):
    written.write_text(written.read_text().splitlines()[0] + "\n")
    assert f"{written}: no clips of ravdess" in refusal()


def test_a_file_that_is_not_text_is_refused(written):
    written.write_bytes(written.read_bytes().replace(b"angry", b"\xff\xfe\x00"))
    assert f"{written}: line 3: not UTF-8" in refusal()


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [FIRST, FIRST],
        [replace(FIRST, emotion="bored")],
        [FIRST, replace(SECOND, path="../elsewhere.wav")],
        [replace(FIRST, corpus="demo")],
    ],
    ids=["empty", "twice", "emotion", "path", "corpus"],
)
def test_a_wrong_table_is_not_written_over_a_good_one(written, wrong):
    before = written.read_bytes()
    with pytest.raises(UserError, match=r"metadata\.csv"):
        write_table("ravdess", wrong)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_rows_whose_sound_is_gone_are_counted_and_named(written, home):
    audio.write(home / "raw" / FIRST.path, np.zeros(1600, dtype=np.float32))
    message = refusal(check_files=True)
    assert "1 rows whose sound file is gone" in message
    assert SECOND.path in message
    assert FIRST.path not in message
    audio.write(home / "raw" / SECOND.path, np.zeros(1600, dtype=np.float32))
    assert len(read_table("ravdess", check_files=True).clips) == 2


def test_a_raw_folder_that_is_gone_is_named_with_what_to_do(written, home):
    (home / "raw").rmdir()
    message = refusal()
    assert str(home / "raw") in message
    assert "just raw=PATH prepare ravdess" in message


@pytest.mark.parametrize("content", ["", "{", "{}", '{"raw": "."}', "[]", "null", '{"raw": 3, "missing": 0}'])
def test_a_damaged_note_of_the_raw_folder_gives_one_line_that_names_it(written, content):
    local = written.with_name("local.json")
    local.write_text(content)
    assert str(local) in refusal()


def test_the_raw_folder_is_remembered_from_wherever_the_command_ran(home, monkeypatch):
    (home / "sub/raw").mkdir(parents=True)
    monkeypatch.chdir(home / "sub")
    remember_raw("ravdess", Path("raw"), 3)
    monkeypatch.chdir("/")
    assert metadata.raw_folder("ravdess") == home / "sub/raw"
    assert json.loads((home / "data/ravdess/local.json").read_text())["missing"] == 3


def test_before_anything_is_remembered_the_raw_folder_is_the_corpus_own(home):
    with pytest.raises(UserError, match="just prepare demo"):
        metadata.raw_folder("demo")
    (home / "data/demo/raw").mkdir(parents=True)
    assert metadata.raw_folder("demo") == home / "data/demo/raw"
