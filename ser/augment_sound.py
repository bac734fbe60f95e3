"""Augmentation of the sound itself; what lies after a clip's end stays zero.

Shapes: B clips, N samples at 16 kHz; ``lengths`` are long[B]. ``augment_surroundings`` changes where it was recorded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ser.audio import SAMPLE_RATE
from ser.augment import ClipRandom, Operation, check_range, silent_after
from ser.errors import UserError

__all__ = ["Clipping", "Gain", "Pitch", "Polarity", "Shift", "Speed", "is_hundredths"]


class Gain(Operation):
    """Make each clip louder or softer.

    Args:
        db_low: smallest gain, dB.
        db_high: largest gain, dB.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, db_low: float = -6.0, db_high: float = 6.0, probability: float = 0.5):
        super().__init__(probability)
        self.db_low, self.db_high = check_range("Gain", "db", db_low, db_high)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] times one factor a clip."""
        chosen = self.chosen(random)
        factor = 10 ** (random.uniform(self.db_low, self.db_high) / 20)
        return sound * torch.where(chosen, factor, 1.0).to(sound)[:, None]


class Polarity(Operation):
    """Turn the sign of the sound, which nobody hears.

    Args:
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, probability: float = 0.5):
        super().__init__(probability)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N]."""
        return sound * torch.where(self.chosen(random), -1.0, 1.0).to(sound)[:, None]


class Shift(Operation):
    """Move the sound inside its clip, earlier or later; silence fills up.

    Args:
        share: largest distance, as a share of the clip.
        probability: of a clip being changed.

    Raises:
        UserError: a share outside [0, 1).
    """

    kind = "sound"

    def __init__(self, share: float = 0.1, probability: float = 0.5):
        super().__init__(probability)
        if not 0 <= share < 1:
            raise UserError(f"Shift: share is {share}; expected a share of the clip in [0, 1)")
        self.share = share

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] of the same lengths."""
        chosen = self.chosen(random)
        distances = (random.uniform(-self.share, self.share) * lengths.cpu() * chosen).round().long().tolist()
        out = torch.empty_like(sound)
        for new, old, distance, length in zip(out, sound, distances, lengths.tolist(), strict=True):
            later, end = max(distance, 0), length + min(distance, 0)
            new[later:end] = old[later - distance : end - distance]
            if later:
                new[:later] = 0
            if end < len(new):
                new[end:] = 0
        return out


def is_hundredths(factor: float) -> bool:
    """Say whether a speed has no more than two digits behind the point, which is what resampling keeps of it."""
    return abs(100 * factor - round(100 * factor)) < 1e-6


class Speed(Operation):
    """Play each clip faster or slower, pitch included, at one of some factors (Ko et al. 2015, Interspeech).

    The length stays: a slower clip is cut, a faster one begins again.

    Args:
        factors: to draw from, each above 0; 1.1 is a tenth faster.
        probability: of a clip being changed.

    Raises:
        UserError: a factor outside 0.5 to 2, or not in whole hundredths.
    """

    kind = "sound"

    def __init__(self, factors: Sequence[float] = (0.9, 1.1), probability: float = 0.5):
        super().__init__(probability)
        if not factors or not all(0.5 <= factor <= 2 for factor in factors):
            raise UserError(f"Speed: factors are {list(factors)}; expected one or more from 0.5 to 2")
        if not all(is_hundredths(factor) for factor in factors):
            raise UserError(f"Speed: factors are {list(factors)}; expected whole hundredths, such as 0.95")
        self.factors = tuple(factors)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N], resampled by torchaudio."""
        from torchaudio.functional import resample

        chosen = self.chosen(random).tolist()
        picks = random.uniform(0, len(self.factors)).long().tolist()
        out = sound.clone()
        for row, length in enumerate(lengths.tolist()):
            if chosen[row]:
                rate = round(100 * self.factors[picks[row]])
                needed = -(-length * rate // 100)
                clip = sound[row, :length].repeat(-(-needed // length))[:needed]
                out[row, :length] = resample(clip, rate, 100)[:length]
        return out


class Pitch(Operation):
    """Raise or lower the pitch by whole semitones, at the same speed: a phase vocoder, then resampling, by torchaudio.

    Args:
        semitones: largest distance, 1 to 12.
        probability: of a clip being changed.
    """

    kind = "sound"
    WINDOW, HOP = 512, 128  # samples of the vocoder

    def __init__(self, semitones: int = 2, probability: float = 0.5):
        super().__init__(probability)
        if not 1 <= semitones <= 12:
            raise UserError(f"Pitch: semitones is {semitones}; expected 1 to 12")
        self.semitones = semitones

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] of the same lengths; clips of one distance go through together."""
        chosen = self.chosen(random)
        steps = [*range(-self.semitones, 0), *range(1, self.semitones + 1)]
        picks = torch.tensor([steps[place] for place in random.integers(len(steps))]) * chosen
        out = sound.clone()
        for step in sorted(set(picks.tolist()) - {0}):
            rows = (picks == step).nonzero()[:, 0].to(sound.device)
            out[rows] = self.moved(sound[rows], step)
        return silent_after(out, lengths)

    def moved(self, sound: Tensor, step: int) -> Tensor:
        """Return sound [B, N] of another pitch."""
        from torchaudio.functional import phase_vocoder, resample

        rate = round(SAMPLE_RATE * 2 ** (-step / 12) / 100) * 100  # in hundreds, so that resampling is a small ratio
        wanted, sound = sound.shape[1], F.pad(sound, (0, 4 * self.WINDOW))
        window = torch.hann_window(self.WINDOW, device=sound.device)
        # Silence around every clip alike, not a mirror of its end, which in a batch is where the longest ends.
        spectrum = torch.stft(sound, self.WINDOW, self.HOP, window=window, pad_mode="constant", return_complex=True)
        advance = torch.linspace(0, torch.pi * self.HOP, spectrum.shape[1], device=sound.device)[:, None]
        slower = phase_vocoder(spectrum, rate / SAMPLE_RATE, advance)
        size = round(sound.shape[1] * SAMPLE_RATE / rate)
        stretched = torch.istft(slower, self.WINDOW, self.HOP, window=window, length=size)
        return resample(stretched, SAMPLE_RATE, rate)[:, :wanted]


class Clipping(Operation):
    """Cut off what is louder than a share of the clip's peak, as an overdriven microphone does.

    Args:
        share_low, share_high: range of the share.
        probability: of a clip being changed.

    Raises:
        UserError: shares outside (0, 1].
    """

    kind = "sound"

    def __init__(self, share_low: float = 0.2, share_high: float = 0.8, probability: float = 0.5):
        super().__init__(probability)
        self.share_low, self.share_high = check_range("Clipping", "share", share_low, share_high)
        if not 0 < share_low <= share_high <= 1:
            raise UserError(f"Clipping: shares {share_low} to {share_high}; expected shares of the peak in (0, 1]")

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N]."""
        share = torch.where(self.chosen(random), random.uniform(self.share_low, self.share_high), 1.0)
        limit = sound.abs().amax(1, keepdim=True) * share.to(sound)[:, None]
        return sound.clamp(-limit, limit)
