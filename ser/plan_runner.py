"""Carrying out a plan: `just` commands one after the other, unattended, resumable, each step with a log of its own.

A command that went through is not given again. Where a step fails, those that need it are left out and all others go
on: a night is not lost to one mistake.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.errors import UserError, some
from ser.files import locked, outputs_folder, read_json, write_json
from ser.interrupts import stop_requests

__all__ = ["Options", "Step", "carry_out", "table"]

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
        after: steps without which it cannot be done, beside those whose runs it names.
    """

    name: str
    commands: tuple[str, ...]
    hours: float
    gib: float
    after: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """The steps that must be done before it."""
        named = [word[1:] for command in self.commands for word in shlex.split(command) if word.startswith("@")]
        return [*self.after, *named]


@dataclass(frozen=True)
class Options:
    """What holds for all steps.

    Attributes:
        gpus: processes that share the work of a step.
        jobs: folds that train at the same time.
        allow_missing: go on although official clips are missing.
        extra: gin overrides for a recipe and its arguments, on top of the plan's own.
    """

    gpus: int = 1
    jobs: int = 1
    allow_missing: bool = False
    extra: Callable[[Sequence[str]], Sequence[str]] = lambda words: ()


def carry_out(steps: Sequence[Step], just: Sequence[str], options: Options | None = None, only: str = "") -> int:
    """Do what is not done yet; return the exit status: 0, 1 where steps are open, or that of a signal.

    Args:
        steps: in order.
        just: the command that runs a recipe.
        options: for all steps.
        only: how the names of the steps to do begin; what others have left behind is known.

    Raises:
        UserError: a step that needs one which does not come before it, or a plan is being carried out here.
    """
    check(steps)
    options = options or Options()
    chosen = [step for step in steps if step.name.startswith(only)]
    busy = f"{folder()}: a plan is being carried out here, by a process that holds its lock; wait for it or stop it"
    with locked(folder() / ".lock", busy) as lock:
        for step, runs, record in walk(steps, options):
            if step not in chosen or record.done:
                continue
            label = f"[{chosen.index(step) + 1}/{len(chosen)}] {step.name}"
            if lacking := [name for name in step.needs if name not in runs]:
                print(f"{label}: left out, it needs {', '.join(lacking)}", flush=True)
                continue
            print(f"{label}: {step.hours:.1f} h expected, {record.log}", flush=True)
            while not record.done:
                status, stopped = record.advance(just, lock.fileno())
                if stopped:
                    print(f"stopped in {step.name}; the same command goes on")
                    return stopped
                if status:
                    print(f"{label}: failed: {last_line(record.log)}", flush=True)
                    break
            else:
                print(f"{label}: done in {record.hours:.2f} h", flush=True)
    rest = [step.name for step, _, record in walk(steps, options) if step in chosen and not record.done]
    if rest:
        print(f"{len(rest)} of {len(chosen)} steps are open: {some(rest)}; fix that and run the same command again")
        return 1
    print(f"all {len(chosen)} steps are done")
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


class Record:
    """How far a step has come; written after each of its commands.

    Args:
        name: of the step.
        commands: their words for `just`, runs of other steps by their names. A record of other commands is void; how
            many processes share the work may change.

    Attributes:
        through: commands that went through.
        hours: they took.
        run: that they left behind, or "".
    """

    def __init__(self, name: str, commands: list[list[str]]):
        self.commands = commands
        self.path, self.log = (folder() / f"{name}.{ending}" for ending in ("json", "log"))
        self.through, self.hours, self.run = 0, 0.0, ""
        try:
            known = read_json(self.path) if self.path.is_file() else {}
            through, hours, run = int(known["through"]), float(known["hours"]), str(known["run"])
            same = [*map(task, known["commands"])] == [*map(task, commands)] and 0 < through <= len(commands)
        except (UserError, KeyError, TypeError, ValueError):
            return  # none, or damaged: the step is done anew
        if same and (not run or (outputs_folder() / run).is_dir()):
            self.through, self.hours, self.run = through, hours, run

    @property
    def done(self) -> bool:
        """Whether all commands went through."""
        return self.through == len(self.commands)

    def advance(self, just: Sequence[str], lock: int) -> tuple[int, int]:
        """Give the next command; return its exit status, and that of a signal that stopped us."""
        if not self.through:
            self.log.unlink(missing_ok=True)
        words = [self.run if word == "last" and self.run else word for word in self.commands[self.through]]
        begun = time.time()
        status, stopped, said = execute([*just, *words], self.log, lock)
        if not status and (recipe := recipe_of(words)) in ("train", "cv"):
            self.run = left_behind(recipe, words, said)
            if not self.run:
                with self.log.open("a") as file:
                    file.write("error: the command names no run that it has left behind\n")
                status = 1
        if not status:  # also where a signal came as it ended: what went through is not given again
            self.through += 1
            self.hours = round(self.hours + (time.time() - begun) / 3600, 4)
            content = {"commands": self.commands, "through": self.through, "hours": self.hours, "run": self.run}
            write_json(self.path, content)
        return status, stopped


def walk(steps: Sequence[Step], options: Options) -> Iterator[tuple[Step, dict[str, str], Record]]:
    """Yield each step with the runs of those done before it, by name of step, and its record."""
    runs: dict[str, str] = {}
    for step in steps:
        record = Record(step.name, [prepared(command, runs, options) for command in step.commands])
        yield step, runs, record
        if record.done:
            runs[step.name] = record.run


def prepared(command: str, runs: dict[str, str], options: Options) -> list[str]:
    """Return the words for `just`: variables, recipe and arguments, runs by their names where they are known."""
    words = [runs.get(word[1:], word) if word.startswith("@") else word for word in shlex.split(command)]
    recipe = recipe_of(words)
    shared = recipe in SHARED_WORK and not any("stats_probe" in word for word in words)  # a solver would run in each
    variables = [f"gpus={options.gpus}"] if options.gpus > 1 and shared else []
    variables += [f"jobs={options.jobs}"] if options.jobs > 1 and recipe == "cv" else []
    variables += ["allow_missing=1"] if options.allow_missing and recipe == "prepare" else []
    overrides = options.extra(words[words.index(recipe) :]) if recipe in GIN_RECIPES else ()
    return [*variables, *words, *overrides]


def task(words: Sequence[str]) -> list[str]:
    """Return what a command does, without how many processes and folds share it."""
    return [word for word in words if not word.startswith(("gpus=", "jobs="))]


def recipe_of(words: Sequence[str]) -> str:
    """Return the first word that is no variable."""
    return next(word for word in words if "=" not in word)


def execute(command: Sequence[str], log: Path, lock: int) -> tuple[int, int, str]:
    """Run a command with its output at the end of a log.

    The command holds the lock, too: should this process be killed, no other begins before the command has ended.

    Returns:
        Its exit status, that of a signal that stopped us or 0, and what it printed.
    """
    with log.open("ab") as file, stop_requests() as stop:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock,)
        )  # fmt: skip
        told = False
        try:
            while process.poll() is None:
                if stop.signal and not told:
                    told = True
                    os.killpg(process.pid, signal.SIGTERM)  # training saves what it has, and ends
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # asked a second time
            os.killpg(process.pid, signal.SIGKILL)
            raise
    with log.open("rb") as file:
        file.seek(begin)
        said = file.read().decode(errors="replace")
    return process.returncode, stop.status if stop.signal else 0, said


def left_behind(recipe: str, words: Sequence[str], said: str) -> str:
    """Return the name of the run or cross-validation that a command says it has trained, "" where it says none."""
    experiment = words[list(words).index(recipe) + 1]
    kind = "-cv" if recipe == "cv" else r"(?:-fold\d+)?"
    named = re.findall(rf"(?<![\w-]){re.escape(experiment)}{kind}-s\d+-[0-9a-f]{{6}}(?![\w-])", said)
    return named[-1] if named else ""


def folder() -> Path:
    """Return the folder for logs and records of a plan."""
    return outputs_folder() / "plan"


def last_line(log: Path) -> str:
    """Return the last error of a log, or its last line that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") and not line.startswith("error: recipe ")]
    return (errors or lines or [""])[-1][:300]


def table(steps: Sequence[Step], options: Options | None = None, only: str = "") -> str:
    """Return a table: expected hours and memory, measured hours, commands."""
    rows = [(s, record) for s, _, record in walk(steps, options or Options()) if s.name.startswith(only)]
    width = max(len(step.name) for step, _ in rows)
    lines = [f"{'step':{width}}  expected h  GPU GiB  measured h  commands"]
    for step, record in rows:
        measured = f"{record.hours:.2f}" if record.done else f"{record.through} of {len(step.commands)}"
        measured = measured if record.through else ""
        commands = "; ".join(f"just {command}" for command in step.commands)
        lines.append(f"{step.name:{width}}  {step.hours:10.1f}  {step.gib:7.0f}  {measured:>10}  {commands}")
    total, most = sum(step.hours for step, _ in rows), max(step.gib for step, _ in rows)
    return "\n".join([*lines, f"{'all':{width}}  {total:10.1f}  {most:7.0f}"])
