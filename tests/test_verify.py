"""Raw recordings are seen to be whole: what is worthless is an error, what is odd is noted and kept."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus_factory import clip_names, make_corpus, synthetic_sound

from ser import verify
from ser.audio import write
from ser.corpora import corpus_named
from ser.errors import UserError

CREMA_D, RAVDESS, DEMO = corpus_named("crema_d"), corpus_named("ravdess"), corpus_named("demo")
SOUND = synthetic_sound("any", "happy")  # about 0.6 s
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 72862\n"


def store(path: Path, sound: np.ndarray = SOUND, rate: int = 16000, subtype: str = "PCM_16") -> None:
    """Write a sound file of any kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype=subtype)


def cut(path: Path, share: float) -> None:
    """Keep only the first part of a good sound file."""
    store(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def with_peak(samples: int) -> np.ndarray:
    """Return sound of which so many samples in a row stand at full scale."""
    sound = 0.5 * SOUND
    sound[1000 : 1000 + samples] = 1.0
    return sound


def with_one(value: float) -> np.ndarray:
    """Return sound of which one sample has this value."""
    return np.where(np.arange(len(SOUND)) == 700, value, SOUND)


# What is done to a file -> what its line must say.
WORTHLESS = {
    "empty file": (lambda path: path.write_bytes(b""), "is an empty file (0 bytes)"),
    "git-lfs pointer": (lambda path: path.write_text(LFS_POINTER), "git lfs pull"),
    "text": (lambda path: path.write_text("hello, world\n" * 50), "is not a sound file"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), "is not a sound file"),
    "half a wav": (lambda path: cut(path, 0.5), "truncated"),
    "nearly a wav": (lambda path: cut(path, 0.99), "truncated"),
    "only a header": (lambda path: cut(path, 0.0023), ""),
    "no samples": (lambda path: store(path, SOUND[:0]), "the sound is empty"),
    "a click": (lambda path: store(path, SOUND[:300]), "0.019 s of sound"),
    "NaN": (lambda path: store(path, with_one(np.nan), subtype="FLOAT"), "NaN"),
    "infinity": (lambda path: store(path, with_one(-np.inf), subtype="FLOAT"), "infinite"),
}
# What is done to a file -> the flag that it must get, or none.
ODD = {
    "silence": (lambda path: store(path, 0 * SOUND), "silent"),
    "hiss 60 dB down": (lambda path: store(path, 1e-3 * SOUND / np.abs(SOUND).max()), None),
    "8 kHz": (lambda path: store(path, SOUND, rate=8000), "rate below 16000 Hz"),
    "48 kHz": (lambda path: store(path, 0.95 * SOUND, rate=48000), None),
    "24 bits": (lambda path: store(path, 0.9 * SOUND, subtype="PCM_24"), None),
    "float": (lambda path: store(path, 0.8 * SOUND, subtype="FLOAT"), None),
    "stereo": (lambda path: store(path, np.stack([SOUND, 0.7 * SOUND], axis=1)), "stereo"),
    "three channels": (lambda path: store(path, np.stack([SOUND] * 3, axis=1)), "3 channels"),
    "DC offset": (lambda path: store(path, 0.6 * SOUND + 0.05), "DC offset"),
    "clipped": (lambda path: store(path, with_peak(4)), "clipped"),
    "three full samples": (lambda path: store(path, with_peak(3)), None),
}
CLIP = dict(zip([*WORTHLESS, *ODD, "twin", "other twin"], clip_names("crema_d", ["1001"], 12), strict=False))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> verify.Report:
    """Return the report on a folder of files with one fault each."""
    raw = tmp_path_factory.mktemp("faults")
    for what, (damage, _) in {**WORTHLESS, **ODD}.items():
        damage(raw / f"{CLIP[what]}.wav")
    for twin in ("twin", "other twin"):
        store(raw / f"{CLIP[twin]}.flac", 0.55 * SOUND)
    return verify.check(CREMA_D, raw, allow_missing=True, progress=False)


@pytest.mark.parametrize("what", WORTHLESS)
def test_worthless_sound_is_an_error_that_names_the_file(report, what):
    says = WORTHLESS[what][1]
    named = [error for error in report.errors if str(report.raw / f"{CLIP[what]}.wav") in error]
    assert len(named) == 1
    assert says in named[0]
    assert "\n" not in named[0]


def test_nothing_but_the_worthless_files_is_an_error(report):
    assert len(report.errors) == len(WORTHLESS)
    assert report.as_dict()["ok"] is False


@pytest.mark.parametrize("what", ODD)
def test_odd_sound_is_flagged_and_kept(report, what):
    flags = set(report.as_dict()["flags"].get(CLIP[what], ())) - {"not the official file (checksum)"}
    assert flags == ({ODD[what][1]} if ODD[what][1] else set())
    if ODD[what][1]:
        assert [note for note in report.notes if note.startswith(f"{ODD[what][1]}: ") and CLIP[what] in note]


def test_rates_and_channels_are_those_of_the_files(report):
    facts = report.as_dict()
    assert facts["sample_rates"]["8000"] == facts["sample_rates"]["48000"] == 1
    assert facts["channels"]["2"] == facts["channels"]["3"] == 1
    assert report.findings[CLIP["24 bits"]].subtype == "PCM_24"
    assert any(note.startswith("not at the 16000 Hz of the official files: 2 clips, kept: ") for note in report.notes)


def test_a_wav_that_is_not_the_official_file_is_noted_and_other_containers_are_not(report):
    flagged = {clip for clip, flags in report.as_dict()["flags"].items() if "not the official file (checksum)" in flags}
    assert flagged == {CLIP[what] for what in ODD}
    assert CLIP["twin"] not in flagged
    compared = {clip for clip, finding in report.findings.items() if finding.compared}
    assert flagged <= compared
    assert CLIP["twin"] not in compared
    assert report.as_dict()["checksums"] == len(compared)
    assert f"checksums {len(compared)} files compared" in verify.table(report)
    assert any(f"(checksum): {len(ODD)} clips" in note for note in report.notes)


def test_identical_sound_under_two_names_is_noted(report):
    twins = sorted((CLIP["twin"], CLIP["other twin"]))
    assert f"identical sound, kept: {', '.join(twins)}" in report.notes
    assert sum("identical sound" in note for note in report.notes) == 1


def test_the_report_for_people_names_errors_notes_and_counts(report):
    text = verify.table(report)
    assert f"{len(CLIP)} of 7442" in text
    assert text.count("ERROR") == len(WORTHLESS)
    assert all(note in text for note in report.notes)
    few = verify.table(report, limit=2)
    assert few.count("ERROR") == 2
    assert f"and {len(WORTHLESS) - 2} more errors" in few


def test_the_report_is_json_with_the_same_counts(report):
    facts = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (facts["corpus"], facts["clips"], facts["official"]) == ("crema_d", len(CLIP), 7442)
    assert len(facts["missing"]) == 7442 - len(CLIP)
    assert facts["errors"] == report.errors


@pytest.mark.parametrize("name", ["crema_d", "ravdess", "demo"])
def test_a_good_corpus_passes_with_its_missing_clips_counted_and_named(tmp_path, name):
    speaker = {"crema_d": "1001", "ravdess": "01", "demo": "s01"}[name]
    raw = make_corpus(tmp_path, name, [speaker], per_class=1, suffix=".flac")
    entry = corpus_named(name)
    allowed = verify.check(entry, raw, allow_missing=True, progress=False)
    assert allowed.errors == []
    absent = [clip for clip in entry.official() if clip not in clip_names(name, [speaker], 1)]
    assert allowed.missing == absent
    count = f"{len(absent)} of {len(entry.official())} clips are missing: {absent[0]}, {absent[1]}"
    assert [note for note in allowed.notes if note.startswith(count)]
    strict = verify.check(entry, raw, progress=False)
    assert len(strict.errors) == 1
    assert strict.errors[0].startswith(count)
    assert f"allow_missing=1 verify {name}" in strict.errors[0]


def test_a_whole_corpus_has_nothing_missing(tmp_path, monkeypatch):
    names = clip_names("demo", ["s01"], 1)
    whole = corpus_named("demo")
    small = type(whole)("demo", "demo", whole.parse, lambda: {name: whole.official()[name] for name in names})
    raw = make_corpus(tmp_path, "demo", ["s01"], per_class=1)
    report = verify.check(small, raw, progress=False)
    assert (report.missing, report.errors, report.notes) == ([], [], [])
    assert report.as_dict()["ok"] is True
    (raw / "s01" / f"{names[2]}.wav").unlink()
    assert names[2] in verify.check(small, raw, progress=False).errors[0]


def test_the_findings_do_not_depend_on_the_number_of_cores(tmp_path, monkeypatch):
    raw = make_corpus(tmp_path, "crema_d", ["1001", "1002"])
    several = verify.check(CREMA_D, raw, allow_missing=True, progress=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert verify.check(CREMA_D, raw, allow_missing=True, progress=False).as_dict() == several.as_dict()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        verify.find_sound(RAVDESS, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such folder"):
        verify.find_sound(RAVDESS, tmp_path / "file")


@pytest.mark.parametrize("name", ["crema_d", "ravdess", "demo"])
def test_a_folder_without_sound_says_what_was_expected(tmp_path, name):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(UserError) as caught:
        verify.find_sound(corpus_named(name), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert f"{next(iter(corpus_named(name).official()))}.wav" in str(caught.value)


def test_a_folder_of_another_corpus_says_which_names_it_holds(tmp_path):
    store(tmp_path / "1001_DFA_ANG_XX.wav")
    with pytest.raises(UserError, match=r"no sound file of RAVDESS .*1001_DFA_ANG_XX\.wav"):
        verify.find_sound(RAVDESS, tmp_path)


def test_a_name_that_no_grammar_matches_is_an_error(tmp_path):
    raw = make_corpus(tmp_path, "ravdess", ["01"], per_class=1)
    odd = raw / "Actor_01" / "03-01-05-01-01-01-01 (copy).wav"
    strong_neutral = raw / "Actor_01" / "03-01-01-02-01-01-01.wav"
    for path in (odd, strong_neutral):
        store(path)
    report = verify.check(RAVDESS, raw, allow_missing=True, progress=False)
    assert sorted(report.errors) == sorted(
        f"{path}: no grammar of RAVDESS speech matches this name; rename it or move it away"
        for path in (odd, strong_neutral)
    )


def test_a_clip_that_the_grammar_knows_but_the_official_list_does_not_is_named(tmp_path):
    raw = make_corpus(tmp_path, "crema_d", ["1001"], per_class=1)
    extra = "1001_DFA_ANG_LO"  # only the statement IEO was spoken at several intensities
    assert extra not in CREMA_D.official()
    store(raw / f"{extra}.wav")
    report = verify.check(CREMA_D, raw, allow_missing=True, progress=False)
    assert [line for line in report.errors + report.notes if extra in line and "official" in line]


def test_ravdess_song_and_video_are_left_out_and_counted(tmp_path):
    raw = make_corpus(tmp_path, "ravdess", ["01"], per_class=1)
    store(raw / "Actor_01/03-02-05-01-01-01-01.wav")
    store(raw / "Actor_01/03-02-04-01-01-01-01.flac")
    (raw / "Actor_01/01-01-05-01-01-01-01.mp4").write_bytes(b"not even a video")
    (raw / "Actor_01/01-02-05-01-01-01-01.mp4").write_bytes(b"not even a video")
    report = verify.check(RAVDESS, raw, allow_missing=True, progress=False)
    assert report.errors == []
    assert report.as_dict()["left_out"] == {"song": 3, "video": 1}
    assert len(report.findings) == 8
    assert "song: 3" in verify.table(report)
    assert "video: 1" in verify.table(report)


def test_what_lies_beside_the_sound_is_let_be(tmp_path):
    raw = make_corpus(tmp_path, "demo", ["s01"], per_class=1)
    for name in ("notes.txt", ".hidden.wav", "__MACOSX/s01/._s01_angry_t1_r1.wav", ".cache/s01_angry_t2_r2.wav"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text("not sound")
    found = verify.find_sound(DEMO, raw)
    assert sorted(found.clips) == sorted(clip_names("demo", ["s01"], 1))
    assert (found.unmatched, found.doubled, sum(found.left_out.values())) == ([], [], 0)


def test_endings_in_capitals_and_other_containers_are_found(tmp_path):
    store(tmp_path / "1001_DFA_ANG_XX.WAV")
    store(tmp_path / "deep/er/1001_DFA_DIS_XX.flac")
    assert sorted(verify.find_sound(CREMA_D, tmp_path).clips) == ["1001_DFA_ANG_XX", "1001_DFA_DIS_XX"]


def test_the_older_name_of_a_clip_counts_as_the_official_one(tmp_path):
    store(tmp_path / "1040_ITH_SAD_X.wav")
    report = verify.check(CREMA_D, tmp_path, allow_missing=True, progress=False)
    assert report.errors == []
    assert "1040_ITH_SAD_XX" not in report.missing
    assert len(report.missing) == 7441


def test_two_different_files_of_one_clip_are_refused_with_both_names(tmp_path):
    store(tmp_path / "a/1001_DFA_ANG_XX.wav")
    store(tmp_path / "b/1001_DFA_ANG_XX.wav", 0.5 * SOUND)
    with pytest.raises(UserError) as caught:
        verify.check(CREMA_D, tmp_path, allow_missing=True, progress=False)
    assert str(tmp_path / "a/1001_DFA_ANG_XX.wav") in str(caught.value)
    assert str(tmp_path / "b/1001_DFA_ANG_XX.wav") in str(caught.value)


def test_two_equal_files_of_one_clip_are_one_clip_and_noted(tmp_path):
    store(tmp_path / "a/1040_ITH_SAD_XX.wav")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/1040_ITH_SAD_XX.wav", tmp_path / "b/1040_ITH_SAD_X.wav")
    report = verify.check(CREMA_D, tmp_path, allow_missing=True, progress=False)
    assert report.errors == []
    assert list(report.findings) == ["1040_ITH_SAD_XX"]
    assert any("1 files repeat another byte for byte" in note for note in report.notes)


def test_what_is_known_to_be_odd_is_noted_where_it_is_at_hand(tmp_path):
    write(tmp_path / "1076_MTI_SAD_XX.wav", 0 * SOUND)
    notes = verify.check(CREMA_D, tmp_path, allow_missing=True, progress=False).notes
    assert [note for note in notes if note.startswith("known: ")] == [
        "known: 1076_MTI_SAD_XX: digital silence in the official distribution"
    ]
    assert any(note.startswith("silent: 1 clips, kept: 1076_MTI_SAD_XX") for note in notes)


@pytest.mark.skipif("SER_REAL_DATA" not in os.environ, reason="needs original files in $SER_REAL_DATA")
def test_untouched_official_files_have_the_official_checksum():
    raw = Path(os.environ["SER_REAL_DATA"], "original_format", "crema_d")
    report = verify.check(CREMA_D, raw, allow_missing=True, progress=False)
    assert report.errors == []
    assert "1076_MTI_SAD_XX" in report.findings
    assert report.as_dict()["flags"]["1076_MTI_SAD_XX"] == ["silent"]
    assert not any("checksum" in note for note in report.notes)
    assert "identical sound, kept: 1006_TIE_HAP_XX, 1006_TIE_NEU_XX" in report.notes


@pytest.mark.skipif("SER_REAL_DATA" not in os.environ, reason="needs original files in $SER_REAL_DATA")
def test_the_stereo_files_of_ravdess_are_known_to_be_stereo():
    raw = Path(os.environ["SER_REAL_DATA"], "original_format", "ravdess")
    report = verify.check(RAVDESS, raw, allow_missing=True, progress=False)
    stereo = {clip for clip, flags in report.as_dict()["flags"].items() if "stereo" in flags}
    known = {clip for clip, why in RAVDESS.known_odd.items() if "stereo" in why}
    assert len(stereo) == 3
    assert stereo == known & report.findings.keys()
