"""Seeding, the device, and the processes that torchrun has started."""

import ctypes
import os
import random
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ser.errors import Interrupted, UserError, first_line, full_memory

__all__ = [
    "A_WEEK",
    "PRECISIONS",
    "all_gather",
    "all_reduce",
    "as_memory_allows",
    "autocast",
    "barrier",
    "choose_int8_engine",
    "device",
    "is_main",
    "keep_freed_memory",
    "peak_gib",
    "process_group",
    "rank",
    "seed_everything",
    "settle_cuda",
    "summed",
    "world_size",
]


T = TypeVar("T")
R = TypeVar("R")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# How long one process waits for the others; torchrun ends the rest when one dies.
HALF_AN_HOUR, A_WEEK = timedelta(minutes=30), timedelta(days=7)


class PeerLost(UserError):
    """Another process cannot be reached any more."""


def rank() -> int:
    """Return this process's rank, from torchrun's environment; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes work together; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait until every process is here."""
    all_reduce(torch.zeros(1))


def summed(values: Iterable[int]) -> list[int]:
    """Wait until every process is here, and return the sums of their whole numbers."""
    return all_reduce(torch.tensor(list(values))).tolist()


@contextmanager
def process_group(patience: timedelta = HALF_AN_HOUR) -> Iterator[None]:
    """Join the process group of those that torchrun has started, which tensors are added up in; alone, do nothing.

    Args:
        patience: how long to wait for another process; shares of an extraction may differ by hours.
    """
    if world_size() == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(device())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=patience)
    try:
        yield
    except Interrupted:  # as all are, together
        leave()
        raise
    except PeerLost:
        torch.distributed.destroy_process_group()
        raise
    leave()  # not where this process failed: the others are to wait for its message, and its end closes all


def leave() -> None:
    """Leave the process group when nobody is talking any more."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of every process's tensor; alone, the tensor itself.

    Raises:
        UserError: another process has died.
    """
    if world_size() > 1:
        with together():
            torch.distributed.all_reduce(values)
    return values


def all_gather(value: T) -> list[T]:
    """Return every process's value, in the order of ranks.

    Raises:
        UserError: another process has died.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with together():
        torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """Say in one line that another process has died in the middle of an exchange."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            f"the processes of this run cannot reach each other ({first_line(error)}); if one of them has ended, see "
            "its message; the same command goes on"
        ) from error


def is_main() -> bool:
    """Say whether this process writes files and shows progress."""
    return rank() == 0


def device() -> torch.device:
    """Return this process's device: its CUDA device where there is one, on which float32 is exact, else the CPU."""
    if torch.cuda.is_available():
        settle_cuda()
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def settle_cuda() -> None:
    """Let float32 be float32 on GPUs: torch's convolutions round to TF32 by default, as all does with SpeechBrain.

    Ten bits of mantissa are not enough for a clip to be answered alike in any batch; bf16 is there for speed. cuDNN's
    attention is off: it plans each new length of a batch anew, and those of whole clips hardly ever repeat.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_int8_engine() -> None:
    """Let int8 be computed where torch is built for it and has chosen no engine, as on Apple silicon."""
    quantized = torch.backends.quantized
    engines = [engine for engine in quantized.supported_engines if engine != "none"]
    if quantized.engine == "none" and engines:
        quantized.engine = engines[0]


def as_memory_allows(
    batches: Iterable[Sequence[T]], work: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R]]:
    """Yield each batch and what ``work`` makes of it; one that the device's memory does not hold is halved.

    Raises:
        RuntimeError: it does not hold a single item.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        try:
            made = work(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not full_memory(error):
                raise
            half = len(batch) // 2
            waiting.extendleft((batch[half:], batch[:half]))
            made = None
        if made is None:  # here, where the error no longer holds what was computed
            torch.cuda.empty_cache()
        else:
            yield batch, made


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which torch computes in ``bf16`` or ``fp16`` where it may; ``float32`` changes nothing."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


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


def peak_gib() -> float:
    """Return the peak memory so far, GiB: what tensors took of the GPU, or on a CPU all of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if not status.is_file():  # macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # On Linux getrusage counts what the parent had before this process became another program.
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20
