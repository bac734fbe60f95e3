"""``just crash-test``: training and extraction killed at random moments until they are through, and what is left of it.

SIGKILL leaves a process no time for anything, so whatever is on the disk then is what resuming has. What a run ends
with must be what it would have ended with: weights, average, log (times aside), and every file of a store.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ser.bench_training import prepared_demo
from ser.errors import UserError
from ser.files import PROJECT, corpus_folder, outputs_folder, write_json

__all__ = ["crash_test"]

TRAIN = (
    "tools/train.py", "demo_ecapa", "ecapa/channels = 32", "train/epochs = 8", "Tracking.every = 1",
    "EcapaTdnn.dropout = 0.2", "track/wandb = 'off'",
)  # fmt: skip
EXTRACT = ("tools/extract.py", "demo", "logmel80")


def crash_test(kills: int = 21, seed: int = 1) -> dict[str, Any]:
    """Kill trainings (of one process and of two) and extractions, and compare what they end with.

    Args:
        kills: at least so many, shared evenly.
        seed: of the moments.

    Returns:
        For each kind of work ``{"kills": ..., "runs": ..., "different": ...}``; also in ``outputs/crash-test.json``.

    Raises:
        UserError: fewer than one kill.
    """
    if kills < 1:
        raise UserError(f"{kills} kills; expected 1 or more")
    path = outputs_folder() / "crash-test.json"
    dice = random.Random(seed)
    with prepared_demo():
        tasks: dict[str, tuple[Sequence[str], Path, Callable[[Path], str]]] = {
            "training": (TRAIN, outputs_folder(), run_state),
            "training in two processes": (two(TRAIN), outputs_folder(), run_state),
            "extraction": (EXTRACT, corpus_folder("demo") / "feats", store_state),
        }
        result = {name: endure(name, *task, -(-kills // len(tasks)), dice) for name, task in tasks.items()}
    write_json(path, result)
    return result


def two(command: Sequence[str]) -> list[str]:
    """Return a command that runs in two processes."""
    return ["tools/launch.py", "2", *command]


def endure(
    name: str, command: Sequence[str], folder: Path, state: Callable[[Path], str], kills: int, dice: random.Random
) -> dict[str, int]:
    """Do a task once undisturbed, then again and again under fire, and compare the states it ends with."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    finish(start(command))
    whole, expected = time.monotonic() - started, state(folder)
    made = runs = different = 0
    while made < kills:
        shutil.rmtree(folder, ignore_errors=True)
        before, began = made, time.monotonic()
        while True:
            process = start(command)
            try:
                process.wait(dice.uniform(0.3, 1.0) * whole)
            except subprocess.TimeoutExpired:
                kill(process)
                made += 1
                if made % 3:  # every third goes through at last, lest a run be killed for ever
                    continue
                process = start(command)
            finish(process)
            break
        if made == before:  # through before it could be killed: the machine has become faster
            whole = min(whole, time.monotonic() - began)
        runs += 1
        different += state(folder) != expected
        print(f"{name}: {made} kills, {runs} runs through, {different} of them different", flush=True)
    return {"kills": made, "runs": runs, "different": different}


def start(command: Sequence[str]) -> subprocess.Popen:
    """Start a command without GPUs, whose rounding differs each time; its output is only looked at when it fails."""
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=PROJECT,
        env=dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    """Wait for a command to end well.

    Raises:
        UserError: it did not.
    """
    _, err = process.communicate()
    if process.returncode:
        raise UserError(f"the command ended with status {process.returncode}: {err.strip()[-500:]}")


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started."""
    for number in [process.pid, *offspring(process.pid)]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def offspring(parent: int) -> list[int]:
    """Return the processes that a process has started, and theirs; on Linux."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = [], [parent]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def run_state(outputs: Path) -> str:
    """Return a digest of the one run in a folder: weights, average and log, times aside."""
    import torch

    from ser import checkpoints
    from ser.tracking import read_log

    (folder,) = [path for path in outputs.iterdir() if (path / "run.gin").is_file()]
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if not str(key).endswith("seconds"):
                    digest.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    for name in ("best", "last"):
        add(checkpoints.load(folder / "checkpoints" / f"{name}.pt"))
    for line in read_log(folder):
        digest.update(json.dumps({key: value for key, value in line.items() if not key.startswith("speed/")}).encode())
    return digest.hexdigest()


def store_state(feats: Path) -> str:
    """Return a digest of all files of the stores in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in feats.rglob("*") if path.is_file() and not path.name.startswith(".")):
        digest.update(str(path.relative_to(feats)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
