"""Tracking: JSONL always, W&B when asked, a progress bar; on rank 0 only."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ser.dist import is_main
from ser.errors import UserError, nearest
from ser.files import PROJECT, append_line, write_text

__all__ = ["Tracker", "Tracking", "environment"]

WANDB_MODES = ("auto", "online", "offline", "off")
PACKAGES = (
    "ser-toolkit", "torch", "torchaudio", "transformers", "speechbrain", "gin-config",
    "numpy", "soundfile", "scikit-learn", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class Tracking:
    """How a run is tracked.

    Attributes:
        wandb: ``auto`` (online with an API key, offline without), ``online``, ``offline`` or ``off``.
        project: of W&B.
        every: steps between two lines of the log.
    """

    wandb: str = "auto"
    project: str = "ser"
    every: int = 10

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise UserError(f"track/wandb is '{self.wandb}'{nearest(self.wandb, WANDB_MODES)}")

    def open(self, folder: Path, settings: dict[str, Any], group: str) -> "Tracker":
        """Start tracking a run in ``folder``; ``settings`` are its resolved bindings as typed values."""
        return Tracker(self, folder, settings, group)


class Tracker:
    """Writes ``log.jsonl`` and, when asked, mirrors it to W&B."""

    def __init__(self, tracking: Tracking, folder: Path, settings: dict[str, Any], group: str):
        self.path = folder / "log.jsonl"
        self.run = None
        mode = tracking.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        if mode != "off" and is_main():
            self.run = self.start_wandb(tracking, folder, settings, group, mode)

    @staticmethod
    def start_wandb(tracking: Tracking, folder: Path, settings: dict[str, Any], group: str, mode: Any):
        """Start a W&B run of the folder's name, continuing it where it exists; training never fails for it."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        try:
            run = wandb.init(
                project=tracking.project, name=folder.name, id=folder.name, group=group, dir=folder,
                config=settings, mode=mode, resume="allow" if mode == "online" else None,
            )  # fmt: skip
        except Exception as error:
            print(f"W&B is unreachable ({error}); going on with log.jsonl alone", file=sys.stderr)
            return None
        run.define_metric("*", step_metric="step")
        return run

    def rewind(self, step: int) -> None:
        """Drop lines after ``step``, which a resumed run writes again."""
        if self.path.is_file():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; names are grouped by prefix, as ``train/loss`` or ``val/uar``."""
        if not is_main():
            return
        append_line(self.path, json.dumps({"step": step, **values}))
        if self.run is not None:
            self.run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the W&B run, if there is one, and name the command that uploads an offline one."""
        if self.run is not None:
            folder = Path(self.run.dir).parent
            offline = self.run.settings.mode == "offline"
            self.run.finish()
            if offline:
                print(f"W&B run kept offline; upload it with: wandb sync {folder}")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a last line cut by a crash is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def environment() -> dict[str, Any]:
    """Return what a run ran on: versions, machine, git revision and whether the code was changed since."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "cores": len(os.sched_getaffinity(0)), "device": device_name()},
        "git": {"commit": git("rev-parse", "HEAD"), "diff": git("diff", "HEAD", "--stat")},
    }


def installed(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name() -> str:
    """Return the GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def git(*arguments: str) -> str | None:
    """Return git's answer about the checkout, or None outside one."""
    try:
        done = subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
