"""From clips to batches: reading, cropping, padding.

Shapes: B clips, N samples, T frames, D features, C classes.
"""

import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser import audio
from ser.augment import ClipRandom
from ser.errors import UserError, nearest
from ser.features import Features, FeatureStore
from ser.layers import SpeakerStatistics
from ser.metadata import Clip, Table
from ser.speakers import SpeakerPool

__all__ = [
    "Batch",
    "ClipReader",
    "Joined",
    "SoundSource",
    "Source",
    "check_labels",
    "joined",
    "one_hot",
    "open_source",
]

CACHE_BYTES = 4 << 30  # memory for clips already read, bytes


@dataclass
class Batch:
    """Clips that go through a model together.

    Attributes:
        inputs: float [B, N] (sound), [B, T, D] (frames), [B, L, T, D] (of several layers), zero after each clip's
            end, or [B, L, 2D] (statistics).
        lengths: long [B], in samples or frames; with statistics the frames that they are of.
        targets: float [B, C], each row a distribution.
        clips: the B rows of the metadata.
        speakers: statistics of the clips' speakers, for a model that normalises by them.
        neighbours: of the first clips, those that are only here for others to be mixed with.
        repeats: how often each clip came before in the epoch; none where each comes once.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    clips: list[Clip]
    speakers: SpeakerStatistics | None = None
    neighbours: int = 0
    repeats: Sequence[int] = ()

    @property
    def keys(self) -> list[str]:
        """What the random numbers of each clip depend on: its name, and which of its repeats it is."""
        return keys_of(self.clips, self.repeats)

    @property
    def names(self) -> list[str]:
        """Names of the clips."""
        return [clip.clip for clip in self.clips]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        speakers = None if self.speakers is None else self.speakers.to(device)
        inputs, lengths, targets = (value.to(device) for value in (self.inputs, self.lengths, self.targets))
        return Batch(inputs, lengths, targets, self.clips, speakers, self.neighbours, self.repeats)


def keys_of(clips: Sequence[Clip], repeats: Sequence[int]) -> list[str]:
    """Return the keys of random numbers, see ``Batch.keys``."""
    times = repeats or [0] * len(clips)
    return [f"{clip.clip}#{k}" if k else clip.clip for clip, k in zip(clips, times, strict=True)]


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches of whole inputs without time, such as statistics, as one."""
    known = [batch.speakers for batch in batches if batch.speakers is not None]
    speakers = None
    if known:
        columns = ([each.count for each in known], [each.mean for each in known], [each.std for each in known])
        speakers = SpeakerStatistics(*map(torch.cat, columns))
    return Batch(
        torch.cat([batch.inputs for batch in batches]),
        torch.cat([batch.lengths for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        [clip for batch in batches for clip in batch.clips],
        speakers,
    )


class Source(typing.Protocol):
    """Where inputs come from: a ``features.FeatureStore``, ``SoundSource``, ``Joined`` or ``robustness.Distorted``.

    Attributes:
        time_axis: dimension of time, counted from the end; None for statistics.
        made_with: fingerprint of the encoder's weights that made the inputs; empty where none did.
    """

    time_axis: int | None
    made_with: dict[str, Any]

    def length(self, clip: Clip) -> int:
        """Return the length of a clip's input without reading it."""

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's input: [N], [T, D], [L, T, D] or [L, 2D]."""


class SoundSource:
    """Reads sound files as float [N] at 16 kHz."""

    time_axis: int | None = -1

    def __init__(self, table: Table):
        self.table = table
        self.made_with: dict[str, Any] = {}

    def length(self, clip: Clip) -> int:
        """Return a clip's samples at 16 kHz, from the metadata."""
        return round(clip.seconds * audio.SAMPLE_RATE)

    def read(self, clip: Clip) -> Tensor:
        """Decode a clip's sound file."""
        return torch.from_numpy(audio.read(self.table.sound_path(clip)))


class Joined:
    """Sources of several corpora as one.

    Args:
        sources: of each corpus.

    Raises:
        UserError: features that were made with different weights.
    """

    def __init__(self, sources: Mapping[str, Source]):
        self.sources = sources
        first, *others = sources.values()
        self.time_axis, self.made_with = first.time_axis, first.made_with
        if any(other.made_with != first.made_with for other in others):
            raise UserError(
                f"features of {' and '.join(sources)}: made with different weights of the encoder; extract one of them "
                "again, in a new store or after removing the old one"
            )

    def length(self, clip: Clip) -> int:
        """Return the length of a clip's input without reading it."""
        return self.sources[clip.corpus].length(clip)

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's input."""
        return self.sources[clip.corpus].read(clip)


def open_source(features: Features, table: Table) -> Source:
    """Return where the inputs of a corpus's clips come from: the feature store, or sound.

    Raises:
        UserError: as ``features.FeatureStore``.
    """
    if not features.cached:
        return SoundSource(table)
    store = FeatureStore(table.corpus, features)
    store.check_sources(table)
    return store


class ClipReader:
    """Reads inputs and keeps them in memory for the next epoch, in the precision they are stored in.

    Args:
        source: see ``Source``.
        labels: the model's classes, in order.
        soft_target: clip -> distribution over the classes [C], or None for one-hot of its emotion.
        enrolled: clips from which batches get the statistics of their clips' speakers; None for none.
        limit: of these clips to use a speaker; None for all.
        skip: leave a training clip that cannot be read out, with a line on stderr, instead of stopping.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[str],
        soft_target: Callable[[Clip], list[float] | None] = lambda clip: None,
        enrolled: Sequence[Clip] | None = None,
        limit: int | None = None,
        skip: bool = False,
    ):
        self.skip = skip
        self.unreadable: set[str] = set()
        self.source = source
        self.labels = tuple(labels)
        self.soft_target = soft_target
        self.limit = limit
        self.pool = None if enrolled is None else SpeakerPool(enrolled, self.read_or_skip, source.time_axis, limit)
        self.kept: dict[str, Tensor] = {}
        self.room = CACHE_BYTES

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's whole input: [N], [T, D], [L, T, D] or [L, 2D]."""
        value = self.kept.get(clip.clip)
        if value is None:
            value = self.source.read(clip)
            size = value.numel() * value.element_size()
            if size <= self.room:
                self.kept[clip.clip] = value
                self.room -= size
        return value

    def read_or_skip(self, clip: Clip) -> Tensor | None:
        """Return a clip's whole input; None where it cannot be read and ``skip`` says to go on, which is said once."""
        try:
            return self.read(clip)
        except UserError as error:
            if not self.skip:
                raise
            if clip.clip not in self.unreadable:
                print(f"skipped: {error}", file=sys.stderr)
            self.unreadable.add(clip.clip)
            return None

    def readable(self, clips: Sequence[Clip]) -> list[Clip]:
        """Return the clips that can be read; without ``skip`` one that cannot is an error where it is read."""
        return [clip for clip in clips if self.read_or_skip(clip) is not None] if self.skip else list(clips)

    def crops(
        self, clips: Sequence[Clip], length: int | None, seed: int, epoch: int, repeats: Sequence[int] = ()
    ) -> Batch:
        """Return a training batch of random crops, all of ``length``; a shorter clip is repeated until it is long.

        No padding enters, so batch statistics see speech alone. Where a crop begins depends on
        (seed, epoch, clip, repeat) only. Without a length, clips stay whole, as do statistics, which have no time.
        """
        axis, draw_key = self.source.time_axis, f"{seed}/{epoch}/"
        if axis is None or length is None:
            return self.whole(clips, draw_key)
        starts = ClipRandom(seed, epoch, -1, keys_of(clips, repeats)).uniform().tolist()
        inputs = []
        for clip, start in zip(clips, starts, strict=True):
            value = self.read(clip)
            size = value.shape[axis]
            if size < length:
                value = torch.cat([value] * -(-length // size), axis)
                size = value.shape[axis]
            inputs.append(value.narrow(axis, int(start * (size - length + 1)), length).float())
        return self.batch(torch.stack(inputs), torch.full((len(clips),), length), clips, draw_key)

    def whole(self, clips: Sequence[Clip], draw_key: str = "") -> Batch:
        """Return a batch of whole clips, padded with zeros to the longest; ``draw_key`` as of ``SpeakerPool.of``."""
        inputs = [self.read(clip).float() for clip in clips]
        axis = self.source.time_axis
        if axis is None:
            return self.batch(
                torch.stack(inputs), torch.tensor([self.source.length(clip) for clip in clips]), clips, draw_key
            )
        lengths = torch.tensor([value.shape[axis] for value in inputs])
        # Time goes to the front, where padding works, and back to its place in the batch.
        padded = pad_sequence([value.movedim(axis, 0) for value in inputs], batch_first=True)
        return self.batch(padded.movedim(1, axis), lengths, clips, draw_key)

    def batch(self, inputs: Tensor, lengths: Tensor, clips: Sequence[Clip], draw_key: str) -> Batch:
        """Add targets and what is known of the speakers."""
        speakers = None if self.pool is None else self.pool.of(clips, draw_key)
        return Batch(inputs, lengths, self.targets(clips), list(clips), speakers)

    def targets(self, clips: Sequence[Clip]) -> Tensor:
        """Return targets [B, C]: one-hot or soft; a clip whose emotion the model does not know gets zeros."""
        targets = one_hot(clips, self.labels)
        for row, clip in enumerate(clips):
            if (soft := self.soft_target(clip)) is not None:
                targets[row] = torch.tensor(soft)
        return targets


def one_hot(clips: Sequence[Clip], labels: Sequence[str]) -> Tensor:
    """Return float [B, C], one-hot; all zeros for an emotion outside ``labels``."""
    targets = torch.zeros(len(clips), len(labels))
    for row, clip in enumerate(clips):
        if clip.emotion in labels:
            targets[row, labels.index(clip.emotion)] = 1
    return targets


def check_labels(clips: Sequence[Clip], labels: Sequence[str]) -> None:
    """Raise a UserError for a clip whose emotion a model does not know; a clip without a label is soft."""
    for clip in clips:
        if clip.emotion and clip.emotion not in labels:
            raise UserError(
                f"clip '{clip.clip}' is labelled '{clip.emotion}', which the model does not know"
                f"{nearest(clip.emotion, labels)}; score it across label sets with: just cross RUN {clip.corpus}"
            )
