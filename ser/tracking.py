"""Tracking: JSONL always, W&B when asked, a progress bar; on rank 0 only."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from netrc import NetrcParseError, netrc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ser import plots
from ser.dist import is_main
from ser.errors import UserError, first_line, nearest
from ser.files import append_line, read_lines, write_text

__all__ = ["Tracker", "Tracking", "read_log"]

FINISH_SECONDS = 120  # that W&B may take at the end to bring what it has left
WANDB_PROJECT = "ser"
WANDB_MODES = ("auto", "online", "offline", "off")
SUMMARIES = {"val/uar": "max", "val/loss": "min"}  # what W&B's table of runs shows instead of the last value


@dataclass(frozen=True)
class Tracking:
    """How a run is tracked.

    Attributes:
        wandb: ``auto`` (online after ``wandb login`` or with an API key, else offline), ``online``, ``offline`` or
            ``off``.
        project: of W&B; ``ser`` gives way to the variable ``WANDB_PROJECT``.
        every: steps between two lines of the log.

    Raises:
        UserError: an unknown mode, or ``every`` below 1.
    """

    wandb: str = "auto"
    project: str = WANDB_PROJECT
    every: int = 10

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise UserError(f"track/wandb is '{self.wandb}'{nearest(self.wandb, WANDB_MODES)}")
        if self.every < 1:
            raise UserError(f"Tracking.every is {self.every}; expected a number of steps from 1")


class Tracker:
    """Writes ``log.jsonl`` and, when asked, mirrors it to W&B, which may fail without harm to the training.

    Args:
        tracking: how.
        folder: of the run.
        settings: its resolved bindings as typed values.
        group: of runs that differ in seed and fold alone.
        tags: what a reader must know of every figure of it.
    """

    def __init__(
        self, tracking: Tracking, folder: Path, settings: dict[str, Any], group: str, tags: Sequence[str] = ()
    ):
        self.path = folder / "log.jsonl"
        self.tags = list(tags)
        self.run: Any = None
        self.kept: Path | None = None  # where W&B keeps what is not uploaded yet
        mode = wandb_mode(tracking.wandb)
        if mode != "off" and is_main():
            self.start_wandb(tracking, folder, settings, group, mode)

    def start_wandb(self, tracking: Tracking, folder: Path, settings: dict[str, Any], group: str, mode: Any) -> None:
        """Start a W&B run of the folder's name; an online one that fails goes on offline."""
        os.environ.setdefault("WANDB_SILENT", "true")

        wished = os.environ.get("WANDB_PROJECT") or WANDB_PROJECT
        project = wished if tracking.project == WANDB_PROJECT else tracking.project

        def start() -> None:
            import wandb

            self.run = wandb.init(
                project=project, name=folder.name, id=folder.name, group=group, dir=folder, config=settings,
                tags=self.tags or None, mode=mode, resume="allow" if mode == "online" else None,
                settings=wandb.Settings(
                    init_timeout=30, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, console="off"
                ),
            )  # fmt: skip
            self.kept = Path(self.run.dir).parent
            self.run.define_metric("*", step_metric="step")
            for name, best in SUMMARIES.items():
                self.run.define_metric(name, step_metric="step", summary=best)

        self.mode = mode
        if not self.guarded(start) and mode == "online":
            print("W&B cannot be reached; keeping this run offline", file=sys.stderr)
            self.start_wandb(tracking, folder, settings, group, "offline")

    def guarded(self, call: Callable[[], object]) -> bool:
        """Make a call into W&B; an error ends the mirroring with one line and leaves the training alone."""
        try:
            call()
            return True
        except Exception as error:
            self.run = None
            print(f"W&B failed ({type(error).__name__}: {first_line(error)}); log.jsonl goes on", file=sys.stderr)
            return False

    def rewind(self, step: int, epoch: int) -> None:
        """Drop lines after ``step`` and of epochs after ``epoch``, which a resumed run writes again."""
        if is_main() and self.path.is_file():
            lines = read_log(self.path.parent)
            kept = [line for line in lines if line["step"] <= step and line.get("epoch", 0) <= epoch]
            write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; names are grouped by prefix, as ``train/loss`` or ``val/uar``.

        A figure that is not finite is left out: JSON knows none.
        """
        if not is_main():
            return
        values = {name: value for name, value in values.items() if not isinstance(value, float) or isfinite(value)}
        append_line(self.path, json.dumps({"step": step, **values}))
        if self.run is not None:
            self.guarded(lambda: self.run.log({"step": step, **values}))

    def confusion(self, step: int, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
        """Show W&B the confusion matrix [C, C] of the validation part; a picture, which needs no artifact there."""
        if self.run is None:
            return

        def show() -> None:
            import wandb

            with TemporaryDirectory() as folder:
                path = Path(folder) / "confusion.png"
                plots.confusion(path, np.array(counts), labels, f"validation, step {step}")
                self.run.log({"step": step, "val/confusion": wandb.Image(str(path))})

        self.guarded(show)

    def close(self) -> None:
        """Finish the W&B run, if there is one, and name the command that uploads what is not there yet."""
        run, self.run = self.run, None
        whole = run is not None and self.guarded(run.finish) and self.mode == "online"
        if self.kept is not None and not whole:
            command = f"{Path(sys.executable).parent}/wandb sync --include-online '{self.kept}'"
            print(f"W&B has not received all of this run; upload it with: {command}")


def wandb_mode(asked: str) -> str:
    """Return online, offline or off: ``auto`` follows ``WANDB_MODE``, then whether W&B knows the user."""
    if asked != "auto":
        return asked
    wished = os.environ.get("WANDB_MODE", "")
    if wished in ("disabled", "dryrun", "offline", "online"):
        return {"disabled": "off", "dryrun": "offline"}.get(wished, wished)
    return "online" if os.environ.get("WANDB_API_KEY") or logged_in() else "offline"


def logged_in() -> bool:
    """Say whether ``wandb login`` has left a key, as it does in ``~/.netrc``."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return netrc(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")).authenticators(host) is not None
    except (OSError, UnicodeError, NetrcParseError):  # another's file, which may hold anything
        return False


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; one that a crash cut short is left out."""
    return read_lines(folder / "log.jsonl")
