"""Augmentation in training: what all operations share; ``augment_sound`` and ``augment_features`` hold them.

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

__all__ = ["Augmentation", "ClipRandom", "Operation", "check_range", "silent_after"]


class ClipRandom:
    """Random numbers for one operation on one batch, each clip's from a hash of its own name.

    Args:
        seed: of the run.
        epoch: counted from 0.
        operation: place of the operation in the list.
        clips: names of the clips of the batch.
    """

    WORDS = 8  # numbers that one hash holds

    def __init__(self, seed: int, epoch: int, operation: int, clips: Sequence[str]):
        self.keys = [f"{seed}/{epoch}/{operation}/{clip}" for clip in clips]
        self.drawn = 0
        self.block = np.empty((0, self.WORDS), np.uint64)

    def words(self) -> np.ndarray:
        """Return the next random uint64 of each clip [B]."""
        number, place = divmod(self.drawn, self.WORDS)
        if place == 0:
            digests = (hashlib.blake2b(f"{key}/{number}".encode(), digest_size=8 * self.WORDS) for key in self.keys)
            self.block = np.frombuffer(b"".join(d.digest() for d in digests), "<u8").reshape(-1, self.WORDS)
        self.drawn += 1
        return self.block[:, place]

    def shares(self) -> np.ndarray:
        """Return float64 [B], uniform in [0, 1)."""
        return (self.words() >> np.uint64(11)) * 2.0**-53

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 [B], uniform in [low, high)."""
        values = (low + (high - low) * self.shares()).astype(np.float32)
        below = np.nextafter(np.float32(high), np.float32(low))  # rounding to float32 may reach high itself
        return torch.from_numpy(values if low == high else np.minimum(values, below))

    def integers(self, count: int) -> list[int]:
        """Return a whole number from 0 to below ``count`` for each clip."""
        return (self.shares() * count).astype(int).tolist()

    def normal(self, size: int, where: Tensor | None = None) -> Tensor:
        """Return float32 [B, size], standard normal; zero for the clips that are not asked for, bool [B]."""
        wanted = [True] * len(self.keys) if where is None else where.tolist()
        # In sixteens, which torch fills from left to right: then a clip's numbers are the same for any size.
        out = torch.zeros(len(wanted), -(-size // 16) * 16)
        for row, (word, draw) in enumerate(zip(self.words().tolist(), wanted, strict=True)):
            if draw:
                torch.randn(out.shape[1], generator=torch.Generator().manual_seed(word >> 1), out=out[row])
        return out[:, :size]

    def beta(self, alpha: float) -> Tensor:
        """Return float32 [B] of the symmetric Beta(alpha, alpha)."""
        generators = [np.random.Generator(np.random.Philox(key=word)) for word in self.words().tolist()]
        return torch.tensor([generator.beta(alpha, alpha) for generator in generators], dtype=torch.float32)


class Operation:
    """What all operations share: a probability, and the kind of input that they change.

    Raises:
        UserError: a probability outside 0 to 1.
    """

    kind = ""  # sound, features, or across clips: mix_sound, mix_features
    __call__: Callable

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise UserError(f"{type(self).__name__}: probability is {probability}; expected a value from 0 to 1")
        self.probability = probability

    def ready(self) -> None:
        """Raise a UserError where something is missing that training needs; a trained run needs it no more."""

    def chosen(self, random: ClipRandom) -> Tensor:
        """Return bool [B]: which clips to change."""
        return random.uniform() < self.probability


class Augmentation:
    """The operations of a run, applied in the order of the list within each kind.

    Args:
        operations: objects of ``augment_*``; an empty list changes nothing.

    Raises:
        UserError: what is no operation stands among them.
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

    @property
    def mixing(self) -> list[Operation]:
        """The operations that mix clips of a batch; each one mixes a clip with its neighbour."""
        return [operation for operation in self.operations if operation.kind.startswith("mix_")]

    def across(
        self, kind: str, x: Tensor, lengths: Tensor, targets: Tensor, seed: int, epoch: int, clips: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Apply the operations that mix clips, of ``mix_sound`` or ``mix_features``; return inputs and targets."""
        for place, operation in self.of_kind(kind):
            x, targets = operation(x, lengths, targets, ClipRandom(seed, epoch, place, clips))
        return x, targets


def check_range(name: str, what: str, low: float, high: float) -> tuple[float, float]:
    """Return (low, high), or raise a UserError where they are the wrong way round."""
    if low > high:
        raise UserError(f"{name}: {what}_low is {low} and {what}_high is {high}; expected low <= high")
    return low, high


def silent_after(sound: Tensor, lengths: Tensor) -> Tensor:
    """Return sound [B, N] with zeros after each clip's end; training crops mostly end together and stay as they are."""
    if int(lengths.min()) >= sound.shape[1]:
        return sound
    return sound.masked_fill(~clip_mask(lengths, sound.shape[1]), 0)
