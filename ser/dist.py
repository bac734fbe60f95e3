"""Seeding, the device, and the process group of torchrun."""

import ctypes
import os
import random

import numpy as np
import torch

__all__ = ["device", "is_main", "keep_freed_memory", "rank", "seed_everything"]


def rank() -> int:
    """Return this process's rank, from torchrun's environment; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Say whether this process writes files and shows progress."""
    return rank() == 0


def device() -> torch.device:
    """Return this process's device: its CUDA device where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of giving it back to the system.

    On a CPU, page faults on tensors that every step allocates anew cost about a fifth of its time.
    Does nothing where the C library has no ``mallopt``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes: its top is kept
