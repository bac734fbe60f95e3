"""Augmentation of features, and across the clips of a batch, of features or of sound.

Shapes: B clips, T frames, D features, C classes; ``lengths`` are long[B].
"""

import torch
from torch import Tensor

from ser.augment import ClipRandom, Operation
from ser.errors import UserError
from ser.layers import clip_mask

__all__ = ["Mixup", "SoundMixup", "SpecAugment"]


class SpecAugment(Operation):
    """Mask stretches of time and bands of frequency (Park et al. 2019, https://arxiv.org/abs/1904.08779).

    What is masked takes the clip's own mean of that band, so that the level of the input is kept.

    Args:
        time_masks: stretches a clip.
        time_share: longest stretch, as a share of the clip.
        band_masks: bands a clip.
        band_width: widest band, in features.
        probability: of a clip being changed.

    Raises:
        UserError: a number or width that is out of range.
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

    Raises:
        UserError: ``alpha`` is not above 0.
    """

    kind = "mix_features"

    def __init__(self, alpha: float = 0.4, probability: float = 0.5):
        super().__init__(probability)
        if alpha <= 0:
            raise UserError(f"Mixup: alpha is {alpha}; expected more than 0")
        self.alpha = alpha

    def __call__(self, x: Tensor, lengths: Tensor, targets: Tensor, random: ClipRandom) -> tuple[Tensor, Tensor]:
        """Return mixed x [B, ...], of clips of one length, or sound [B, N], and targets [B, C].

        Of sound, a neighbour is cut at the clip's own end.
        """
        chosen = self.chosen(random)
        own = random.beta(self.alpha)
        own = torch.where(chosen, torch.maximum(own, 1 - own), 1.0).to(x)  # at least half stays its own
        share = own.reshape(-1, *[1] * (x.dim() - 1))
        weight = own[:, None].to(targets)
        neighbour = x.roll(1, 0) * clip_mask(lengths, x.shape[1]) if x.dim() == 2 else x.roll(1, 0)
        return share * x + (1 - share) * neighbour, weight * targets + (1 - weight) * targets.roll(1, 0)


class SoundMixup(Mixup):
    """Mix each clip's sound and its target with the next one of the batch, before any features are made.

    Args:
        alpha, probability: as of ``Mixup``.
    """

    kind = "mix_sound"
