"""What is known of a speaker without any label: mean and spread of features over clips of theirs that are at hand.

Standardising by it takes out who speaks and how, and leaves how it differs from their usual way. It uses the
test speakers' unlabelled clips, so every figure made with it carries the tag ``speaker-normalised``.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ser.layers import SpeakerStatistics
from ser.metadata import Clip

__all__ = ["EmbeddingMemory", "SpeakerPool"]

FEW = (1, 2, 5, 10, 20, None)  # clips of a speaker that training pretends to have; None for all


class SpeakerPool:
    """Clips at hand, by speaker.

    Args:
        clips: whose labels are never looked at. A clip without a speaker is a speaker of its own.
        read: clip -> features [T, D], [L, T, D], [L, 2D] or [E]; None for a clip that is not at hand yet.
        time_axis: dimension of time in them, None where there is none.
        limit: clips of a speaker to use, the clip itself among them; None for all.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: Callable[[Clip], Tensor | None],
        time_axis: int | None,
        limit: int | None = None,
    ):
        self.read, self.time_axis, self.limit = read, time_axis, limit
        self.members: dict[str, list[Clip]] = {}
        for clip in clips:
            self.members.setdefault(key(clip), []).append(clip)
        self.sums: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.whole: dict[str, tuple[float, Tensor, Tensor]] = {}

    def of(self, clips: Sequence[Clip], draw_key: str = "") -> SpeakerStatistics:
        """Return the statistics of each clip's speaker.

        Args:
            clips: of a batch.
            draw_key: in training, what a draw of ``FEW`` clips depends on besides the clip: the model learns to
                live with few of them. Empty: no draw.
        """
        rows = [self.statistics(clip, draw_key) for clip in clips]
        count = torch.tensor([row[0] for row in rows])
        return SpeakerStatistics(count, torch.stack([row[1] for row in rows]), torch.stack([row[2] for row in rows]))

    def statistics(self, clip: Clip, draw_key: str = "") -> tuple[float, Tensor, Tensor]:
        """Return count, mean and standard deviation for one clip's speaker."""
        draw = random.Random(draw_key + clip.clip)
        limit = draw.choice(FEW) if draw_key else self.limit
        name, members = key(clip), self.members.get(key(clip), [])
        others = [member for member in members if member.clip != clip.clip]
        if len(others) < len(members) and (limit is None or limit >= len(members)):
            if name not in self.whole:
                self.whole[name] = self.moments(members)
            return self.whole[name]
        wanted = len(others) if limit is None else min(limit - 1, len(others))
        return self.moments([clip, *draw.sample(others, wanted)])

    def moments(self, clips: Sequence[Clip]) -> tuple[float, Tensor, Tensor]:
        """Return count, mean and standard deviation of some clips; sums are in double precision."""
        known = [part for part in map(self.sum, clips) if part is not None]
        items = sum(part[0] for part in known)
        mean = torch.stack([part[1] for part in known]).sum(0) / items
        squares = torch.stack([part[2] for part in known]).sum(0) / items
        return float(len(known)), mean.float(), (squares - mean.square()).clamp_min(0).sqrt().float()

    def sum(self, clip: Clip) -> tuple[int, Tensor, Tensor] | None:
        """Return the number of a clip's items, their sum and the sum of their squares."""
        if clip.clip in self.sums:
            return self.sums[clip.clip]
        if (value := self.read(clip)) is None:
            return None
        value = value.double()
        if self.time_axis is None:
            return 1, value, value.square()
        value = value.movedim(self.time_axis, 0)
        sums = len(value), value.sum(0), value.square().sum(0)
        if value.dim() <= 2:  # of many layers they would fill the memory
            self.sums[clip.clip] = sums
        return sums


class EmbeddingMemory:
    """The newest embedding of each training clip, for statistics of speakers while the embeddings still change.

    Args:
        clips: of the training part.
    """

    def __init__(self, clips: Sequence[Clip]):
        self.values: dict[str, Tensor] = {}
        self.pool = SpeakerPool(clips, lambda clip: self.values.get(clip.clip), None)

    def of(self, clips: Sequence[Clip], embeddings: Tensor, draw_key: str) -> SpeakerStatistics:
        """Take a batch's embeddings [B, E] in, and return what is known of its speakers, on their device."""
        for clip, value in zip(clips, embeddings.detach().float().cpu(), strict=True):
            self.values[clip.clip] = value
        self.pool.whole.clear()
        return self.pool.of(clips, draw_key).to(embeddings.device)


def key(clip: Clip) -> str:
    """Return what tells speakers apart: an unknown one is told by the clip."""
    return clip.speaker or f"clip {clip.clip}"
