"""What is known of a speaker without any label: mean and spread of features over clips of theirs that are at hand.

Standardising by it takes out who speaks and how, and leaves how it differs from their usual way. It uses the
test speakers' unlabelled clips, so every figure made with it carries the tag ``speaker-normalised``.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ser.layers import Speakers
from ser.metadata import Clip

__all__ = ["SpeakerPool"]


class SpeakerPool:
    """Clips at hand, by speaker.

    Args:
        clips: whose labels are never looked at. A clip without a speaker is a speaker of its own.
        read: clip -> features [T, D] or [L, 2D].
        time_axis: dimension of time in them, None where there is none.
        limit: clips of a speaker to use, the clip itself among them; None for all.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: Callable[[Clip], Tensor],
        time_axis: int | None,
        limit: int | None = None,
    ):
        self.read, self.time_axis, self.limit = read, time_axis, limit
        self.members: dict[str, list[Clip]] = {}
        for clip in clips:
            self.members.setdefault(key(clip), []).append(clip)
        self.whole: dict[str, tuple[float, Tensor, Tensor]] = {}

    def of(self, clips: Sequence[Clip]) -> Speakers:
        """Return the statistics of each clip's speaker."""
        rows = [self.statistics(clip) for clip in clips]
        count = torch.tensor([row[0] for row in rows])
        return Speakers(count, torch.stack([row[1] for row in rows]), torch.stack([row[2] for row in rows]))

    def statistics(self, clip: Clip) -> tuple[float, Tensor, Tensor]:
        """Return count, mean and standard deviation for one clip's speaker."""
        name, members = key(clip), self.members.get(key(clip), [])
        others = [member for member in members if member.clip != clip.clip]
        if len(others) < len(members) and (self.limit is None or self.limit >= len(members)):
            if name not in self.whole:
                self.whole[name] = self.moments(members)
            return self.whole[name]
        wanted = len(others) if self.limit is None else min(self.limit - 1, len(others))
        return self.moments([clip, *random.Random(clip.clip).sample(others, wanted)])

    def moments(self, clips: Sequence[Clip]) -> tuple[float, Tensor, Tensor]:
        """Return count, mean and standard deviation of some clips; sums are in double precision."""
        items, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for clip in clips:
            value = self.read(clip).double()
            value = value[None] if self.time_axis is None else value.movedim(self.time_axis, 0)
            items += len(value)
            total = total + value.sum(0)
            squares = squares + value.square().sum(0)
        mean = total / items
        return float(len(clips)), mean.float(), (squares / items - mean.square()).clamp_min(0).sqrt().float()


def key(clip: Clip) -> str:
    """Return what tells speakers apart: an unknown one is told by the clip."""
    return clip.speaker or f"clip {clip.clip}"
