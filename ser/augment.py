"""Augmentation in training: operations on sound, on features and across a batch.

Each operation has a probability of its own and draws from a generator that depends on (seed, epoch,
operation, clip) alone, so a clip is changed in the same way in any batch, worker or rank.
Shapes: B clips, N samples, T frames, D features, C classes; ``lengths`` are long[B].
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ser.errors import UserError
from ser.layers import clip_mask

__all__ = ["Augmentation", "ClipRandom", "Gain", "Mixup", "Noise", "SpecAugment", "Speed"]


class ClipRandom:
    """Random numbers for one operation on one batch: a generator for each clip.

    Args:
        seed: of the run.
        epoch: counted from 0.
        operation: place of the operation in the list.
        clips: names of the clips of the batch.
    """

    def __init__(self, seed: int, epoch: int, operation: int, clips: Sequence[str]):
        keys = (f"{seed}/{epoch}/{operation}/{clip}".encode() for clip in clips)
        digests = (hashlib.blake2b(key, digest_size=16).digest() for key in keys)
        self.generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(d, "little"))) for d in digests]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 [B], uniform in [low, high)."""
        values = torch.tensor([low + (high - low) * g.random() for g in self.generators], dtype=torch.float32)
        below = torch.nextafter(
            torch.tensor(float(high)), torch.tensor(float(low))
        )  # rounding to float32 may reach high itself
        return values if low == high else values.clamp_max(below)

    def normal(self, size: int) -> Tensor:
        """Return float32 [B, size], standard normal."""
        return torch.from_numpy(np.stack([g.standard_normal(size, dtype=np.float32) for g in self.generators]))

    def beta(self, alpha: float) -> Tensor:
        """Return float32 [B] of the symmetric Beta(alpha, alpha)."""
        return torch.tensor([g.beta(alpha, alpha) for g in self.generators], dtype=torch.float32)


class Operation:
    """What all operations share: a probability, and the kind of input that they change."""

    kind = ""  # sound, features or batch
    __call__: Callable

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise UserError(f"{type(self).__name__}: probability is {probability}; expected a value from 0 to 1")
        self.probability = probability

    def chosen(self, random: ClipRandom) -> Tensor:
        """Return bool [B]: which clips to change."""
        return random.uniform() < self.probability


class Noise(Operation):
    """Add white noise at a signal-to-noise ratio drawn for each clip.

    Args:
        snr_low: smallest ratio, dB.
        snr_high: largest ratio, dB.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, snr_low: float = 5.0, snr_high: float = 30.0, probability: float = 0.5):
        super().__init__(probability)
        self.snr_low, self.snr_high = check_range("Noise", "snr", snr_low, snr_high)

    def __call__(self, sound: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return sound [B, N] with noise inside each clip; the ratio of powers is exact."""
        chosen = self.chosen(random)
        snr = random.uniform(self.snr_low, self.snr_high)
        mask = clip_mask(lengths, sound.shape[1])
        noise = random.normal(sound.shape[1]).to(sound) * mask
        energy, noise_energy = sound.square().sum(1), noise.square().sum(1)
        scale = (energy / noise_energy.clamp_min(1e-12) * 10 ** (-snr.to(sound) / 10)).sqrt()
        return sound + noise * (scale * chosen.to(sound))[:, None]


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


class Speed(Operation):
    """Play each clip faster or slower, pitch included, at one of some factors (Ko et al. 2015, Interspeech).

    The length stays: a slower clip is cut, a faster one begins again.

    Args:
        factors: to draw from, each above 0; 1.1 is a tenth faster.
        probability: of a clip being changed.
    """

    kind = "sound"

    def __init__(self, factors: Sequence[float] = (0.9, 1.1), probability: float = 0.5):
        super().__init__(probability)
        if not factors or not all(0.5 <= factor <= 2 for factor in factors):
            raise UserError(f"Speed: factors are {list(factors)}; expected one or more from 0.5 to 2")
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


class SpecAugment(Operation):
    """Mask stretches of time and bands of frequency (Park et al. 2019, https://arxiv.org/abs/1904.08779).

    What is masked takes the clip's own mean of that band, so that the level of the input is kept.

    Args:
        time_masks: stretches a clip.
        time_share: longest stretch, as a share of the clip.
        band_masks: bands a clip.
        band_width: widest band, in features.
        probability: of a clip being changed.
    """

    kind = "features"

    def __init__(
        self,
        time_masks: int = 2,
        time_share: float = 0.15,
        band_masks: int = 2,
        band_width: int = 12,
        probability: float = 0.5,
    ):
        super().__init__(probability)
        if min(time_masks, band_masks, band_width) < 0 or not 0 <= time_share <= 1:
            raise UserError(
                f"SpecAugment: time_masks {time_masks}, time_share {time_share}, band_masks {band_masks}, "
                f"band_width {band_width}; expected none below 0 and a share up to 1"
            )
        self.time_masks, self.time_share = time_masks, time_share
        self.band_masks, self.band_width = band_masks, band_width

    def __call__(self, x: Tensor, lengths: Tensor, random: ClipRandom) -> Tensor:
        """Return x [B, T, D] with parts of the chosen clips masked."""
        chosen = self.chosen(random).to(x.device)
        frames = torch.arange(x.shape[1], device=x.device)
        bands = torch.arange(x.shape[2], device=x.device)
        masked = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for _ in range(self.time_masks):
            width = random.uniform(0, self.time_share).to(x.device) * lengths
            start = random.uniform().to(x.device) * (lengths - width)
            masked |= ((frames >= start[:, None]) & (frames < (start + width)[:, None]))[:, :, None]
        for _ in range(self.band_masks):
            width = random.uniform(0, self.band_width).to(x.device)
            start = random.uniform().to(x.device) * (x.shape[2] - width)
            masked |= ((bands >= start[:, None]) & (bands < (start + width)[:, None]))[:, None, :]
        inside = clip_mask(lengths, x.shape[1])[..., None]
        mean = x.masked_fill(~inside, 0).sum(1, keepdim=True) / lengths[:, None, None]
        return torch.where(masked & inside & chosen[:, None, None], mean.to(x.dtype), x)


class Mixup(Operation):
    """Mix each clip and its target with the next one of the batch (https://arxiv.org/abs/1710.09412).

    Args:
        alpha: of the Beta(alpha, alpha) distribution of the mixing weight.
        probability: of a clip being changed.
    """

    kind = "batch"

    def __init__(self, alpha: float = 0.4, probability: float = 0.5):
        super().__init__(probability)
        if alpha <= 0:
            raise UserError(f"Mixup: alpha is {alpha}; expected more than 0")
        self.alpha = alpha

    def __call__(self, x: Tensor, targets: Tensor, random: ClipRandom) -> tuple[Tensor, Tensor]:
        """Return mixed x [B, ...] and targets [B, C]; both must be unpadded, as training crops are."""
        chosen = self.chosen(random)
        own = random.beta(self.alpha)
        own = torch.where(chosen, torch.maximum(own, 1 - own), 1.0).to(x)  # at least half stays its own
        share = own.reshape(-1, *[1] * (x.dim() - 1))
        weight = own[:, None].to(targets)
        return share * x + (1 - share) * x.roll(1, 0), weight * targets + (1 - weight) * targets.roll(1, 0)


class Augmentation:
    """The operations of a run, applied in the order of the list within each kind.

    Args:
        operations: objects of this room; an empty list changes nothing.
    """

    def __init__(self, operations: Sequence[Operation] = ()):
        for operation in operations:
            if not isinstance(operation, Operation):
                raise UserError(f"Augmentation.operations holds {operation!r}; expected such as @SpecAugment()")
        self.operations = tuple(operations)

    def of_kind(self, kind: str) -> list[tuple[int, Operation]]:
        """Return (place in the list, operation) of the operations of one kind."""
        return [(place, op) for place, op in enumerate(self.operations) if op.kind == kind]

    def clipwise(self, kind: str, x: Tensor, lengths: Tensor, seed: int, epoch: int, clips: Sequence[str]) -> Tensor:
        """Apply the operations on ``sound`` [B, N] or ``features`` [B, T, D] and return the result."""
        for place, operation in self.of_kind(kind):
            x = operation(x, lengths, ClipRandom(seed, epoch, place, clips))
        return x

    def across(self, x: Tensor, targets: Tensor, seed: int, epoch: int, clips: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Apply the operations that mix clips of a batch and return inputs and targets."""
        for place, operation in self.of_kind("batch"):
            x, targets = operation(x, targets, ClipRandom(seed, epoch, place, clips))
        return x, targets


def check_range(name: str, what: str, low: float, high: float) -> tuple[float, float]:
    """Return (low, high), or raise a UserError where they are the wrong way round."""
    if low > high:
        raise UserError(f"{name}: {what}_low is {low} and {what}_high is {high}; expected low <= high")
    return low, high
