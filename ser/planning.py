"""Carrying out a plan: `just` commands one after the other, unattended, resumable, each with a log of its own.

A step that is done is not done again. Where one fails, the steps that need its run are left out, and all others go on:
a night is not lost to one mistake.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.errors import UserError, some
from ser.files import locked, outputs_folder, read_json, write_json
from ser.interrupts import stop_requests

__all__ = ["Step", "carry_out", "record", "table"]

GIN_RECIPES = ("extract", "probe", "train", "cv")  # those that take gin overrides
SHARED_WORK = ("extract", "train", "cv")  # those that can use several GPUs
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Step:
    """Commands that belong together.

    Attributes:
        name: of its log and record; later steps name the run that it leaves behind as ``@name``.
        commands: of `just`, as one would type them; ``last`` is the run that the step itself trained.
        hours, gib: expected time, and memory of the GPU.
        unless: a file that makes the step needless.
    """

    name: str
    commands: tuple[str, ...]
    hours: float
    gib: float
    unless: Path | None = None

    @property
    def needs(self) -> list[str]:
        """The steps whose runs it names."""
        return [word[1:] for command in self.commands for word in shlex.split(command) if word.startswith("@")]


def carry_out(
    steps: Sequence[Step],
    just: Sequence[str],
    gpus: int = 1,
    allow_missing: bool = False,
    extra: Callable[[Sequence[str]], Sequence[str]] = lambda words: (),
    only: str = "",
) -> int:
    """Do what is not done yet; return the exit status: 0, 1 where steps failed, or that of a signal.

    Args:
        steps: in order.
        just: the command that runs a recipe.
        gpus: processes that share the work of a step.
        allow_missing: go on although official clips are missing.
        extra: overrides for a recipe and its arguments, on top of the plan's own.
        only: steps whose names hold this; what others have left behind is known.

    Raises:
        UserError: a step that names one which does not come before it, or another process carries out a plan here.
    """
    check(steps)
    done: dict[str, dict[str, Any]] = {}
    with locked(folder() / ".lock", f"{folder()}: a plan is being carried out here; wait for it or stop it"):
        for number, step in enumerate(steps, start=1):
            if before := record(step):
                done[step.name] = before
                continue
            if only not in step.name:
                continue
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.unless is not None and step.unless.exists():
                print(f"{label}: not needed, {step.unless} is there", flush=True)
                continue
            if lacking := [name for name in step.needs if name not in done]:
                print(f"{label}: left out, it needs {', '.join(lacking)}", flush=True)
                continue
            print(f"{label}: {step.hours:.1f} h expected, {log_of(step)}", flush=True)
            started, run = time.time(), ""
            log_of(step).unlink(missing_ok=True)
            for command in step.commands:
                words = prepared(command, {name: one["run"] for name, one in done.items()}, gpus, allow_missing, extra)
                status, stopped = execute([*just, *words], log_of(step))
                if stopped:
                    print(f"stopped in {step.name}; the same command goes on")
                    return stopped
                if status:
                    print(f"{label}: failed: {last_line(log_of(step))}", flush=True)
                    break
                run = left_behind(words) or run
            else:
                hours = (time.time() - started) / 3600
                done[step.name] = entry = {"commands": list(step.commands), "hours": round(hours, 4), "run": run}
                write_json(folder() / f"{step.name}.json", entry)
                print(f"{label}: done in {entry['hours']:.2f} h", flush=True)
    wanted = [step for step in steps if only in step.name and not (step.unless and step.unless.exists())]
    if rest := [step.name for step in wanted if step.name not in done]:
        print(f"{len(rest)} of {len(wanted)} steps are open: {some(rest)}; mend that and give the same command again")
        return 1
    print(f"all {len(wanted)} steps are done")
    return 0


def check(steps: Sequence[Step]) -> None:
    """Raise a UserError for names that occur twice, or are needed before they are there."""
    known: set[str] = set()
    for step in steps:
        if step.name in known:
            raise UserError(f"two steps are called '{step.name}'; rename one of them")
        if lacking := [name for name in step.needs if name not in known]:
            raise UserError(f"step '{step.name}' needs '{lacking[0]}', which does not come before it")
        known.add(step.name)


def prepared(
    command: str,
    runs: dict[str, str],
    gpus: int,
    allow_missing: bool,
    extra: Callable[[Sequence[str]], Sequence[str]],
) -> list[str]:
    """Return the words for `just`: variables, recipe and arguments, runs by their names."""
    words = [runs[word[1:]] if word.startswith("@") else word for word in shlex.split(command)]
    place = next(place for place, word in enumerate(words) if "=" not in word)
    recipe, arguments = words[place], words[place + 1 :]
    variables = [f"gpus={gpus}"] if gpus > 1 and recipe in SHARED_WORK else []
    variables += ["allow_missing=1"] if allow_missing and recipe == "prepare" else []
    overrides = extra([recipe, *arguments]) if recipe in GIN_RECIPES else ()
    return [*variables, *words, *overrides]


def execute(command: Sequence[str], log: Path) -> tuple[int, int]:
    """Run a command with its output at the end of a log; return its status, and that of a signal that stopped us."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file, stop_requests() as stop:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        told = False
        while process.poll() is None:
            if stop.signal and not told:
                told = True
                os.killpg(process.pid, signal.SIGTERM)  # training saves what it has, and ends
            time.sleep(POLL_SECONDS)
    return process.returncode, stop.status if stop.signal else 0


def left_behind(words: Sequence[str]) -> str:
    """Return the name of the run or cross-validation that a command has just trained, "" for other commands."""
    if "train" in words:
        return (outputs_folder() / "last").read_text().strip()
    if "cv" in words:
        last = (outputs_folder() / "last").read_text().strip()
        for path in outputs_folder().glob(f"{words[words.index('cv') + 1]}-cv-*/eval/*/metrics.json"):
            figures = read_json(path)
            if figures["folds"][-1]["run"] == last:
                return figures["run"]
    return ""


def folder() -> Path:
    """Return the folder for logs and records of a plan."""
    return outputs_folder() / "plan"


def log_of(step: Step) -> Path:
    """Return the path of a step's log."""
    return folder() / f"{step.name}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") and not line.startswith("error: recipe ")]
    return (errors or lines or [""])[-1][:300]


def record(step: Step) -> dict[str, Any]:
    """Return what is recorded of a step that is done: commands, hours, run; nothing where its commands have changed."""
    path = folder() / f"{step.name}.json"
    if not path.is_file():
        return {}
    known = read_json(path)
    good = isinstance(known, dict) and {"commands", "hours", "run"} <= known.keys()
    return known if good and known["commands"] == list(step.commands) else {}


def table(steps: Sequence[Step]) -> str:
    """Return a table of all steps: expected hours and memory, measured hours, commands."""
    width = max(len(step.name) for step in steps)
    lines = [f"{'step':{width}}  expected h  GPU GiB  measured h  commands"]
    for step in steps:
        measured = f"{hours:.2f}" if (hours := record(step).get("hours")) is not None else ""
        commands = "; ".join(f"just {command}" for command in step.commands)
        lines.append(f"{step.name:{width}}  {step.hours:10.1f}  {step.gib:7.0f}  {measured:>10}  {commands}")
    total = sum(step.hours for step in steps)
    lines.append(f"{'all':{width}}  {total:10.1f}  {max(step.gib for step in steps):7.0f}")
    return "\n".join(lines)
