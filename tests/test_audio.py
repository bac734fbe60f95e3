"""Any sound file becomes mono float32 at 16 kHz, and a bad file is named with what to do about it."""

import struct

import numpy as np
import pytest
import soundfile

from ser import audio
from ser.errors import UserError


def sine(rate=16_000, hertz=440.0, seconds=0.5, level=0.5):
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def strongest(sound):
    """Return frequency (Hz) and amplitude of the strongest component, away from the ends."""
    middle = sound[len(sound) // 8 : -len(sound) // 8]
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window, n=1 << 18)) / window.sum() * 2
    peak = int(spectrum.argmax())
    return peak * 16_000 / (1 << 18), spectrum[peak]


# Good files


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"a{suffix}"
    audio.write(path, sine())
    sound = audio.read(path)
    assert sound.dtype == np.float32
    assert sound.shape == (8000,)
    np.testing.assert_allclose(sound, sine(), atol=1 / 32768)


def test_mp3_keeps_frequency_level_and_about_the_length(tmp_path):
    soundfile.write(tmp_path / "a.mp3", sine(), 16_000)
    sound = audio.read(tmp_path / "a.mp3")
    assert abs(len(sound) - 8000) < 1600
    hertz, level = strongest(sound)
    assert hertz == pytest.approx(440, abs=2)
    assert level == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_frequency_level_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(rate, hertz=1000), rate, subtype="FLOAT")
    sound = audio.read(tmp_path / "a.wav")
    assert abs(len(sound) - 8000) <= 1
    hertz, level = strongest(sound)
    assert hertz == pytest.approx(1000, abs=0.5)
    assert level == pytest.approx(0.5, rel=0.005)


def test_resampling_takes_out_what_16_khz_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(48_000, hertz=10_000), 48_000, subtype="FLOAT")
    middle = audio.read(tmp_path / "a.wav")[1000:-1000]
    assert np.abs(middle).max() < 0.5e-2  # 40 dB below; without a filter it would be heard at 6 kHz


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 1 / 128), ("PCM_16", 1 / 2**15), ("PCM_24", 1 / 2**23), ("FLOAT", 1e-9)]
)
def test_every_depth_comes_out_on_the_same_scale(tmp_path, subtype, step):
    soundfile.write(tmp_path / "a.wav", sine(), 16_000, subtype=subtype)
    error = np.abs(audio.read(tmp_path / "a.wav") - sine()).max()
    assert error <= step


def test_channels_are_averaged(tmp_path):
    left, right = sine(hertz=300), sine(hertz=900, level=0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


def test_inspect_and_header_tell_what_is_stored(tmp_path):
    stored = np.stack([sine(48_000), sine(48_000, hertz=900)], 1)
    soundfile.write(tmp_path / "a.wav", stored, 48_000, subtype="PCM_24")
    sound, info = audio.inspect(tmp_path / "a.wav")
    np.testing.assert_allclose(sound, stored, atol=1e-6)
    assert info == audio.SoundInfo(seconds=0.5, sample_rate=48_000, channels=2, subtype="PCM_24")
    assert audio.header(tmp_path / "a.wav") == info


def test_a_wav_made_through_a_pipe_is_whole(tmp_path):
    """A program that writes into a pipe cannot know the length and announces the largest, as ffmpeg does."""
    path = tmp_path / "a.wav"
    audio.write(path, sine())
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert audio.read(path).shape == (8000,)


# Bad files


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 72044\n")


def text(path):
    path.write_text("<html>404: not found</html>\n" * 20)


def cut_in_half(path):
    audio.write(path, sine())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_in_the_header(path):
    audio.write(path, sine())
    path.write_bytes(path.read_bytes()[:20])


def empty_file(path):
    path.write_bytes(b"")


def no_samples(path):
    audio.write(path, sine()[:0])


def too_short(path):
    audio.write(path, sine()[:160])


def not_a_number(path):
    sound = sine()
    sound[77] = np.nan
    soundfile.write(path, sound, 16_000, subtype="FLOAT")


def infinite(path):
    sound = sine()
    sound[77] = -np.inf
    soundfile.write(path, sound, 16_000, subtype="FLOAT")


def missing(path):
    pass


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (lfs_pointer, "a.wav", "git lfs pull"),
        (text, "a.wav", "expected wav, flac or mp3"),
        (cut_in_half, "a.wav", "again"),
        (cut_in_half, "a.flac", "again"),
        (cut_in_the_header, "a.wav", "again"),
        (empty_file, "a.wav", "again"),
        (empty_file, "a.mp3", "again"),
        (no_samples, "a.wav", "replace it or remove it"),
        (too_short, "a.wav", "at least 0.05 s"),
        (not_a_number, "a.wav", "convert it again"),
        (infinite, "a.wav", "convert it again"),
        (missing, "a.wav", "just metadata"),
        (folder, "a.wav", "expected a sound file"),
    ],
)
def test_a_bad_file_is_named_in_one_line_with_what_to_do(tmp_path, make, name, says):
    path = tmp_path / name
    make(path)
    for reader in (audio.read, audio.inspect):
        with pytest.raises(UserError) as raised:
            reader(path)
        message = str(raised.value)
        assert message.startswith(f"{path}: ")
        assert says in message
        assert "\n" not in message


@pytest.mark.parametrize("make", [lfs_pointer, text, cut_in_the_header, empty_file, missing, folder])
def test_the_header_alone_gives_the_same_message(tmp_path, make):
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(UserError) as of_header:
        audio.header(path)
    with pytest.raises(UserError) as of_file:
        audio.read(path)
    assert str(of_header.value) == str(of_file.value)
