"""Seeding, the device, and the process group of torchrun."""

import os
import random

import numpy as np
import torch

__all__ = ["device", "is_main", "rank", "seed_everything", "world_size"]


def rank() -> int:
    """Return this process's rank, from torchrun's environment; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
