"""Trainings in processes of their own, several at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ser.errors import UserError
from ser.files import PROJECT
from ser.interrupts import stop_requests
from ser.progress import cores

__all__ = ["Work", "needs_processes", "train_apart"]

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Work:
    """A training.

    Attributes:
        name: for messages.
        overrides: of the experiment.
        log: file for what it prints.
    """

    name: str
    overrides: Sequence[str]
    log: Path


def needs_processes(jobs: int, gpus: int) -> bool:
    """Say whether training needs processes of its own.

    Raises:
        UserError: less than one job or GPU.
    """
    if jobs < 1 or gpus < 1:
        raise UserError(f"jobs is {jobs} and gpus {gpus}; expected 1 or more")
    return jobs > 1 or gpus > 1


def train_apart(experiment: str, works: Sequence[Work], jobs: int, gpus: int) -> int:
    """Train in processes of their own, ``jobs`` of them at once; return 0, or the status of a signal.

    A signal is handed on, and waited for until all is saved.

    Args:
        experiment: as of ``config.load``.
        works: what to train.
        jobs: trainings at the same time.
        gpus: processes that share each.

    Raises:
        UserError: a training failed; the others that were running have ended.
    """
    waiting = list(works)
    running: dict[int, tuple[Work, subprocess.Popen]] = {}  # by slot
    failed: list[tuple[Work, int]] = []
    with stop_requests() as stop:
        while running or (waiting and not stop.signal and not failed):
            while waiting and len(running) < jobs and not stop.signal and not failed:
                work, slot = waiting.pop(0), min(set(range(jobs)) - set(running))
                print(f"{work.name}: {work.log}", flush=True)
                running[slot] = work, start(experiment, work, gpus, slot, jobs)
            time.sleep(POLL_SECONDS)
            if stop.signal:
                for _, process in running.values():
                    # torchrun hands SIGTERM on to its processes, and knows no SIGUSR1.
                    process.send_signal(signal.SIGTERM if gpus > 1 else stop.signal)
                for _, process in running.values():
                    process.wait()
                names = ", ".join(work.name for work, _ in running.values())
                print(f"stopped and saved: {names}; the same command goes on")
                return stop.status
            for slot, (work, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode:
                        failed.append((work, process.returncode))
                    else:
                        print(f"{work.name}: trained", flush=True)
    for work, status in failed:
        last = work.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{work.name} ended with status {status}: {''.join(last)[:200]} (see {work.log})")
    return 0


def start(experiment: str, work: Work, gpus: int, slot: int, jobs: int) -> subprocess.Popen:
    """Start a training; ``slot`` of ``jobs`` has GPUs and cores of its own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // (jobs * gpus)))} | os.environ
    if (count := torch.cuda.device_count()) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str((slot * gpus + place) % count) for place in range(gpus))
    command = [sys.executable, *launch, str(PROJECT / "tools/train.py"), experiment, *work.overrides]
    work.log.parent.mkdir(parents=True, exist_ok=True)
    with work.log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
