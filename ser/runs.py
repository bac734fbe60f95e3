"""One run: created from its configuration, trained in its folder, reopened with its best weights."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser import checkpoints, config, dist, training
from ser.environment import environment
from ser.errors import UserError
from ser.experiment import Experiment, Run
from ser.files import locked, outputs_folder, read_json, run_folder, write_json, write_text
from ser.training_setup import set_up
from ser.training_state import State, check_inputs, check_unchanged

__all__ = ["TrainedRun", "create", "load_trained", "reopen", "train"]


def create(settings: config.Config) -> tuple[Experiment, Run]:
    """Build an experiment and name its run folder; nothing is written yet.

    Raises:
        UserError: as ``config.build``.
    """
    experiment = config.build(settings)
    text = config.snapshot(settings)
    fold = experiment.protocol.fold
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    name = f"{settings.name}{'' if fold is None else f'-fold{fold}'}-s{experiment.seed}-{digest}"
    return experiment, Run(outputs_folder() / name, text, config.settings(text), group_of(settings.name, text))


def reopen(name: str) -> tuple[Experiment, Run]:
    """Rebuild the experiment of an existing run from its ``run.gin``.

    Args:
        name: ``last``, a folder in ``outputs/``, or a path.

    Raises:
        UserError: no such run, or a snapshot that no longer fits the code.
    """
    folder = run_folder(name)
    path = folder / "run.gin"
    settings = config.load(str(path))
    text = path.read_text()
    return config.build(settings), Run(folder, text, config.settings(text), group_of(settings.name, text))


def group_of(name: str, text: str) -> str:
    """Name what the seeds and folds of one setting share: the experiment, and a hash of all else in its snapshot."""
    shared = [line for line in text.splitlines() if not line.startswith(("seed = ", "split/fold = "))]
    return f"{name}-{hashlib.sha256(chr(10).join(shared).encode()).hexdigest()[:6]}"


def train(experiment: Experiment, run: Run, progress: bool = True) -> None:
    """Train a run in its folder; an interrupted one goes on, a finished one is left alone.

    Raises:
        UserError: as ``training.fit``, or another process is training the run.
        Interrupted: a signal stopped it.
    """
    resume = run.last.is_file()
    if resume and checkpoints.is_finished(run.last):
        checkpoint = checkpoints.load(run.last)
        check_unchanged(run, experiment, checkpoint, run.last)
        check_inputs(run, experiment, checkpoint)
        if dist.is_main():
            print(f"{run.folder}: already trained with these settings; remove the folder to train again")
            remember(run)
        return
    setup = set_up(experiment, fresh=not resume)  # what cannot work is said before anything is written
    with claimed(run):
        if dist.is_main():
            if run.last.is_file() != resume:
                raise UserError(f"{run.folder}: another process has trained this run meanwhile; run the command again")
            remember(run)
            if not resume:
                write_text(run.folder / "run.gin", run.config)
            record_session(run.folder / "environment.json", resume)
            print(f"{'resuming' if resume else 'training'} {run.folder}")
        state = training.fit(run, setup, resume, progress)
    if dist.is_main():
        minutes = (state.train_seconds + state.validation_seconds) / 60
        print(f"{outcome(experiment, state)}, {minutes:.1f} min\n{run.best}\n{run.folder / 'curves.png'}")


def outcome(experiment: Experiment, state: State) -> str:
    """Say how a training has ended."""
    if experiment.training.with_validation:
        return f"trained with the validation speakers for {state.epoch} epochs"
    each, kept = ("strength", "best") if experiment.model.solves else ("epoch", experiment.training.keep)
    number = f"{state.epoch} {'strengths' if experiment.model.solves else 'epochs'}"
    return f"{kept} validation UAR {state.best_uar:.3f} at {each} {state.best_epoch} of {number}"


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Keep other trainings out of a run's folder; of several processes that share one, the main one sees to it."""
    if not dist.is_main():
        yield
        return
    with locked(run.folder / ".lock", f"{run.folder}: another process is training this run; wait for it or stop it"):
        yield


def record_session(path: Path, resume: bool) -> None:
    """Add what this session runs on to those before it; a lost or foreign file never keeps a run from resuming."""
    sessions = []
    if resume:
        try:
            sessions = list(read_json(path)["sessions"])
        except (UserError, KeyError, TypeError) as error:
            print(f"{path}: earlier sessions are lost ({error})", file=sys.stderr)
    write_json(path, {"sessions": [*sessions, environment()]})


def remember(run: Run) -> None:
    """Make ``last`` mean this run, if it lies in ``outputs/``."""
    if run.folder.parent == outputs_folder():
        write_text(outputs_folder() / "last", run.folder.name + "\n")


@dataclass(frozen=True)
class TrainedRun:
    """A run with its best weights in the model, on the device.

    Attributes:
        experiment, run: of the run.
        checkpoint: what ``best.pt`` says of itself.
        finished: whether the run had made its last step before it was read; if not, a figure of it is provisional.
    """

    experiment: Experiment
    run: Run
    checkpoint: dict[str, Any]
    finished: bool

    @property
    def temperature(self) -> float:
        """What logits are to be divided by, as validation says; 1 for a checkpoint of an earlier version of ser."""
        return float(self.checkpoint.get("temperature", 1.0))

    @property
    def start_corpora(self) -> list[str]:
        """The other corpora that the run which training began with has heard, if it began with one."""
        return list((self.checkpoint["state"].get("start") or {}).get("corpora", []))


def load_trained(name: str) -> TrainedRun:
    """Reopen a run with its best weights, its model in evaluation mode.

    Raises:
        UserError: not trained yet, or configuration, split or clips were changed since.
    """
    experiment, run = reopen(name)
    finished = checkpoints.is_finished(run.last)  # first: a training that ends meanwhile may have better weights
    checkpoint = checkpoints.load(run.best)
    check_unchanged(run, experiment, checkpoint, run.best)
    checkpoints.restore(experiment.model, checkpoint["model"], run.best)
    device = dist.device()
    experiment.model.to(device).eval()
    experiment.features.front_end.to(device)
    return TrainedRun(experiment, run, checkpoint, finished)
