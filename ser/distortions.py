"""What makes recordings worse, of known strength: noise, other voices, telephones, codecs, rooms, another speed.

Shapes: N samples at 16 kHz of one clip.
"""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ser.audio import SAMPLE_RATE
from ser.augment import ClipRandom, Operation
from ser.augment_sound import Clipping, Gain
from ser.augment_surroundings import (
    BackgroundNoise,
    Band,
    LowPass,
    Noise,
    Reverb,
    filtered,
    frequencies,
    with_noise,
)

__all__ = ["CONDITIONS", "Distortion", "recorded"]

VOICES = 6  # that talk at once in babble
CHORDS = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (-3, 0, 4))  # semitones above the key

# What is done to a clip: sound [1, N], random numbers of the clip, sounds of other speakers -> sound [1, N'].
Distortion = Callable[[Tensor, ClipRandom, Callable[[ClipRandom], Tensor]], Tensor]


def by(operation: Operation) -> Distortion:
    """Return an operation of augmentation as a distortion."""
    return lambda sound, random, others: operation(sound, torch.tensor([sound.shape[1]]), random)


def among(snr: float) -> Distortion:
    """Return babble of other speakers at a ratio of powers, dB."""

    def distort(sound: Tensor, random: ClipRandom, others: Callable[[ClipRandom], Tensor]) -> Tensor:
        size = sound.shape[1]
        voices = [others(random) for _ in range(VOICES)]
        babble = torch.stack([voice.repeat(-(-size // len(voice)))[:size] for voice in voices]).sum(0)
        return with_noise(sound, torch.tensor([size]), babble[None], torch.tensor([snr]))

    return distort


def with_music(snr: float) -> Distortion:
    """Return plucked chords at a ratio of powers, dB."""

    def distort(sound: Tensor, random: ClipRandom, others: Callable[[ClipRandom], Tensor]) -> Tensor:
        size = sound.shape[1]
        key = 110 * 2 ** random.uniform().item()  # Hz
        time = torch.arange(size) / SAMPLE_RATE
        bar = (2 * time).long() % len(CHORDS)  # half a second each
        pitches = key * 2 ** (torch.tensor(CHORDS)[bar].T / 12)
        phases = 2 * torch.pi * pitches.cumsum(1) / SAMPLE_RATE
        tones = torch.stack([torch.sin(partial * phases) / partial for partial in range(1, 6)]).sum((0, 1))
        plucked = tones * torch.exp(-3 * (2 * time % 1))
        return with_noise(sound, torch.tensor([size]), plucked[None], torch.tensor([snr]))

    return distort


def faster(factor: float) -> Distortion:
    """Return the sound played faster, pitch included; its length changes."""

    def distort(sound: Tensor, random: ClipRandom, others: Callable[[ClipRandom], Tensor]) -> Tensor:
        from torchaudio.functional import resample

        return resample(sound, round(100 * factor), 100)

    return distort


def louder(db: float) -> Distortion:
    """Return the sound louder, cut off where 16 bits end."""
    gain = Gain(db, db, probability=1.0)
    return lambda sound, random, others: gain(sound, torch.tensor([sound.shape[1]]), random).clamp(-1, 1)


def only(seconds: float) -> Distortion:
    """Return the beginning of the sound."""
    return lambda sound, random, others: sound[:, : round(seconds * SAMPLE_RATE)]


def tilted(db: float) -> Distortion:
    """Return the sound with a spectrum that rises by so many dB an octave, its energy kept."""

    def distort(sound: Tensor, random: ClipRandom, others: Callable[[ClipRandom], Tensor]) -> Tensor:
        made = filtered(sound, (frequencies(sound).clamp_min(60.0) / 1000) ** (db / 6.0206))  # dB of a doubling
        return made * (sound.square().sum() / made.square().sum().clamp_min(1e-12)).sqrt()

    return distort


def coded(rate: int, file: str, subtype: str, **options: Any) -> Distortion:
    """Return the sound as it comes back from a lossy codec of libsndfile, at a sample rate in Hz."""

    def distort(sound: Tensor, random: ClipRandom, others: Callable[[ClipRandom], Tensor]) -> Tensor:
        import soundfile
        from torchaudio.functional import resample

        carried = io.BytesIO()
        sent = resample(sound[0].clamp(-1, 1), SAMPLE_RATE, rate).numpy()
        soundfile.write(carried, sent, rate, subtype=subtype, format=file, **options)
        carried.seek(0)
        received, _ = soundfile.read(carried, dtype="float32")
        return resample(torch.from_numpy(received), rate, SAMPLE_RATE)[None]

    return distort


def mp3(compression: float) -> Distortion:
    """Return the sound after MP3 of a constant rate, 0 being libsndfile's least compression."""
    options = {"compression_level": compression, "bitrate_mode": "CONSTANT"}
    return coded(SAMPLE_RATE, "MP3", "MPEG_LAYER_III", **options)


def recorded(folder: str) -> dict[str, dict[float, Distortion]]:
    """Return the conditions that recorded noise makes.

    Raises:
        UserError: no sound in the folder.
    """
    noises = {snr: BackgroundNoise(folder, snr, snr, probability=1.0) for snr in (20.0, 10.0, 5.0, 0.0)}
    first, *others = noises.values()
    first.ready()
    for noise in others:
        noise.recordings = first.recordings  # which keep what was read
    return {"recorded noise, dB": {snr: by(noise) for snr, noise in noises.items()}}


CONDITIONS: dict[str, dict[float, Distortion]] = {
    "white noise, dB": {snr: by(Noise(snr, snr, probability=1.0)) for snr in (30.0, 20.0, 10.0, 5.0, 0.0)},
    "babble, dB": {snr: among(snr) for snr in (20.0, 10.0, 5.0, 0.0)},
    "music, dB": {snr: with_music(snr) for snr in (20.0, 10.0, 0.0)},
    "gain, dB": {db: louder(db) for db in (-20.0, -10.0, 10.0, 20.0)},
    "telephone": {1.0: by(Band(probability=1.0))},
    "low-pass, Hz": {edge: by(LowPass(edge, edge, probability=1.0)) for edge in (4000.0, 2000.0)},
    "clipping, share of peak": {share: by(Clipping(share, share, probability=1.0)) for share in (0.3, 0.1)},
    "reverberation, s": {s: by(Reverb(s, s, 3.0, 3.0, probability=1.0)) for s in (0.3, 0.8)},
    "speed": {factor: faster(factor) for factor in (0.8, 0.9, 1.1, 1.25)},
    "first seconds": {seconds: only(seconds) for seconds in (2.0, 1.0)},
    "tilt, dB an octave": {db: tilted(db) for db in (-6.0, 6.0)},
    "MP3, kbit/s": {40.0: mp3(0.8), 16.0: mp3(0.95)},
    "GSM 6.10, kbit/s": {13.0: coded(8000, "WAV", "GSM610")},
}
