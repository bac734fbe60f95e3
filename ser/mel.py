"""Log-mel front ends as torch modules: sound in, frames out, the same alone and in any batch.

Shapes: B clips, N samples at 16 kHz, T frames, D mel bands; ``lengths`` are long[B].
"""

import torch
from torch import Tensor, nn

from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.layers import clip_mask

__all__ = ["LogMel"]


class LogMel(nn.Module):
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
    def rate(self) -> float:
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
