"""From clips to batches: reading, cropping, padding, and which clips go together.

Shapes: B clips, N samples, T frames, D features, C classes.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ser import audio
from ser.augment import ClipRandom
from ser.errors import UserError, nearest
from ser.features import Features, FeatureStore
from ser.metadata import Clip, Table

__all__ = [
    "Batch",
    "ClipReader",
    "SoundSource",
    "Source",
    "bucketed",
    "check_labels",
    "one_hot",
    "open_source",
    "prefetch",
    "shuffled",
]

CACHE_BYTES = 4 << 30  # memory for clips already read, bytes


@dataclass
class Batch:
    """Clips that go through a model together.

    Attributes:
        inputs: float [B, N] (sound) or [B, T, D] (features), zero after each clip's end.
        lengths: long [B], in samples or frames.
        targets: float [B, C], each row a distribution.
        clips: the B rows of the metadata.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    clips: list[Clip]

    @property
    def names(self) -> list[str]:
        """Names of the clips."""
        return [clip.clip for clip in self.clips]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        return Batch(self.inputs.to(device), self.lengths.to(device), self.targets.to(device), self.clips)


class Source(Protocol):
    """Where inputs come from: a ``features.FeatureStore`` or a ``SoundSource``."""

    def length(self, clip: Clip) -> int:
        """Return the length of a clip's input without reading it."""

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's input: [T, D] or [N]."""


class SoundSource:
    """Reads sound files as float [N] at 16 kHz."""

    def __init__(self, table: Table):
        self.table = table

    def length(self, clip: Clip) -> int:
        """Return a clip's samples at 16 kHz, from the metadata."""
        return round(clip.seconds * audio.SAMPLE_RATE)

    def read(self, clip: Clip) -> Tensor:
        """Decode a clip's sound file."""
        return torch.from_numpy(audio.read(self.table.sound(clip)))


def open_source(features: Features, table: Table) -> Source:
    """Return where the inputs of a corpus's clips come from: the feature store, or sound.

    Raises:
        UserError: as ``features.FeatureStore``.
    """
    return FeatureStore(table.corpus, features) if features.cached else SoundSource(table)


class ClipReader:
    """Reads inputs and keeps them in memory for the next epoch, in the precision they are stored in.

    Args:
        source: a ``FeatureStore`` or a ``SoundSource``.
        labels: the model's classes, in order.
        soft_target: clip -> distribution over the classes [C], or None for one-hot of its emotion.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[str],
        soft_target: Callable[[Clip], list[float] | None] = lambda clip: None,
    ):
        self.source = source
        self.labels = tuple(labels)
        self.soft_target = soft_target
        self.kept: dict[str, Tensor] = {}
        self.room = CACHE_BYTES

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's whole input, float [T, D] or [N]."""
        value = self.kept.get(clip.clip)
        if value is None:
            value = self.source.read(clip)
            size = value.numel() * value.element_size()
            if size <= self.room:
                self.kept[clip.clip] = value
                self.room -= size
        return value

    def crops(self, clips: Sequence[Clip], length: int, seed: int, epoch: int) -> Batch:
        """Return a batch of random crops, all of ``length``; a shorter clip is repeated until it is long enough.

        No padding enters, so batch statistics see speech alone. Where a crop begins depends on
        (seed, epoch, clip) only.
        """
        starts = ClipRandom(seed, epoch, -1, [clip.clip for clip in clips]).uniform().tolist()
        inputs = []
        for clip, start in zip(clips, starts, strict=True):
            value = self.read(clip)
            if len(value) < length:
                repeats = -(-length // len(value))
                value = value.repeat(repeats, *[1] * (value.dim() - 1))
            first = int(start * (len(value) - length + 1))
            inputs.append(value[first : first + length].float())
        lengths = torch.full((len(clips),), length)
        return Batch(torch.stack(inputs), lengths, self.targets(clips), list(clips))

    def whole(self, clips: Sequence[Clip]) -> Batch:
        """Return a batch of whole clips, padded with zeros to the longest."""
        inputs = [self.read(clip).float() for clip in clips]
        lengths = torch.tensor([len(value) for value in inputs])
        padded = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        return Batch(padded, lengths, self.targets(clips), list(clips))

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


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of an epoch as index arrays, in an order that depends on (seed, epoch) only.

    Sizes differ by at most one and are at least ``batch_size`` where there are that many clips, so that no
    small rest is left for batch norm to choke on.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return np.array_split(order, max(1, count // batch_size))


def bucketed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return batches of similar length, longest first, each of at most ``budget`` padded samples or frames.

    A single clip longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield ``items`` while a thread makes the next ones; an error of the thread is raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def give(message: tuple[str, object]) -> bool:
        while not stop.is_set():
            try:
                ready.put(message, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not give(("item", item)):
                    return
            give(("end", None))
        except BaseException as error:
            give(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
