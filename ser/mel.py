"""Log-mel front ends as torch modules: sound in, frames out, the same alone and in any batch.

Shapes: B clips, N samples at 16 kHz, T frames, D mel bands; ``lengths`` are long[B].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.interfaces import FrontEnd
from ser.layers import clip_mask

__all__ = ["LogMel", "WhisperMel"]


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


class WhisperMel(nn.Module):
    """The log-mel input of Whisper, of each clip's own length instead of 30 s.

    Its frames are those that transformers' ``WhisperFeatureExtractor`` computes of the same clip within 30 s:
    logarithm to base 10 of mel power (Slaney scale, 25 ms Hann windows every 10 ms), cut off 8 below the clip's
    maximum, scaled to about [-1, 1]. Silence follows a clip, as Whisper was trained; two frames of it are as many
    as the encoder's convolutions reach beyond a clip's end.

    Args:
        bands: number of mel bands, 80 or (large-v3) 128.
    """

    WINDOW, HOP = 400, 160  # samples
    LONGEST = 30 * SAMPLE_RATE  # samples

    def __init__(self, bands: int = 80):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

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

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames long [B] of clips of ``lengths`` samples: those centred inside the clip."""
        return torch.div(lengths + self.HOP - 1, self.HOP, rounding_mode="floor")

    def forward(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """Turn sound [B, N] of at most 30 s into log-mel [B, bands, T], T two frames more than the longest clip's."""
        half, longest = self.WINDOW // 2, int(lengths.max())
        frames = self.frames(lengths)
        sound = sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0)
        # Silence follows a clip; what would lie beyond 30 s and before the start is mirrored, as in the original.
        to_the_end = longest > self.LONGEST - half
        size = self.LONGEST if to_the_end else max(longest, half + 1)
        sound = F.pad(sound, (0, size - sound.shape[1]))
        sound = F.pad(sound[:, None], (half, half if to_the_end else 0), mode="reflect")[:, 0]
        total = min(int(frames.max()) + 2, self.LONGEST // self.HOP)
        needed = (total - 1) * self.HOP + self.WINDOW
        sound = F.pad(sound, (0, max(0, needed - sound.shape[1])))[:, :needed]
        power = torch.stft(
            sound, self.WINDOW, self.HOP, window=self.window, center=False, return_complex=True
        ).abs().square()  # fmt: skip
        mel = (self.filters.T @ power).clamp_min(1e-10).log10()
        # The silent frames count for the maximum too: the first of them may hold the end of a loud sound.
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4
