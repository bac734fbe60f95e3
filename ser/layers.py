"""Building blocks that respect where each clip ends.

Shapes: B clips, C channels, T frames of the longest clip of the batch; ``lengths`` are long[B] in frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser.errors import UserError, nearest

__all__ = [
    "COMBINED",
    "NORMALISATIONS",
    "WITHOUT_TIME",
    "AttentiveStatistics",
    "CosineHead",
    "InputNorm",
    "LayerSum",
    "Prompts",
    "RunningNorm",
    "SpeakerStatistics",
    "arange_like",
    "at_least_float32",
    "attended_mean_std",
    "clip_mask",
    "masked_mean_std",
    "pad_reflect",
    "tracing",
]

NORMALISATIONS = ("corpus", "speaker", "clip", "none")
WITHOUT_TIME = ("corpus", "speaker", "none")  # of what has no frames
COMBINED = ("join", "sum")  # what becomes of an encoder's layers: side by side, or a learned weighted sum


@dataclass(frozen=True)
class SpeakerStatistics:
    """What is known of the speakers of B clips without any label; F is a clip's features without time.

    Attributes:
        count: clips that the statistics are of, float [B].
        mean, std: float [B, *F]; over all frames of these clips, or over the clips where features have no time.
    """

    count: Tensor
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> "SpeakerStatistics":
        """Return the same on another device."""
        return SpeakerStatistics(self.count.to(device), self.mean.to(device), self.std.to(device))

    def rows(self, which: slice) -> "SpeakerStatistics":
        """Return what is known for some of the clips."""
        return SpeakerStatistics(self.count[which], self.mean[which], self.std[which])


def tracing() -> bool:
    """Say whether a model is being exported: nothing may then depend on the values of this one batch."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def clip_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return bool [B, T]: true inside each clip."""
    return arange_like(frames, lengths) < lengths[:, None]


def arange_like(count: int, like: Tensor) -> Tensor:
    """Return 0, 1, ... count - 1 on the device of ``like``, in an exported model too: a trace would keep today's."""
    if torch.jit.is_tracing():
        return traced_places(count if isinstance(count, Tensor) else torch.tensor(count), like)
    return torch.arange(count, device=like.device)


@torch.jit.script_if_tracing
def traced_places(count: Tensor, like: Tensor) -> Tensor:
    """Return ``arange_like`` as TorchScript, which asks for the device anew at every call."""
    return torch.arange(int(count), device=like.device)


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
    offsets = arange_like(padding, x) + 1  # [padding]
    before = torch.minimum(offsets.flip(0)[None], last)
    after = (last - offsets[None]).clamp_min(0)
    channels = x.shape[1]
    head = x.gather(2, before[:, None].expand(-1, channels, -1))
    tail = x.gather(2, after[:, None].expand(-1, channels, -1))
    padded = torch.cat([head, F.pad(x, (0, padding))], dim=2)
    targets = (padding + last + offsets[None])[:, None].expand(-1, channels, -1)
    return padded.scatter(2, targets, tail)


def masked_mean_std(x: Tensor, lengths: Tensor, std_floor: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over each clip's own frames, both [B, *F], of x [B, T, *F].

    The standard deviation is the biased one (divided by the number of frames) and at least ``std_floor``.
    """
    mask = clip_mask(lengths, x.shape[1]).view(*x.shape[:2], *[1] * (x.dim() - 2))
    count = lengths.view(-1, *[1] * (x.dim() - 2)).to(x.dtype)
    mean = x.masked_fill(~mask, 0).sum(1) / count
    variance = (x - mean[:, None]).masked_fill(~mask, 0).square().sum(1) / count
    return mean, variance.clamp_min(std_floor**2).sqrt()


class InputNorm(nn.Module):
    """Centre features, and scale them where more than the clip itself is known.

    Args:
        size: features D, or the shape (L, 2D) of statistics.
        kind: ``corpus`` (statistics of the training part, which keep how loud a clip is), ``speaker`` (those of
            the clip's speaker where they are given, drawn towards the corpus's), ``clip`` (each clip's own mean,
            which takes the channel and the loudness out) or ``none``.
        prior: clips that the corpus weighs as much as, against those of a speaker.

    Raises:
        UserError: an unknown ``kind``.
    """

    def __init__(self, size: int | tuple[int, ...], kind: str = "corpus", prior: float = 1.0):
        super().__init__()
        if kind not in NORMALISATIONS:
            raise UserError(f"normalisation '{kind}' is unknown{nearest(kind, NORMALISATIONS)}")
        self.kind = kind
        self.prior = prior
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @property
    def fitted(self) -> bool:
        """Whether it needs the statistics of the training part."""
        return self.kind in ("corpus", "speaker")

    @torch.no_grad()
    def fit(self, clips: Iterable[Tensor]) -> None:
        """Take mean and standard deviation over all frames of ``clips`` [T, *size], in double precision.

        Clips without time are of shape [*size].
        """
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for clip in clips:
            frames = clip.double().reshape(-1, *self.mean.shape)
            count += len(frames)
            total = total + frames.sum(0)
            squares = squares + frames.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp_min(1e-10).sqrt())

    def standardised(self, x: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return (x - mean) / std of x [B, *size] or [B, T, *size], by the speaker's statistics if they are given.

        With n clips of a speaker, their mean and variance count n / (n + prior), the corpus's the rest; the
        variance is that about the mean which comes of it.
        """
        mean, std = self.mean, self.std
        if self.kind == "speaker" and speakers is not None:
            share = (speakers.count / (speakers.count + self.prior)).view(-1, *[1] * mean.dim())
            away = speakers.mean - mean
            variance = share * (speakers.std.square() + (1 - share) * away.square()) + (1 - share) * std.square()
            mean, std = mean + share * away, variance.clamp_min(1e-10).sqrt()
            if x.dim() > mean.dim():
                mean, std = mean[:, None], std[:, None]
        return (x - mean) / std

    def forward(self, x: Tensor, lengths: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:
        """Return normalised frames x [B, T, *size]; those after a clip's end are zero."""
        if self.fitted:
            x = self.standardised(x, speakers)
        elif self.kind == "clip":
            x = x - masked_mean_std(x, lengths)[0][:, None]
        outside = ~clip_mask(lengths, x.shape[1])
        return x.masked_fill(outside.view(*outside.shape, *[1] * (x.dim() - 2)), 0.0)


class RunningNorm(InputNorm):
    """``InputNorm`` of embeddings, which change while a model trains: the corpus's statistics run along.

    Args:
        size: of the embedding.
        kind: ``corpus``, ``speaker`` or ``none``.
        prior: as of ``InputNorm``.
        momentum: share of the newest batch in the running statistics; more in the first steps.

    Raises:
        UserError: a ``kind`` that an embedding cannot have.
    """

    def __init__(self, size: int, kind: str = "corpus", prior: float = 1.0, momentum: float = 0.02):
        super().__init__(size, kind, prior)
        if kind == "clip":
            raise UserError("normalisation 'clip': an embedding has no time; choose corpus, speaker or none")
        self.momentum = momentum
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def fitted(self) -> bool:
        """The statistics come while training."""
        return False

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Let a batch [B, E] into the running statistics."""
        self.steps += 1
        if len(x) == 1 and int(self.steps) == 1:  # nothing to take a deviation of, which stays 1
            self.mean.copy_(x[0])
            return
        share = max(self.momentum, 1 / int(self.steps))
        away = x.mean(0) - self.mean
        spread = self.std.square() * (1 - share) + share * x.var(0, correction=0) + share * (1 - share) * away.square()
        self.mean += share * away
        self.std.copy_(spread.clamp_min(1e-10).sqrt())

    def forward(self, x: Tensor, speakers: SpeakerStatistics | None = None) -> Tensor:  # type: ignore[override]
        """Return normalised embeddings x [B, E], in float32."""
        x = at_least_float32(x)
        if self.kind == "none":
            return x
        if self.training:
            self.follow(x)
        return self.standardised(x, speakers)


class LayerSum(nn.Module):
    """Learned weighted sum of the layers of an encoder (Yang et al. 2021, https://arxiv.org/abs/2105.01051).

    The weights are a softmax, all equal at the beginning.

    Args:
        layers: number L of states.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))

    @property
    def weights(self) -> Tensor:
        """Share of each layer, float [L], of sum 1."""
        return self.scores.softmax(0)

    def forward(self, states: Tensor | Iterable[Tensor]) -> Tensor:
        """Add states [B, L, ...], or L of [B, ...] one after the other, to [B, ...].

        An iterable is used up state by state, so that an encoder's states need not exist at once.
        """
        if isinstance(states, Tensor):
            return torch.einsum("l,bl...->b...", self.weights.to(states.dtype), states)
        parts = (weight * state for weight, state in zip(self.weights, states, strict=True))
        return reduce(torch.add, parts)


def attended_mean_std(
    x: Tensor, scores: Tensor, lengths: Tensor, time: int = 1, std_floor: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over each clip's frames, weighted by a softmax of scores in time.

    In float32, whatever autocast says: in half precision the variance would cancel.

    Args:
        x: [B, T, D], or [B, D, T].
        scores: of each feature in each frame, of the same shape, or of one feature for all.
        lengths: long [B].
        time: dimension of T.
        std_floor: that smaller standard deviations are lifted to.

    Returns:
        Two of [B, D].
    """
    x, scores = at_least_float32(x), at_least_float32(scores)
    outside = ~clip_mask(lengths, x.shape[time]).unsqueeze(3 - time)
    weights = scores.masked_fill(outside, -torch.inf).softmax(time)
    mean = (weights * x).sum(time, keepdim=True)
    variance = (weights * (x - mean).square()).sum(time)
    return mean.squeeze(time), variance.clamp_min(std_floor**2).sqrt()


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling (Okabe et al. 2018, https://arxiv.org/abs/1803.10963).

    Each feature has an attention of its own over time, which sees the frame and the clip's mean and deviation, as in
    ECAPA-TDNN (https://arxiv.org/abs/2005.07143).

    Args:
        size: features D of a frame.
        hidden: size of the attention.
    """

    def __init__(self, size: int, hidden: int = 128):
        super().__init__()
        self.frame = nn.Linear(size, hidden)
        self.clip = nn.Linear(2 * size, hidden, bias=False)
        self.score = nn.Linear(hidden, size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pool x [B, T, D] to [B, 2D]; what lies after a clip's end is ignored."""
        x = x.masked_fill(~clip_mask(lengths, x.shape[1])[..., None], 0)
        clip = torch.cat(masked_mean_std(at_least_float32(x), lengths), 1)
        # The clip's part of the sum is the same for all frames, so it is multiplied once.
        hidden = self.frame(x) + self.clip(clip)[:, None]
        return torch.cat(attended_mean_std(x, self.score(hidden.tanh()), lengths), 1)


class CosineHead(nn.Module):
    """Cosine between embedding and class, times a scale: what an angular margin is added to.

    Args:
        size: of the embedding.
        classes: number C.
        scale: of the logits.
    """

    def __init__(self, size: int, classes: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, size))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C] of x [B, E], in float32."""
        with torch.autocast(x.device.type, enabled=False):  # eight bits would blur the angles
            return self.scale * F.linear(F.normalize(x.float()), F.normalize(self.weight.float()))


class Prompts(nn.Module):
    """Learned vectors in front of the frames (Jia et al. 2022, https://arxiv.org/abs/2203.12119).

    They are random until ``adapting.Adapted.init_weights`` sets them.

    Args:
        count: vectors P.
        width: features D.
        depth: layers that get vectors of their own: 1 is the input alone, the number of layers all ("deep").
    """

    def __init__(self, count: int, width: int, depth: int = 1):
        super().__init__()
        self.count = count
        self.values = nn.Parameter(torch.randn(depth, count, width) * width**-0.5)

    def insert(self, number: int, x: Tensor) -> Tensor:
        """Return what goes into layer ``number`` (from 0): x [B, T, D] before the first, [B, P + T, D] after it."""
        if number >= len(self.values):
            return x
        own = self.values[number].to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([own, x if number == 0 else x[:, self.count :]], 1)
