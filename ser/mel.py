"""Log-mel front ends as torch modules: sound in, frames out, the same alone and in any batch.

Shapes: B clips, N samples at 16 kHz, T frames, D mel bands; ``lengths`` are long[B].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.interfaces import FrontEnd
from ser.layers import arange_like, clip_mask, tracing

__all__ = ["LogMel", "Sound", "WhisperMel"]


class Sound(FrontEnd):
    """Sound as it is, for a model with an encoder of its own: float [B, N] at 16 kHz, never stored."""

    kind = "sound"
    shape = ()
    rate = SAMPLE_RATE

    def __init__(self) -> None:
        super().__init__()

    @property
    def spec(self) -> dict[str, object]:
        """Nothing is made."""
        return {"kind": "sound"}

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return sound [B, N], zero after each clip's end, and its lengths."""
        return sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0), lengths


class Spectrum(nn.Module):
    """Power of the short-time Fourier transform; beyond the ends of the sound is nothing.

    Args:
        window: float [W], as long as the transform.
        hop: samples between frames.
    """

    def __init__(self, window: Tensor, hop: int):
        super().__init__()
        self.size, self.hop = len(window), hop
        self.window: Tensor
        self.waves: Tensor
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("waves", waves(window), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """Return power [B, W / 2 + 1, T] of sound [B, N]."""
        if tracing():  # formats without complex numbers get the transform as a convolution
            cosines, sines = F.conv1d(sound[:, None], self.waves, stride=self.hop).square().chunk(2, 1)
            return cosines + sines
        spectrum = torch.stft(sound, self.size, self.hop, window=self.window, center=False, return_complex=True)
        return spectrum.abs().square()


def waves(window: Tensor) -> Tensor:
    """Return windowed cosines and sines, float [W + 2, 1, W], with which a convolution is a Fourier transform."""
    size = len(window)
    turns = torch.arange(size // 2 + 1)[:, None] * torch.arange(size)  # whole numbers, of which only parts of a turn
    angles = 2 * torch.pi / size * (turns % size).double()  # count, are exact
    return (torch.cat([angles.cos(), angles.sin()]) * window.double()).float()[:, None]


def mel_filters(size: int, bands: int, scale: str) -> Tensor:
    """Return torchaudio's mel filters, float [size / 2 + 1, bands], of the scale ``htk``, or ``slaney`` of area 1."""
    from torchaudio.functional import melscale_fbanks

    norm = "slaney" if scale == "slaney" else None
    return melscale_fbanks(size // 2 + 1, 0.0, SAMPLE_RATE / 2, bands, SAMPLE_RATE, norm, scale)


class LogMel(FrontEnd):
    """Natural logarithm of mel-band power (HTK scale), equal to torchaudio's ``MelSpectrogram``.

    Args:
        bands: number of mel bands D.
        window_ms: length of the Hann window, milliseconds.
        hop_ms: distance between frames, milliseconds.
        floor: power below which the logarithm is cut off, for sound in [-1, 1]. It hides the noise of the
            recording between words, which tells speakers and sessions apart but not emotions.

    Raises:
        UserError: a value that is not above 0.
    """

    def __init__(self, bands: int = 80, window_ms: float = 25.0, hop_ms: float = 10.0, floor: float = 1e-5):
        super().__init__()
        if bands < 1 or window_ms <= 0 or hop_ms <= 0 or floor <= 0:
            raise UserError(
                f"LogMel: bands {bands}, window_ms {window_ms}, hop_ms {hop_ms}, floor {floor}; expected all above 0"
            )
        self.bands = bands
        self.shape = (bands,)
        self.options = "" if bands == 80 else f" 'mel/bands = {bands}'"
        self.floor = floor
        self.window = round(window_ms * SAMPLE_RATE / 1000)  # samples
        self.hop = round(hop_ms * SAMPLE_RATE / 1000)  # samples
        size = max(512, 1 << (self.window - 1).bit_length())
        before = (size - self.window) // 2
        window = F.pad(torch.hann_window(self.window), (before, size - self.window - before))
        self.spectrum = Spectrum(window, self.hop)
        self.filters: Tensor
        self.register_buffer("filters", mel_filters(size, bands, "htk"), persistent=False)

    @property
    def spec(self) -> dict[str, object]:
        """How these features are made, for the index of a feature store."""
        return {
            "kind": "log_mel", "bands": self.bands, "window": self.window, "hop": self.hop, "floor": self.floor,
        }  # fmt: skip

    @property
    def rate(self) -> float:  # type: ignore[override]
        """Frames per second."""
        return SAMPLE_RATE / self.hop

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples."""
        return torch.div(lengths, self.hop, rounding_mode="floor") + 1

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn sound [B, N] into log-mel [B, T, D], zero after each clip's end, and its frames long [B]."""
        sound = sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0.0)
        frames = self.frames(lengths)
        # Zeros beyond both ends are what padding to a longer clip looks like, so batches change nothing.
        power = self.spectrum(F.pad(sound, (self.spectrum.size // 2,) * 2))
        log_mel = (self.filters.T @ power).clamp_min(self.floor).log().transpose(1, 2)
        return log_mel.masked_fill(~clip_mask(frames, log_mel.shape[1])[..., None], 0.0), frames


class WhisperMel(FrontEnd):
    """The log-mel input of Whisper, of each clip's own length instead of 30 s.

    Its frames are those that transformers' ``WhisperFeatureExtractor`` computes of the same clip within 30 s:
    logarithm to base 10 of mel power (Slaney scale, 25 ms Hann windows every 10 ms), cut off 8 below the clip's
    maximum, scaled to about [-1, 1]. Two frames of silence follow a clip, as many as the encoder's convolutions
    reach beyond its end; they count as the clip's.

    Args:
        bands: number of mel bands, 80 or (large-v3) 128.
    """

    WINDOW, HOP = 400, 160  # samples
    LONGEST = 30 * SAMPLE_RATE  # samples
    SILENCE = 2  # frames

    suffix = "-input"
    options = " 'encoder/keep = \"input\"'"
    rate = SAMPLE_RATE / HOP

    def __init__(self, bands: int = 80):
        super().__init__()
        self.bands = bands
        self.shape = (bands,)
        self.spectrum = Spectrum(torch.hann_window(self.WINDOW), self.HOP)
        self.filters: Tensor
        self.register_buffer("filters", mel_filters(self.WINDOW, bands, "slaney"), persistent=False)

    def _apply(self, fn, recurse=True):
        """Follow an encoder to another device, but not to half precision, in which bands would leak."""
        device = fn(self.filters).device
        self.filters = self.filters.to(device)
        self.spectrum.window, self.spectrum.waves = (x.to(device) for x in (self.spectrum.window, self.spectrum.waves))
        return self

    @property
    def spec(self) -> dict[str, object]:
        """How these features are made, for the index of a feature store."""
        return {"kind": "whisper_mel", "bands": self.bands}

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples, the silence included."""
        return torch.div(lengths + self.HOP - 1, self.HOP, rounding_mode="floor") + self.SILENCE

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn sound [B, N] into log-mel [B, T, D], zero after each clip's silence, and its frames long [B]."""
        half, end = self.WINDOW // 2, self.LONGEST
        frames = self.frames(lengths)
        if not tracing():
            sound = sound[:, : int(lengths.max())]
        size = sound.shape[1]
        needed = ((size + self.HOP - 1) // self.HOP + self.SILENCE - 1) * self.HOP + half
        sound = sound.masked_fill(~clip_mask(lengths, size), 0)
        sound = F.pad(sound, (0, needed - size))
        # The original mirrors what would lie before the start and beyond 30 s.
        reaches = (lengths > end - half) & (lengths <= end)
        if tracing() or reaches.any():
            place = arange_like(needed, sound)
            beyond = (place >= end) & (place < end + half)
            mirrored = sound[:, torch.where(beyond, 2 * end - 2 - place, place)]
            sound = torch.where(reaches[:, None], mirrored, sound)
        sound = F.pad(sound[:, None], (half, 0), mode="reflect")[:, 0]
        mel = (self.filters.T @ self.spectrum(sound)).clamp_min(1e-10).log10().transpose(1, 2)
        # The silent frames count for the maximum too: the first of them may hold the end of a loud sound.
        most = end // self.HOP
        counted = torch.where(frames <= most + self.SILENCE, frames.clamp_max(most), frames)
        loudest = mel.masked_fill(~clip_mask(counted, mel.shape[1])[..., None], -torch.inf).amax((1, 2), keepdim=True)
        mel = (torch.maximum(mel, loudest - 8) + 4) / 4
        return mel.masked_fill(~clip_mask(frames, mel.shape[1])[..., None], 0), frames
