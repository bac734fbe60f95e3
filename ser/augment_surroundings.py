"""Augmentation of where a sound was recorded: noise, rooms, telephones; what lies after a clip's end stays zero.

Shapes: B clips, N samples at 16 kHz; ``lengths`` are long[B].
"""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ser import audio
from ser.audio import SAMPLE_RATE
from ser.augment import ClipRandom, Operation, check_range, silent_after
from ser.errors import UserError
from ser.files import files_in

__all__ = [
    "BackgroundNoise",
    "Band",
    "LowPass",
    "Noise",
    "RecordedRooms",
    "Reverb",
    "filtered",
    "frequencies",
    "with_noise",
]

TAPS = 1024  # length of filters, samples
BLOCK = 8192  # samples that are filtered at once


class Noise(Operation):
    """Add noise at a signal-to-noise ratio drawn for each clip: white, or of a power that falls with frequency.

    Args:
        snr_low: smallest ratio, dB.
        snr_high: largest ratio, dB.
        tilt_low, tilt_high: range of the exponent of 1 / f that the power falls with: 0 white, 1 pink, 2 brown.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(
        self,
        snr_low: float = 5.0,
        snr_high: float = 30.0,
        tilt_low: float = 0.0,
        tilt_high: float = 0.0,
        probability: float = 0.5,
    ):
        super().__init__(probability)
        self.snr_low, self.snr_high = check_range("Noise", "snr", snr_low, snr_high)
        self.tilt_low, self.tilt_high = check_range("Noise", "tilt", tilt_low, tilt_high)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] with noise inside each clip; the ratio of powers is exact."""
        chosen = self.chosen(random)
        snr = random.uniform(self.snr_low, self.snr_high)
        tilt = random.uniform(self.tilt_low, self.tilt_high)
        noise = random.normal(sound.shape[1], chosen).to(sound)
        if self.tilt_low or self.tilt_high:
            inside = silent_after(noise, lengths)
            hertz = frequencies(sound).clamp_min(SAMPLE_RATE / TAPS)
            noise = filtered(inside, hertz ** (-tilt.to(sound)[:, None] / 2))
        return with_noise(sound, lengths, noise, snr)


class BackgroundNoise(Operation):
    """Add recorded noise from a folder at a signal-to-noise ratio drawn for each clip.

    Args:
        folder: of sound files, in any depth; a shorter one is repeated.
        snr_low: smallest ratio, dB.
        snr_high: largest ratio, dB.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, folder: str, snr_low: float = 5.0, snr_high: float = 30.0, probability: float = 0.5):
        super().__init__(probability)
        self.snr_low, self.snr_high = check_range("BackgroundNoise", "snr", snr_low, snr_high)
        self.recordings = Recordings("BackgroundNoise", folder)

    def ready(self) -> None:
        """Find the recordings."""
        len(self.recordings)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] with noise inside each clip; the ratio of powers is exact."""
        chosen = self.chosen(random)
        snr, starts = random.uniform(self.snr_low, self.snr_high), random.uniform()
        noise = torch.zeros(sound.shape)
        for row, place in enumerate(random.integers(len(self.recordings))):
            if chosen[row]:
                recording, samples = self.recordings[place], int(lengths[row])
                start = int(starts[row] * max(1, len(recording) - samples + 1))
                piece = recording[start : start + samples]
                noise[row, :samples] = piece.repeat(-(-samples // len(piece)))[:samples]
        return with_noise(sound, lengths, noise.to(sound), snr)


class Reverb(Operation):
    """Put each clip into a room: its direct sound, then noise that dies away (Moorer 1979), loudness kept.

    Args:
        seconds_low, seconds_high: range of the time in which the room's answer falls by 60 dB.
        direct_low, direct_high: range of the ratio of direct to reverberant energy, dB.
        probability: of a clip being changed.

    Raises:
        UserError: a range that is empty, or seconds not above 0.
    """

    kind = "sound"

    def __init__(
        self,
        seconds_low: float = 0.1,
        seconds_high: float = 0.8,
        direct_low: float = 0.0,
        direct_high: float = 15.0,
        probability: float = 0.5,
    ):
        super().__init__(probability)
        self.seconds_low, self.seconds_high = check_range("Reverb", "seconds", seconds_low, seconds_high)
        self.direct_low, self.direct_high = check_range("Reverb", "direct", direct_low, direct_high)
        if seconds_low <= 0:
            raise UserError(f"Reverb: seconds_low is {seconds_low}; expected more than 0")

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] of the same lengths and energies; what rings on after a clip's end is cut."""
        chosen = self.chosen(random)
        seconds = random.uniform(self.seconds_low, self.seconds_high).to(sound)
        direct = random.uniform(self.direct_low, self.direct_high).to(sound)
        size = round(self.seconds_high * SAMPLE_RATE)
        time = torch.arange(1, size + 1, device=sound.device) / SAMPLE_RATE
        room = random.normal(size, chosen).to(sound) * 10 ** (-3 * time / seconds[:, None])
        energy = room.square().sum(1, keepdim=True).clamp_min(1e-12)
        room = room * (10 ** (-direct[:, None] / 10) / energy).sqrt()
        answer = torch.cat([torch.ones_like(room[:, :1]), room], 1)
        return torch.where(chosen.to(sound.device)[:, None], in_room(sound, lengths, answer), sound)


class RecordedRooms(Operation):
    """Put each clip into a recorded room, loudness kept.

    Args:
        folder: of impulse responses as sound files, in any depth; each begins at its loudest sample.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, folder: str, probability: float = 0.5):
        super().__init__(probability)
        self.recordings = Recordings("RecordedRooms", folder)

    def ready(self) -> None:
        """Find the recordings."""
        len(self.recordings)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] of the same lengths and energies."""
        chosen = self.chosen(random)
        answers = []
        for place in random.integers(len(self.recordings)):
            recording = self.recordings[place]
            answers.append(recording[int(recording.abs().argmax()) :][: sound.shape[1]])
        answer = pad_sequence(answers, batch_first=True).to(sound)
        return torch.where(chosen.to(sound.device)[:, None], in_room(sound, lengths, answer), sound)


class Band(Operation):
    """Keep a band of frequencies, with slopes of 24 dB an octave and no delay.

    Args:
        low, high: edges of the band, Hz; those of the telephone without them.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, low: float = 300.0, high: float = 3400.0, probability: float = 0.5):
        super().__init__(probability)
        self.low, self.high = check_range("Band", "edge", low, high)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N]."""
        chosen = self.chosen(random).to(sound.device)[:, None]
        hertz = frequencies(sound)
        gain = slope(self.low / hertz.clamp_min(1e-3)) * slope(hertz / self.high)
        return torch.where(chosen, silent_after(filtered(sound, gain), lengths), sound)


class LowPass(Operation):
    """Take high frequencies out, above an edge drawn for each clip, with a slope of 24 dB an octave and no delay.

    Args:
        edge_low, edge_high: range of the edge, Hz.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, edge_low: float = 1500.0, edge_high: float = 6000.0, probability: float = 0.5):
        super().__init__(probability)
        self.edge_low, self.edge_high = check_range("LowPass", "edge", edge_low, edge_high)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N]."""
        chosen = self.chosen(random).to(sound.device)[:, None]
        edge = random.uniform(self.edge_low, self.edge_high).to(sound)[:, None]
        gain = slope(frequencies(sound) / edge)
        return torch.where(chosen, silent_after(filtered(sound, gain), lengths), sound)


class Recordings:
    """Sound files of a folder, found and read when they are first needed, and kept."""

    def __init__(self, name: str, folder: str):
        self.name, self.folder = name, Path(folder)
        self.kept: dict[int, Tensor] = {}

    @cached_property
    def paths(self) -> list[Path]:
        """The files.

        Raises:
            UserError: no such folder, or no sound in it.
        """
        if not self.folder.is_dir():
            raise UserError(f"{self.name}: folder '{self.folder}' is not there; expected one with sound files")
        paths = [path for path in files_in(self.folder) if path.suffix.lower() in audio.SOUND_SUFFIXES]
        if not paths:
            raise UserError(
                f"{self.name}: folder '{self.folder}' holds no sound; expected {', '.join(audio.SOUND_SUFFIXES)} files"
            )
        return paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        if place not in self.kept:
            self.kept[place] = torch.from_numpy(audio.read(self.paths[place]))
        return self.kept[place]


def with_noise(sound: Tensor, lengths: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
    """Add noise [B, N] to sound [B, N] inside each clip, at ratios of powers [B] in dB; a silent row adds nothing."""
    noise = silent_after(noise, lengths)
    norm, noise_norm = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (sound, noise))
    return torch.addcmul(sound, noise, norm / noise_norm.clamp_min(1e-6) * 10 ** (-snr.to(sound)[:, None] / 20))


def in_room(sound: Tensor, lengths: Tensor, answer: Tensor) -> Tensor:
    """Convolve sound [B, N] with a room's answers [B, M], cut at each clip's end and brought to its energy."""
    size = sound.shape[1] + answer.shape[1] - 1
    size = -(-size // 2048) * 2048  # a size that the FFT is fast for
    wet = torch.fft.irfft(torch.fft.rfft(sound, size) * torch.fft.rfft(answer, size), size)[:, : sound.shape[1]]
    wet = silent_after(wet, lengths)
    before, after = sound.square().sum(1, keepdim=True), wet.square().sum(1, keepdim=True)
    return wet * (before / after.clamp_min(1e-12)).sqrt()


def filtered(sound: Tensor, gain: Tensor) -> Tensor:
    """Filter sound [B, N] without delay, by gains at the ``frequencies``, [B, TAPS // 2 + 1] or alike for all clips.

    The filter is as long for any N, so a clip comes out the same alone and in any batch.
    """
    half, hop = TAPS // 2, BLOCK - TAPS
    window = torch.hann_window(TAPS + 1, device=sound.device)
    kernel = torch.fft.irfft(gain.to(sound), TAPS)
    kernel = torch.cat([kernel[..., half:], kernel[..., : half + 1]], -1) * window  # the middle comes first
    # Overlap-save: of each block's circular convolution, what lies behind the filter's length is the linear one.
    count = -(-sound.shape[1] // hop)
    blocks = F.pad(sound, (half, count * hop + half - sound.shape[1])).unfold(1, BLOCK, hop)
    spectra = torch.fft.rfft(blocks) * torch.fft.rfft(kernel, BLOCK).unsqueeze(-2)
    return torch.fft.irfft(spectra, BLOCK)[..., TAPS:].flatten(1)[:, : sound.shape[1]]


def frequencies(sound: Tensor) -> Tensor:
    """Return the frequencies that a filter has gains of, Hz."""
    return torch.fft.rfftfreq(TAPS, 1 / SAMPLE_RATE, device=sound.device)


def slope(ratio: Tensor) -> Tensor:
    """Return the gain of a Butterworth filter of order four at ``ratio`` of its edge."""
    return (1 + ratio**8).rsqrt()
