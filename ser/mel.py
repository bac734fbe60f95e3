"""Log-mel front ends as torch modules: sound in, frames out, the same alone and in any batch.

Shapes: B clips, N samples at 16 kHz, T frames, D mel bands; ``lengths`` are long[B].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.interfaces import FrontEnd
from ser.layers import clip_mask

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


class LogMel(FrontEnd):
    """Natural logarithm of mel-band power (HTK scale), by torchaudio.

    Args:
        bands: number of mel bands D.
        window_ms: length of the Hann window, milliseconds.
        hop_ms: distance between frames, milliseconds.
        floor: power below which the logarithm is cut off, for sound in [-1, 1]. It hides the noise of the
            recording between words, which tells speakers and sessions apart but not emotions.
    """

    def __init__(self, bands: int = 80, window_ms: float = 25.0, hop_ms: float = 10.0, floor: float = 1e-5):
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        if bands < 1 or window_ms <= 0 or hop_ms <= 0 or floor <= 0:
            raise UserError(
                f"LogMel: bands {bands}, window_ms {window_ms}, hop_ms {hop_ms}, floor {floor}; expected all above 0"
            )
        self.bands = bands
        self.shape = (bands,)
        self.floor = floor
        self.window = round(window_ms * SAMPLE_RATE / 1000)  # samples
        self.hop = round(hop_ms * SAMPLE_RATE / 1000)  # samples
        self.mel = MelSpectrogram(
            SAMPLE_RATE,
            n_fft=max(512, 1 << (self.window - 1).bit_length()),
            win_length=self.window,
            hop_length=self.hop,
            n_mels=bands,
            center=True,
            # Zeros beyond both ends are what padding to a longer clip looks like, so batches change nothing.
            pad_mode="constant",
        )

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
        log_mel = self.mel(sound).clamp_min(self.floor).log().transpose(1, 2)
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
        from torchaudio.functional import melscale_fbanks

        self.bands = bands
        self.shape = (bands,)
        filters = melscale_fbanks(self.WINDOW // 2 + 1, 0.0, 8000.0, bands, SAMPLE_RATE, "slaney", "slaney")
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.WINDOW), persistent=False)

    def _apply(self, fn, recurse=True):
        """Follow an encoder to another device, but not to half precision, in which bands would leak."""
        device = fn(self.window).device
        self.filters, self.window = self.filters.to(device), self.window.to(device)
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
        needed = (int(frames.max()) - 1) * self.HOP + half
        sound = sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0)
        sound = F.pad(sound, (0, max(0, needed - sound.shape[1])))
        # The original mirrors what would lie before the start and beyond 30 s.
        reaches = (lengths > end - half) & (lengths <= end)
        if reaches.any():
            mirrored = sound[:, end - half - 1 : end - 1].flip(1)
            sound[:, end : end + half] = torch.where(reaches[:, None], mirrored, sound[:, end : end + half])
        sound = F.pad(sound[:, None], (half, 0), mode="reflect")[:, 0, : needed + half]
        power = torch.stft(
            sound, self.WINDOW, self.HOP, window=self.window, center=False, return_complex=True
        ).abs().square()  # fmt: skip
        mel = (self.filters.T @ power).clamp_min(1e-10).log10().transpose(1, 2)
        # The silent frames count for the maximum too: the first of them may hold the end of a loud sound.
        most = end // self.HOP
        counted = torch.where(frames <= most + self.SILENCE, frames.clamp_max(most), frames)
        loudest = mel.masked_fill(~clip_mask(counted, mel.shape[1])[..., None], -torch.inf).amax((1, 2), keepdim=True)
        mel = (torch.maximum(mel, loudest - 8) + 4) / 4
        return mel.masked_fill(~clip_mask(frames, mel.shape[1])[..., None], 0), frames
