"""Work on many items: how many cores there are, and a progress bar that shows on a terminal only."""

import os
from collections.abc import Iterable
from typing import Any

__all__ = ["cores", "progress_bar"]


def cores() -> int:
    """Return the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def progress_bar(
    items: Iterable[Any] | None, label: str, total: int | None, unit: str = "clip", shown: bool = True, done: int = 0
):
    """Return a tqdm bar over ``items``, or one to be moved by hand where they are None.

    Args:
        items: what to go through.
        label: what is being done.
        total: number of items; None where it is not known.
        unit: of one item.
        shown: False hides it; off a terminal it is always hidden.
        done: items that were done before.
    """
    from tqdm import tqdm

    disable = None if shown else True  # None: tqdm looks whether stderr is a terminal
    return tqdm(items, label, total, unit=unit, disable=disable, leave=False, initial=done, dynamic_ncols=True)
