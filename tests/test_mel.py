"""The log-mel front ends against torchaudio and transformers, and a clip alone against the same clip in a batch."""

import math

import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from ser.mel import LogMel, WhisperMel

LENGTHS = torch.tensor([8000, 4800, 4801, 4799, 401, 1])


@pytest.fixture(scope="module")
def log_mel():
    return LogMel()


@pytest.fixture(scope="module")
def sounds():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(int(length), generator=generator) * 2 - 1 for length in LENGTHS]


def alone(log_mel, sound):
    return log_mel(sound[None], torch.tensor([len(sound)]))[0][0]


def test_an_unpadded_clip_is_that_of_torchaudio(log_mel, sounds):
    mel = MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, pad_mode="constant")
    for sound in sounds:
        torch.testing.assert_close(alone(log_mel, sound), mel(sound).clamp_min(1e-5).log().T)


@pytest.mark.parametrize("after", [0.0, 0.9, math.nan])
def test_a_clip_is_the_same_alone_and_in_a_batch(log_mel, sounds, after):
    batch = torch.full((len(sounds), 8000), after)
    for row, sound in enumerate(sounds):
        batch[row, : len(sound)] = sound
    x, frames = log_mel(batch, LENGTHS)
    for sound, row, count in zip(sounds, x, frames.tolist(), strict=True):
        own = alone(log_mel, sound)
        assert len(own) == count
        torch.testing.assert_close(row[:count], own, rtol=1e-4, atol=1e-4)
        assert (row[count:] == 0).all()


def test_frames_are_counted_without_reading_the_sound(log_mel, sounds):
    assert log_mel.frames(LENGTHS).tolist() == [51, 31, 31, 30, 3, 1]
    for sound, count in zip(sounds, log_mel.frames(LENGTHS).tolist(), strict=True):
        assert alone(log_mel, sound).shape == (count, 80)


def test_silence_is_the_logarithm_of_the_floor():
    x = alone(LogMel(floor=1e-5), torch.zeros(1600))
    torch.testing.assert_close(x, torch.full_like(x, math.log(1e-5)))


def test_twice_the_amplitude_is_four_times_the_power(log_mel, sounds):
    louder = alone(log_mel, sounds[0] * 2) - alone(log_mel, sounds[0])
    torch.testing.assert_close(louder, torch.full_like(louder, math.log(4)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 4000.0])
def test_a_tone_is_loudest_in_the_band_of_its_frequency(log_mel, hertz):
    tone = torch.sin(2 * math.pi * hertz * torch.arange(8000) / 16_000)
    band = alone(log_mel, tone)[10:-10].mean(0).argmax().item()
    top, at = (2595 * math.log10(1 + f / 700) for f in (8000, hertz))  # HTK scale
    assert abs(band + 1 - at / top * 81) <= 1


@pytest.mark.parametrize("bands", [40, 64, 80])
def test_every_band_hears_something(bands, sounds):
    x = alone(LogMel(bands=bands), sounds[0])
    assert x.shape == (51, bands)
    assert (x.mean(0) > math.log(1e-4)).all()


def test_the_spec_tells_two_front_ends_apart():
    default = LogMel().spec
    others = [LogMel(bands=64).spec, LogMel(window_ms=32.0).spec, LogMel(hop_ms=20.0).spec, LogMel(floor=1e-6).spec]
    assert LogMel().spec == default
    assert default not in others


def test_the_hop_sets_the_rate():
    assert LogMel(hop_ms=10.0).rate == 100
    slow = LogMel(hop_ms=20.0)
    assert slow.rate == 50
    assert alone(slow, torch.zeros(16_000)).shape == (51, 80)


def test_a_long_window_is_heard_whole():
    """The Fourier transform grows with the window: 64 ms are 1024 samples."""
    click = torch.zeros(4800)
    click[2400] = 1.0
    heard = (alone(LogMel(window_ms=64.0, bands=40), click).mean(1) > math.log(2e-5)).sum().item()
    assert 5 <= heard <= 7  # frames 10 ms apart whose window of 64 ms holds the click


def speech(length, seed=1):
    """Return sound whose loudness comes and goes, so that some frames are cut off below the clip's maximum."""
    generator = torch.Generator().manual_seed(seed)
    swell = torch.cos(2 * math.pi * torch.arange(length) / 5000).clamp_min(0) ** 4
    return (0.2 * swell + 1e-5) * torch.randn(length, generator=generator)


def whisper_alone(mel, sound):
    return mel(sound[None], torch.tensor([len(sound)]))[0][0].T


@pytest.fixture(scope="module", params=[80, 128])
def whisper(request):
    """Return the mel of Whisper and transformers' own, which sees each clip within 30 s."""
    from transformers import WhisperFeatureExtractor

    peer = WhisperFeatureExtractor(feature_size=request.param)

    def extract(sound):
        return torch.tensor(peer(sound.numpy(), sampling_rate=16_000).input_features[0])

    return WhisperMel(request.param), extract


@pytest.mark.parametrize("length", [1, 159, 160, 161, 800, 12_345, 240_000, 479_640, 479_801, 479_999, 480_000])
def test_whispers_mel_is_that_of_transformers(whisper, length):
    mel, extract = whisper
    sound = speech(length)
    ours, peer = whisper_alone(mel, sound), extract(sound)
    own = math.ceil(length / 160)
    assert mel.frames(torch.tensor([length])).tolist() == [own + 2]  # the silence that the convolutions see
    assert ours.shape == (len(peer), own + 2)
    ours = ours[:, :3000]
    torch.testing.assert_close(ours, peer[:, : ours.shape[1]], rtol=0, atol=1e-4)


def test_whispers_mel_of_a_loud_end_is_that_of_transformers(whisper):
    """The maximum, from which the cut-off counts, may lie in a frame whose centre is after the clip's end."""
    mel, extract = whisper
    for length in (1590, 1600, 1601, 479_900):
        sound = 1e-5 * speech(length)
        sound[-1] = 0.9
        ours = whisper_alone(mel, sound)[:, :3000]
        torch.testing.assert_close(ours, extract(sound)[:, : ours.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "lengths",
    [[8000, 4800, 4801, 4799, 401, 1], [480_000, 800], [479_999, 479_801, 160, 479_640], [480_321, 479_950, 900]],
)
@pytest.mark.parametrize("after", [0.0, 0.9, math.nan])
def test_whispers_mel_of_a_clip_is_the_same_alone_and_in_a_batch(whisper, lengths, after):
    mel, _ = whisper
    clips = [speech(length, seed) * 10.0**-seed for seed, length in enumerate(lengths)]  # each of its own maximum
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=after)
    together, frames = mel(batch, torch.tensor(lengths))
    for row, clip, count in zip(together, clips, frames, strict=True):
        own = whisper_alone(mel, clip).T
        torch.testing.assert_close(row[:count], own, rtol=0, atol=1e-4)
        assert not row[count:].any()


@pytest.mark.parametrize("milliseconds", [23.2, 25.0, 31.9, 40.0])
def test_any_window_gives_what_torchaudio_gives(milliseconds):
    ours = LogMel(40, window_ms=milliseconds, floor=1e-7)
    size = max(512, 1 << (ours.window - 1).bit_length())
    theirs = MelSpectrogram(16_000, size, ours.window, 160, n_mels=40, pad_mode="constant")
    sound = speech(9000)
    wanted = theirs(sound).clamp_min(1e-7).log().T
    torch.testing.assert_close(ours(sound[None], torch.tensor([9000]))[0][0], wanted, rtol=1e-4, atol=1e-4)


def test_whispers_mel_does_not_depend_on_room_beyond_the_longest_clip():
    mel = WhisperMel()
    clips = torch.stack([speech(5000), speech(5000, seed=2)])
    lengths = torch.tensor([5000, 3000])
    wide = torch.cat([clips, torch.full((2, 1234), math.nan)], 1)
    torch.testing.assert_close(mel(wide, lengths)[0], mel(clips, lengths)[0])


def test_whispers_mel_of_silence_is_finite_and_that_of_transformers(whisper):
    mel, extract = whisper
    ours = whisper_alone(mel, torch.zeros(1600))
    torch.testing.assert_close(ours, extract(torch.zeros(1600))[:, :12], rtol=0, atol=1e-4)


def test_whispers_mel_leaves_nothing_in_a_checkpoint():
    assert not WhisperMel().state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whispers_mel_keeps_its_precision_inside_an_encoder_of_half(dtype):
    """A window rounded to eight bits would let a loud tone leak into every band."""
    tone = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(8000) / 16_000)
    mel = WhisperMel()
    wanted = whisper_alone(mel, tone)
    torch.testing.assert_close(whisper_alone(torch.nn.Sequential(mel).to(dtype)[0], tone), wanted, rtol=0, atol=1e-3)
