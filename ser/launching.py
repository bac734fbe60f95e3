"""Trainings in processes of their own, several at once, and processes that share a training."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from ser.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USER, Interrupted, UserError
from ser.files import PROJECT, cannot_write
from ser.interrupts import stop_requests
from ser.progress import cores

__all__ = ["Job", "needs_processes", "run_in_processes", "train_in_processes"]

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
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
        UserError: less than one job or GPU, or more GPUs than there are.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; expected 1 or more")
    check_processes(gpus)
    return jobs > 1 or gpus > 1


def check_processes(number: int) -> None:
    """Raise a UserError for a number of processes that cannot share the work here."""
    if number < 1:
        raise UserError(f"gpus is {number}; expected 1 or more")
    if torch.cuda.is_available() and number > torch.cuda.device_count():
        raise UserError(f"gpus is {number}, but {torch.cuda.device_count()} can be seen; each process needs its own")


def run_in_processes(number: str, command: Sequence[str]) -> int:
    """Run a Python program in processes that share its work; one machine, each with its share of the cores.

    Returns:
        0, or the status in which a mistake or a signal ended one of them.

    Raises:
        UserError: not a number of processes that can share the work here.
        ChildFailedError: one of them ended otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if not number.isdecimal():
        raise UserError(f"gpus is '{number}'; expected a whole number of 1 or more")
    check_processes(int(number))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // int(number))))
    logging.disable(logging.ERROR)  # torch's own report of a process that has said itself why it ended
    try:
        run(parse_args(["--standalone", "--nproc-per-node", number, *command]))
    except SignalException as stopped:
        return EXIT_INTERRUPTED if stopped.sigval == signal.SIGINT else EXIT_REQUEUE
    except ChildFailedError as failed:
        statuses = {failure.exitcode for failure in failed.failures.values()}
        for known in (EXIT_USER, EXIT_INTERRUPTED, EXIT_REQUEUE):
            if known in statuses:
                return known
        raise
    return 0


def train_in_processes(experiment: str, trainings: Sequence[Job], jobs: int, gpus: int) -> None:
    """Train in processes of their own, ``jobs`` of them at once.

    A signal is handed on, and waited for until all is saved.

    Args:
        experiment: as of ``config.load``.
        trainings: what to train.
        jobs: trainings at the same time.
        gpus: processes that share each.

    Raises:
        UserError: a training failed; the others that were running have ended.
        Interrupted: a signal stopped them.
    """
    waiting = list(trainings)
    running: dict[int, tuple[Job, subprocess.Popen]] = {}  # by slot
    failed: list[tuple[Job, int]] = []
    with stop_requests() as stop:
        while running or (waiting and not stop.signal and not failed):
            while waiting and len(running) < jobs and not stop.signal and not failed:
                training, slot = waiting.pop(0), min(set(range(jobs)) - set(running))
                print(f"{training.name}: {training.log}", flush=True)
                running[slot] = training, start(experiment, training, gpus, slot, jobs)
            time.sleep(POLL_SECONDS)
            if stop.signal:
                for _, process in running.values():
                    # Who started several processes hands SIGTERM on to them, and knows no SIGUSR1.
                    process.send_signal(signal.SIGTERM if gpus > 1 else stop.signal)
                for _, process in running.values():
                    process.wait()
                names = ", ".join(training.name for training, _ in running.values())
                raise Interrupted(f"stopped and saved: {names}; the same command goes on", stop.status)
            for slot, (training, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode:
                        failed.append((training, process.returncode))
                    else:
                        print(f"{training.name}: trained", flush=True)
        if stop.signal and not failed:
            raise Interrupted("stopped between two trainings; the same command goes on", stop.status)
    for training, status in failed:
        lines = training.log.read_text(errors="replace").strip().splitlines()
        why = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines or [""]
        raise UserError(f"{training.name} ended with status {status}: {why[-1][:200]} (see {training.log})")


def opened(log: Path) -> IO[bytes]:
    """Open a log to be written.

    Raises:
        UserError: it cannot be.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as error:
        raise cannot_write(log, error) from error


def start(experiment: str, training: Job, gpus: int, slot: int, jobs: int) -> subprocess.Popen:
    """Start a training; ``slot`` of ``jobs`` has GPUs and cores of its own."""
    launch = [str(PROJECT / "tools/launch.py"), str(gpus)] if gpus > 1 else []
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // (jobs * gpus)))} | os.environ
    if count := torch.cuda.device_count():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # schedulers name some, also by their UUIDs
        names = seen if seen != [""] else [str(number) for number in range(count)]
        chosen = [names[(slot * gpus + place) % len(names)] for place in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    command = [sys.executable, *launch, str(PROJECT / "tools/train.py"), experiment, *training.overrides]
    with opened(training.log) as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
