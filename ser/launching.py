"""Trainings in processes of their own, several at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ser.errors import UserError
from ser.files import PROJECT
from ser.interrupts import stop_requests
from ser.progress import cores

__all__ = ["needs_processes", "train_apart"]

POLL_SECONDS = 0.2


def needs_processes(jobs: int, gpus: int) -> bool:
    """Say whether training needs processes of its own.

    Raises:
        UserError: less than one job or GPU.
    """
    if jobs < 1 or gpus < 1:
        raise UserError(f"jobs is {jobs} and gpus {gpus}; expected 1 or more")
    return jobs > 1 or gpus > 1


def train_apart(experiment: str, works: Mapping[str, Sequence[str]], jobs: int, gpus: int, folder: Path) -> int:
    """Train in processes of their own, ``jobs`` of them at once; return 0, or the status of a signal.

    What each prints goes to a log in ``folder``. A signal is handed on, and waited for until all is saved.

    Args:
        experiment: as of ``config.load``.
        works: overrides of each training, by a name such as ``fold 1``.
        jobs: trainings at the same time.
        gpus: processes that share each.
        folder: for the logs.

    Raises:
        UserError: a training failed; the others that were running have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = {name: folder / f"{name.replace(' ', '')}.log" for name in works}
    waiting = list(works)
    running: dict[str, tuple[subprocess.Popen, int]] = {}  # the process of a work, and its slot
    ended: dict[str, int] = {}
    with stop_requests() as stop:
        while running or (waiting and not stop.signal and not any(ended.values())):
            while waiting and len(running) < jobs and not stop.signal and not any(ended.values()):
                name = waiting.pop(0)
                slot = min(set(range(jobs)) - {place for _, place in running.values()})
                print(f"{name} of {len(works)}: {logs[name]}", flush=True)
                running[name] = start(experiment, works[name], gpus, slot, jobs, logs[name]), slot
            time.sleep(POLL_SECONDS)
            if stop.signal:
                for process, _ in running.values():
                    # torchrun hands SIGTERM on to its processes, and knows no SIGUSR1.
                    process.send_signal(signal.SIGTERM if gpus > 1 else stop.signal)
                for process, _ in running.values():
                    process.wait()
                print(f"stopped; {', '.join(running)} saved: the same command goes on")
                return stop.status
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                ended[name] = running.pop(name)[0].returncode
                if not ended[name]:
                    print(f"{name}: trained", flush=True)
    for name, status in ended.items():
        if status:
            last = logs[name].read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{name} ended with status {status}: {''.join(last)[:200]} (see {logs[name]})")
    return 0


def start(experiment: str, overrides: Sequence[str], gpus: int, slot: int, jobs: int, log: Path) -> subprocess.Popen:
    """Start a training; ``slot`` of ``jobs`` has GPUs and cores of its own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // (jobs * gpus)))} | os.environ
    if (count := torch.cuda.device_count()) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str((slot * gpus + place) % count) for place in range(gpus))
    command = [sys.executable, *launch, str(PROJECT / "tools/train.py"), experiment, *overrides]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
