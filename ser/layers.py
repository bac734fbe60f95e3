"""Building blocks that respect where each clip ends.

Shapes: B clips, C channels, T frames of the longest clip of the batch; ``lengths`` are long[B] in frames.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.errors import UserError, nearest

__all__ = ["NORMALISATIONS", "Classifier", "InputNorm", "clip_mask", "masked_mean_std", "pad_reflect"]

NORMALISATIONS = ("corpus", "clip", "none")


def clip_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return bool [B, T]: true inside each clip."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def pad_reflect(x: Tensor, lengths: Tensor, padding: int) -> Tensor:
    """Reflect each clip at its own two ends, wherever the batch ends.

    ``F.pad(mode="reflect")`` mirrors around the last frame of the *batch*, so a shorter clip would see its
    padding. Here frame ``length + j`` becomes frame ``length - 2 - j`` of the same clip.

    Args:
        x: [B, C, T]; what lies after a clip's end is ignored.
        lengths: long [B], each at least 1; a clip not longer than ``padding`` repeats its outermost frame.
        padding: frames to add at each side.

    Returns:
        [B, C, T + 2 * padding]; frames after a clip's own padding are left as they were.
    """
    if padding == 0:
        return x
    last = lengths[:, None] - 1  # [B, 1]
    offsets = torch.arange(1, padding + 1, device=x.device)  # [padding]
    before = torch.minimum(offsets.flip(0)[None], last)
    after = (last - offsets[None]).clamp_min(0)
    channels = x.shape[1]
    head = x.gather(2, before[:, None].expand(-1, channels, -1))
    tail = x.gather(2, after[:, None].expand(-1, channels, -1))
    padded = torch.cat([head, F.pad(x, (0, padding))], dim=2)
    places = (padding + last + offsets[None])[:, None].expand(-1, channels, -1)
    return padded.scatter(2, places, tail)


def masked_mean_std(x: Tensor, lengths: Tensor, smallest: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over each clip's own frames, both [B, D], of x [B, T, D].

    The standard deviation is the biased one (divided by the number of frames) and at least ``smallest``.
    """
    mask = clip_mask(lengths, x.shape[1])[..., None]
    count = lengths[:, None].to(x.dtype)
    mean = x.masked_fill(~mask, 0).sum(1) / count
    variance = (x - mean[:, None]).masked_fill(~mask, 0).square().sum(1) / count
    return mean, variance.clamp_min(smallest**2).sqrt()


class Classifier(nn.Module):
    """What every model is: ``forward(inputs, lengths) -> logits`` [B, C], and the names of its C classes."""

    labels: tuple[str, ...]


class InputNorm(nn.Module):
    """Centre features, and scale them where the statistics of a corpus are known.

    Args:
        size: features D.
        kind: ``corpus`` (statistics of the training part, which keep how loud a clip is), ``clip`` (each clip's
            own mean, which takes the channel and the loudness out) or ``none``.
    """

    def __init__(self, size: int, kind: str = "corpus"):
        super().__init__()
        if kind not in NORMALISATIONS:
            raise UserError(f"normalisation '{kind}' is unknown{nearest(kind, NORMALISATIONS)}")
        self.kind = kind
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, clips: Iterable[Tensor]) -> None:
        """Take mean and standard deviation over all frames of ``clips`` [T, D], in double precision."""
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for clip in clips:
            frames = clip.double()
            count += len(frames)
            total = total + frames.sum(0)
            squares = squares + frames.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp_min(1e-10).sqrt())

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return normalised x [B, T, D]; frames after a clip's end are zero."""
        if self.kind == "corpus":
            x = (x - self.mean) / self.std
        elif self.kind == "clip":
            x = x - masked_mean_std(x, lengths)[0][:, None]
        return x.masked_fill(~clip_mask(lengths, x.shape[1])[..., None], 0.0)
