"""The built-in corpus: names, determinism, plausible sound, repair of a folder."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ser import audio, demo
from ser.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]


def pitch(sound: np.ndarray) -> float:
    """Return the median pitch in Hz of the voiced parts of float32 [N], by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 640)[::320]
    frames = frames[(frames**2).mean(axis=1) > 0.3 * (sound**2).mean()]
    # Without a correction for the window, short lags win over their multiples: no octave is lost.
    likeness = np.fft.irfft(np.abs(np.fft.rfft(frames * np.hanning(640), 2048)) ** 2)[:, 40:230]
    return float(np.median(audio.SAMPLE_RATE / (40 + likeness.argmax(axis=1))))


def test_names_are_sorted_unique_and_complete():
    names = demo.clip_names()
    assert names == sorted(set(names))
    assert len(names) == 24 * 6 * 4 * 2
    assert all(re.fullmatch(r"s\d\d_[a-z]+_t\d_r\d", name) for name in names)
    assert {name.split("_")[1] for name in names} == set(demo.EMOTIONS)
    assert sum(demo.sex(speaker) == "female" for speaker in demo.SPEAKERS) == 12
    assert demo.clip_file("s01_angry_t1_r1") == Path("s01/s01_angry_t1_r1.wav")


@pytest.mark.parametrize("name", ["s25_angry_t1_r1", "s01_calm_t1_r1", "s01_angry_t1_r1.wav", "", "s01_angry_t1_r1\n"])
def test_a_name_of_another_corpus_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="expected names such as"):
        demo.synthesise(name)
    with pytest.raises(UserError, match="no clip"):
        demo.make(tmp_path / "raw", ["s01_angry_t1_r1", name])
    assert not (tmp_path / "raw").exists()


def test_every_process_makes_the_same_sound():
    clips = ["s07_sad_t3_r2", "s02_happy_t2_r1"]
    code = (
        "import hashlib; from ser import demo\n"
        f"for clip in {clips[::-1]}: print(hashlib.sha256(demo.synthesise(clip, 3).tobytes()).hexdigest())"
    )
    env = dict(os.environ) | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(PROJECT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    here = [hashlib.sha256(demo.synthesise(clip, 3).tobytes()).hexdigest() for clip in clips]
    assert result.stdout.split() == here[::-1]


def test_another_seed_is_another_cast():
    assert not np.array_equal(demo.synthesise("s01_angry_t1_r1"), demo.synthesise("s01_angry_t1_r1", seed=1))


def test_clips_are_plausible_and_all_different():
    seen = set()
    for clip in demo.clip_names()[::11]:
        sound = demo.synthesise(clip)
        assert sound.dtype == np.float32
        assert sound.ndim == 1
        assert np.isfinite(sound).all()
        assert 1.0 < len(sound) / audio.SAMPLE_RATE < 3.0
        assert 0.05 < np.abs(sound).max() <= 0.91
        assert abs(sound.mean()) < 0.01
        seen.add(sound.tobytes())
    assert len(seen) == len(demo.clip_names()[::11])


def test_a_voice_has_the_pitch_that_was_asked_for():
    assert pitch(demo.buzz(np.full(16_000, 123.0))) == pytest.approx(123, rel=0.02)
    glide = demo.buzz(np.linspace(120, 240, 32_000))  # 180 Hz on average for 2 s
    assert np.sum((glide[:-1] > 0) & (glide[1:] <= 0)) == pytest.approx(360, abs=1)
    assert np.abs(glide).max() <= 1.0


def test_spectra_and_back_is_the_same_sound():
    sound = np.random.default_rng(0).standard_normal(50 * demo.HOP)
    back = demo.overlap_add(demo.spectra(sound))
    inner = slice(demo.FRAME, -demo.FRAME)  # the ends lie under fewer windows
    assert np.allclose(back[inner], sound[inner], atol=1e-5)


def test_men_speak_lower_than_women():
    pitches = {
        sex: [pitch(demo.synthesise(f"{s}_neutral_t1_r1")) for s in demo.SPEAKERS if demo.sex(s) == sex]
        for sex in ("female", "male")
    }
    assert 80 < np.median(pitches["male"]) < 160 < np.median(pitches["female"]) < 280
    assert np.std(pitches["male"]) > 3


def test_emotions_of_one_speaker_differ_in_the_way_people_do():
    def mean_of(measure, emotion):
        clips = [f"{s}_{emotion}_{t}_r1" for s in demo.SPEAKERS[::3] for t in demo.STATEMENTS]
        return np.mean([measure(demo.synthesise(clip)) for clip in clips])

    def loudness(sound):
        return 10 * np.log10((sound**2).mean())

    assert mean_of(loudness, "angry") > mean_of(loudness, "sad") + 3
    assert mean_of(len, "sad") > 1.1 * mean_of(len, "fearful")
    assert mean_of(pitch, "fearful") > 1.1 * mean_of(pitch, "neutral")


def test_without_strength_all_emotions_are_one(monkeypatch):
    monkeypatch.setattr(demo, "STRENGTH", 0.0)
    monkeypatch.setattr(demo, "TASTE", 0.0)
    habits = np.zeros(len(demo.Manner.__dataclass_fields__))
    manners = [demo.perform(e, 1.0, habits, demo.dice_for(e), demo.dice_for("same")) for e in demo.EMOTIONS]
    assert len(set(manners)) == 1


def test_making_is_idempotent_and_repairs(tmp_path):
    clips = demo.clip_names()[:240:40]
    assert demo.make(tmp_path, clips) == len(clips)
    assert demo.make(tmp_path, clips) == 0
    files = sorted(tmp_path.rglob("*"))
    assert [path.name for path in files if path.is_file()] == [f"{clip}.wav" for clip in clips]

    lost = tmp_path / demo.clip_file(clips[2])
    before = lost.read_bytes()
    lost.unlink()
    assert demo.make(tmp_path, clips) == 1
    assert lost.read_bytes() == before

    sound, info = audio.inspect(lost)
    assert (info.sample_rate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    assert np.allclose(sound[:, 0], demo.synthesise(clips[2]), atol=1 / 32_000)


def test_many_clips_are_made_by_several_processes_and_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "cores", lambda: 2)
    clips = demo.clip_names()[:100]
    assert demo.make(tmp_path, [*clips, *clips]) == 100
    assert len(list(tmp_path.rglob("*.wav"))) == 100
    sound = audio.read(tmp_path / demo.clip_file(clips[99]))
    assert np.allclose(sound, demo.synthesise(clips[99]), atol=1 / 32_000)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "raw").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        demo.make(tmp_path / "raw", ["s01_angry_t1_r1"])
