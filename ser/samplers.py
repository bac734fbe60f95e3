"""Which clips go together, and in which order."""

from collections.abc import Sequence

import numpy as np

__all__ = ["bucketed", "shuffled"]

SIMILAR = 0.95  # of the longest clip's length, the least that shares a batch with it
ALIKE = 8  # batches whose clips are sorted by length together


def shuffled(
    count: int,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None = None,
    shares: Sequence[float] | None = None,
) -> list[np.ndarray]:
    """Return the batches of an epoch as index arrays, in an order that depends on (seed, epoch) only.

    Sizes differ by at most one and are at least ``batch_size`` where there are that many clips, so that no
    small rest is left for batch norm to choke on.

    Args:
        count: clips.
        batch_size: clips of a batch.
        seed, epoch: of the order.
        lengths: of the clips, so that those of a batch are alike and little is padded.
        shares: how often to draw each clip, of sum 1; without them each comes once. The k-th time that a clip comes
            again in the epoch its index is higher by k times ``count``.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(count) if shares is None else numbered(random.choice(count, count, p=shares), count)
    batches = np.array_split(order, max(1, count // batch_size))
    if lengths is None:
        return batches
    sizes = np.asarray(lengths)
    mixed = []
    for start in range(0, len(batches), ALIKE):
        some = batches[start : start + ALIKE]
        rows = np.concatenate(some)
        rows = rows[np.argsort(sizes[rows % count], kind="stable")]
        mixed += np.split(rows, np.cumsum([len(batch) for batch in some])[:-1])
    return [mixed[place] for place in random.permutation(len(mixed))]


def numbered(order: np.ndarray, count: int) -> np.ndarray:
    """Return indices below ``count`` with those that come again told apart, see ``shuffled``."""
    places = np.argsort(order, kind="stable")
    grouped = order[places]
    out = order.copy()
    out[places] += count * (np.arange(len(order)) - np.searchsorted(grouped, grouped))
    return out


def bucketed(lengths: Sequence[int], budget: int, similar: float = SIMILAR) -> list[list[int]]:
    """Return batches of similar length, longest first, each of at most ``budget`` padded samples or frames.

    None holds clips shorter than ``similar`` of its longest, so that padding is little even where clips are few.
    A single clip longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= budget and lengths[index] >= similar * longest:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
