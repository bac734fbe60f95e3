"""Seeding, the device, and the processes that torchrun has started."""

import ctypes
import itertools
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

from ser.errors import Interrupted, UserError, first_line

__all__ = [
    "PRECISIONS",
    "all_gather",
    "all_reduce",
    "as_memory_allows",
    "autocast",
    "barrier",
    "choose_int8_engine",
    "device",
    "exact_float32",
    "is_main",
    "keep_freed_memory",
    "peak_gib",
    "process_group",
    "processes",
    "rank",
    "seed_everything",
    "summed",
    "world_size",
]


T = TypeVar("T")
R = TypeVar("R")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Long: one process may have far more to do than another. torchrun ends the rest when one dies.
PATIENCE = timedelta(days=7)


def rank() -> int:
    """Return this process's rank, from torchrun's environment; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes work together; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Meeting:
    """Where the processes that torchrun has started meet: its own key-value store, which needs no process group."""

    def __init__(self) -> None:
        store, _, _ = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
        # The launcher's store keeps what earlier meetings of these processes, and those before a restart, have left.
        name = f"ser/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(numbers)}"
        self.store = torch.distributed.PrefixStore(name, store)
        self.meetings = 0

    def sum(self, values: Sequence[int]) -> list[int]:
        """Wait for every process, and return the sums of what each has brought."""
        self.meetings += 1
        name = f"meeting{self.meetings}"
        for place, value in enumerate(values):
            self.store.add(f"{name}/{place}", value)
        if self.store.add(name, 1) == world_size():
            self.store.set(f"{name}/complete", "")
        self.store.wait([f"{name}/complete"], PATIENCE)
        return [self.store.add(f"{name}/{place}", 0) for place in range(len(values))]

    def leave(self) -> None:
        """Say goodbye; the main process, which may keep the store, is the last to go."""
        if self.store.add("left", 1) == world_size():
            self.store.set("left/complete", "")
        if is_main():
            self.store.wait(["left/complete"], PATIENCE)


meeting: Meeting | None = None
numbers = itertools.count()  # of meetings, the same in every process: all come to each in the same order


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started, for the time of the body; alone, do nothing.

    For work that is shared without tensors: shares of an extraction may differ by hours, and a process group gives up
    after half an hour.
    """
    global meeting
    meeting = Meeting() if world_size() > 1 else None
    try:
        yield
        if meeting is not None:
            meeting.leave()
    finally:
        meeting = None


def barrier() -> None:
    """Wait until every process is here."""
    summed([])


def summed(values: Iterable[int]) -> list[int]:
    """Wait until every process is here, and return the sums of their whole numbers."""
    values = list(values)
    return values if meeting is None else meeting.sum(values)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of those that torchrun has started, which tensors are added up in; alone, do nothing."""
    if world_size() == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(device())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(minutes=30))
    try:
        yield
        torch.distributed.barrier()  # nobody leaves while another is still talking
    except Interrupted:  # as all are, together
        torch.distributed.barrier()
        raise
    finally:
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
        raise UserError(
            f"the processes of this run cannot reach each other ({first_line(error)}); if one of them has ended, see "
            f"its message; then go on with: just gpus={world_size()} resume RUN"
        ) from error


def is_main() -> bool:
    """Say whether this process writes files and shows progress."""
    return rank() == 0


def device() -> torch.device:
    """Return this process's device: its CUDA device where there is one, on which float32 is exact, else the CPU."""
    if torch.cuda.is_available():
        exact_float32()
        # It would plan each new length of a batch anew, and those of whole clips hardly ever repeat.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def exact_float32() -> None:
    """Let float32 be float32 on GPUs: torch's convolutions round to TF32 by default, as all does with SpeechBrain.

    Ten bits of mantissa are not enough for a clip to be answered alike in any batch; bf16 is there for speed.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


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
        torch.OutOfMemoryError: it does not hold a single item.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        try:
            made = work(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
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
