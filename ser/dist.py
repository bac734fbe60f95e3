"""Seeding, the device, and the processes that torchrun has started."""

import ctypes
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch

__all__ = [
    "barrier",
    "device",
    "is_main",
    "keep_freed_memory",
    "processes",
    "rank",
    "seed_everything",
    "summed",
    "world_size",
]


def rank() -> int:
    """Return this process's rank, from torchrun's environment; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes work together; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started, for the time of the body; alone, do nothing."""
    if world_size() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Long: one rank may have far more to do than another. torchrun ends the rest when one dies.
    torch.distributed.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(torch.zeros(1))


def summed(values: Iterable[int]) -> list[int]:
    """Return the sums of whole numbers over all processes."""
    total = torch.tensor(list(values))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total.tolist()


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
