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

__all__ = ["Augmentation", "ClipRandom", "Operation", "check_range"]


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

    def integers(self, count: int) -> list[int]:
        """Return a whole number from 0 to below ``count`` for each clip."""
        return [int(g.integers(count)) for g in self.generators]

    def normal(self, size: int, where: Tensor | None = None) -> Tensor:
        """Return float32 [B, size], standard normal; zero for the clips that are not asked for, bool [B]."""
        wanted = [True] * len(self.generators) if where is None else where.tolist()
        out = torch.zeros(len(wanted), size)
        for row, (generator, draw) in enumerate(zip(self.generators, wanted, strict=True)):
            if draw:
                generator.standard_normal(out=out[row].numpy(), dtype=np.float32)
        return out

    def beta(self, alpha: float) -> Tensor:
        """Return float32 [B] of the symmetric Beta(alpha, alpha)."""
        return torch.tensor([g.beta(alpha, alpha) for g in self.generators], dtype=torch.float32)


class Operation:
    """What all operations share: a probability, and the kind of input that they change."""

    kind = ""  # sound, features, or across clips: mix_sound, mix_features
    __call__: Callable

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise UserError(f"{type(self).__name__}: probability is {probability}; expected a value from 0 to 1")
        self.probability = probability

    def chosen(self, random: ClipRandom) -> Tensor:
        """Return bool [B]: which clips to change."""
        return random.uniform() < self.probability


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
