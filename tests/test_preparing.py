"""From recordings to rows of the table."""

import os
from collections import Counter

import numpy as np
import pytest
import soundfile
from corpus_factory import clip_names, make_corpus, official_split, prepare_corpus, synthetic_sound

from ser import audio
from ser.corpora import corpus_named
from ser.errors import UserError
from ser.metadata import read_table, write_table
from ser.preparing import clips_of


def refusal(name: str, raw, **options) -> str:
    """Return the one line with which ``clips_of`` refuses."""
    with pytest.raises(UserError) as caught:
        clips_of(corpus_named(name), raw, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["crema_d", "ravdess", "demo"])
def test_every_file_becomes_a_row_that_reads_back(home, name):
    raw = prepare_corpus(home, name, per_class=1, seconds=0.2)
    table = read_table(name, check_files=True)
    assert [clip.clip for clip in table.clips] == sorted(clip_names(name, per_class=1))
    assert table.missing == len(corpus_named(name).official()) - len(table.clips)
    assert table.raw == raw
    split = official_split(name, "holdout")
    for clip in table.clips:
        fields = corpus_named(name).parse(clip.clip)
        assert {key: getattr(clip, key) for key in fields} == fields
        assert clip.split == split.of[clip.clip]
        info = soundfile.info(table.sound_path(clip))
        assert (clip.sample_rate, clip.channels) == (info.samplerate, info.channels)
        assert clip.seconds == pytest.approx(info.frames / info.samplerate, abs=1e-4)
    assert Counter(clip.emotion for clip in table.clips) == dict.fromkeys(
        {clip.emotion for clip in table.clips}, len({clip.speaker for clip in table.clips})
    )


def test_a_folder_whose_name_is_not_utf8_is_refused(home):
    raw = make_corpus(home, "ravdess", per_class=1, seconds=0.2)
    folder = next(path for path in sorted(raw.iterdir()) if path.is_dir())
    os.rename(folder, os.fsencode(raw) + b"/Schausp\xe9_01")
    said = refusal("ravdess", raw, allow_missing=True)
    assert "Schausp\\udce9_01" in said
    assert "the name is not UTF-8; rename" in said


def test_rate_channels_and_length_are_those_of_the_file(tmp_path):
    sound = synthetic_sound("any", "sad", 0.5)
    stereo = np.stack([sound, sound], axis=1)
    soundfile.write(tmp_path / "03-01-02-01-01-02-01.wav", stereo, 48000, subtype="PCM_24")
    (clip,), missing = clips_of(corpus_named("ravdess"), tmp_path, allow_missing=True)
    assert (clip.sample_rate, clip.channels, clip.seconds) == (48000, 2, len(sound) / 48000)
    assert missing == 1439


def test_paths_are_relative_to_the_raw_folder_however_deep(tmp_path):
    raw = make_corpus(tmp_path, "ravdess", ["07"], per_class=1)
    clips, _ = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    assert {clip.path for clip in clips} == {f"Actor_07/{clip.clip}.wav" for clip in clips}
    clips, _ = clips_of(corpus_named("ravdess"), tmp_path, allow_missing=True)
    assert {clip.path for clip in clips} == {f"raw/ravdess/Actor_07/{clip.clip}.wav" for clip in clips}


@pytest.mark.parametrize("place", [".", ".."])
def test_crema_d_demographics_are_joined_by_speaker(tmp_path, place):
    raw = make_corpus(tmp_path, "crema_d", ["1001", "1002"], per_class=1)
    (raw / place / "VideoDemographics.csv").write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n'
        '1002,21,"Female","African American","Hispanic"\n'
        '1003,30,"Female","Asian","Hispanic"\n'
    )
    clips, _ = clips_of(corpus_named("crema_d"), raw, allow_missing=True)
    told = {(clip.speaker, clip.sex, clip.age, clip.race, clip.ethnicity) for clip in clips}
    assert told == {("1001", "male", "", "", ""), ("1002", "female", "21", "african american", "hispanic")}


def test_the_older_name_of_a_clip_gets_the_official_one_and_its_own_path(home):
    audio.write(home / "raw/1040_ITH_SAD_X.wav", synthetic_sound("any", "sad"))
    clips, missing = clips_of(corpus_named("crema_d"), home / "raw", allow_missing=True)
    assert [(clip.clip, clip.path, clip.speaker) for clip in clips] == [
        ("1040_ITH_SAD_XX", "1040_ITH_SAD_X.wav", "1040")
    ]
    assert missing == 7441
    write_table("crema_d", clips)


def test_missing_clips_are_refused_unless_allowed(tmp_path):
    raw = make_corpus(tmp_path, "demo", ["s01"], per_class=1)
    message = refusal("demo", raw)
    official = len(corpus_named("demo").official())
    assert f"{raw}: {official - 6} of {official} clips are missing: " in message
    assert "just allow_missing=1 metadata demo" in message
    clips, missing = clips_of(corpus_named("demo"), raw, allow_missing=True)
    assert (len(clips), missing) == (6, official - 6)


def test_song_and_video_make_no_rows(tmp_path):
    raw = make_corpus(tmp_path, "ravdess", ["01"], per_class=1)
    audio.write(raw / "03-02-05-01-01-01-01.wav", synthetic_sound("any", "sad"))
    (raw / "01-01-05-01-01-01-01.mp4").write_bytes(b"video")
    clips, _ = clips_of(corpus_named("ravdess"), raw, allow_missing=True)
    assert len(clips) == 8


def test_a_name_that_no_grammar_matches_is_refused(tmp_path):
    raw = make_corpus(tmp_path, "crema_d", ["1001"], per_class=1)
    (raw / "1001_DFA_ANG_XX_final.wav").write_bytes(b"whatever")
    message = refusal("crema_d", raw, allow_missing=True)
    assert message.startswith(f"{raw / '1001_DFA_ANG_XX_final.wav'}: no grammar of CREMA-D matches")
    assert "1 such files" in message


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty file"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")]
)
def test_a_header_that_cannot_be_read_is_refused_with_the_file(tmp_path, content, says):
    raw = make_corpus(tmp_path, "ravdess", ["01"], per_class=1)
    path = sorted(raw.rglob("*.wav"))[3]
    path.write_bytes(content)
    message = refusal("ravdess", raw, allow_missing=True)
    assert message.startswith(f"{path}: ")
    assert says in message


def test_no_recordings_are_refused(tmp_path):
    assert "no such folder" in refusal("ravdess", tmp_path / "nowhere", allow_missing=True)
    assert "no sound file of RAVDESS" in refusal("ravdess", tmp_path, allow_missing=True)
