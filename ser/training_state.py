"""Where a run stands: saved whole, restored exactly, and only over the data and settings that it began with."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import calibration, checkpoints, dist
from ser.errors import UserError, some
from ser.experiment import Experiment, Run, Training
from ser.features import made_with
from ser.files import run_folder
from ser.layers import RunningNorm
from ser.metadata import prepare_command, same_sound
from ser.optim import kept
from ser.predictions import Predictions
from ser.protocol import Protocol
from ser.training_setup import Setup

__all__ = ["State", "check_inputs", "check_made_with", "check_unchanged", "epoch_values", "restore", "save"]


@dataclass
class State:
    """Where a run stands.

    Attributes:
        epoch: the one that is running, counted from 0.
        batch: batches of it that are done.
        step: optimiser steps so far.
        best_uar, best_epoch: of validation; -1 before the first, and the UAR where nobody validates.
        smoothed, best_smoothed: validation UAR over the epochs so far, as ``train/smoothing`` weighs them, and the
            highest that it was; -1 before the first.
        skipped: steps in a row whose loss was not finite.
        losses: training loss of each step of the running epoch.
        train_seconds, validation_seconds: spent so far, over all sessions, waiting for data included.
        epoch_seconds, waited_seconds: spent on the steps of the running epoch, and of these waiting for data.
        finished: no further step will be made.
        start: what is known of the run that training began with, see ``initial_weights.Start.facts``; None without one.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_uar: float = -1.0
    best_epoch: int = -1
    smoothed: float = -1.0
    best_smoothed: float = -1.0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    epoch_seconds: float = 0.0
    waited_seconds: float = 0.0
    finished: bool = False
    start: dict[str, Any] | None = None

    def spend(self, seconds: float, waited: float) -> None:
        """Add the time of a step, and what of it went by waiting for its batch."""
        self.train_seconds += seconds
        self.epoch_seconds += seconds
        self.waited_seconds += waited

    def close_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self.epoch_seconds = self.waited_seconds = 0.0

    def improves(self, uar: float, training: Training) -> bool:
        """Take the validation UAR of an epoch in, and say whether its weights are to be kept.

        With smoothing, an epoch is kept for a moving average that is higher than it was at the best; ``best_uar`` is
        the epoch's own figure.
        """
        before = self.smoothed
        self.smoothed = uar if before < 0 else training.smoothing * before + (1 - training.smoothing) * uar
        if training.keep == "last":
            return True
        better = self.smoothed > self.best_smoothed
        self.best_smoothed = max(self.smoothed, self.best_smoothed)
        return better


def epoch_values(state: State, figures: dict[str, Any] | None, clips: int) -> dict[str, Any]:
    """Return the line of the log that closes an epoch; what differs from one time to the next is ``speed/``.

    Args:
        state: before the epoch is closed.
        figures: of ``scoring.validation_figures``; None where nobody validates.
        clips: that the epoch's steps saw.
    """
    seconds = max(state.epoch_seconds, 1e-9)
    validated = {} if figures is None else {
        **{f"val/{name}": figures[name] for name in ("loss", "uar", "wa", "macro_f1")},
        **{f"val/recall_{label}": value for label, value in figures["recall"].items()},
    }  # fmt: skip
    return {
        "epoch": state.epoch + 1,
        "epoch/train_loss": float(np.mean(state.losses)) if state.losses else float("nan"),
        **validated,
        "speed/hours": (state.train_seconds + state.validation_seconds) / 3600,
        "speed/clips_per_second": clips / seconds,
        "speed/waiting": state.waited_seconds / seconds,
        "speed/memory_gib": dist.peak_gib(),
    }


def save(
    path: Path,
    run: Run,
    setup: Setup,
    state: State,
    scaler: torch.amp.GradScaler | None = None,  # type: ignore[name-defined]
    validated: Predictions | None = None,
) -> None:
    """Write a self-describing checkpoint: the model that answers, or with a scaler everything to resume from.

    What it ``validated`` gives the temperature that makes its probabilities right there.
    Every process calls it, since each has random numbers of its own; the main one writes.
    """
    resumable = scaler is not None
    rngs = dist.all_gather(random_state()) if resumable else []
    skipped = set().union(*dist.all_gather(setup.skipped))
    if not dist.is_main():
        return
    experiment, protocol, encoder = setup.experiment, setup.experiment.protocol, setup.model.encoder
    content: dict[str, Any] = {
        "features": setup.reader.source.made_with,
        "model": kept(setup.model) if resumable or setup.ema is None else setup.ema.values,
        "encoder": None if encoder is None else encoder.facts,
        "config": run.config,
        "labels": list(setup.model.labels),
        "protocol": protocol_facts(protocol),
        "sound": setup.sound,
        "train_speakers": sorted({clip.speaker for clip in experiment.trained_clips} - {""}),
        "skipped": sorted(skipped),
        "hears_validation": experiment.trains_on_validation,
        "state": asdict(state),
    }
    if validated is not None:
        content["temperature"] = calibration.temperature(validated.logits, validated.indices)
    if scaler is not None:
        content |= {"optimizer": setup.optimizer.state_dict(), "rng": rngs, "scaler": scaler.state_dict()}
        if setup.ema is not None:
            content["averaged"] = setup.ema.state_dict()
        if setup.embeddings is not None:
            content["embeddings"] = setup.embeddings.values
    checkpoints.save(path, content)


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of this process's random numbers."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def protocol_facts(protocol: Protocol) -> dict[str, Any]:
    """Return what must be the same when a checkpoint is used again, for its figures to mean the same."""
    members = [(part, clip) for part in ("train", "val") for clip in protocol.parts[part]]
    clips = "".join(f"{part} {clip.clip}\n" for part, clip in members)
    labels = "".join(f"{clip.speaker} {clip.emotion} {protocol.soft_target(clip)}\n" for _, clip in members)
    return {
        "corpus": protocol.corpus,
        "extra": list(protocol.extra),
        "scheme": protocol.scheme,
        "fold": protocol.fold,
        "label_source": protocol.label_source,
        "split_sha256": protocol.split.sha256,
        "clips_sha256": hashlib.sha256(clips.encode()).hexdigest(),
        "labels_sha256": hashlib.sha256(labels.encode()).hexdigest(),
    }


def check_unchanged(run: Run, experiment: Experiment, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a UserError where configuration, split, clips, sound or encoder are not those of a checkpoint."""
    protocol, encoder = experiment.protocol, experiment.model.encoder
    if checkpoint["config"] != run.config:
        lines = set(run.config.splitlines()) ^ set(checkpoint["config"].splitlines())
        raise UserError(
            f"{run.folder / 'run.gin'}: changed since {path.name} was written ({some(sorted(lines), 2)}); "
            "undo the change, or train another run with it"
        )
    if encoder is not None and (made := checkpoint.get("encoder")) != encoder.facts:
        raise UserError(
            f"{path}: was made with other weights of the encoder {encoder.name}: {made}, now "
            f"{encoder.facts}; bring those back, or train another run"
        )
    for name, module in experiment.model.named_modules():
        never = (
            isinstance(module, RunningNorm)
            and module.kind == "speaker"
            and checkpoint["model"].get(f"{name}.steps") == 0
        )
        if never:
            raise UserError(
                f"{path}: was trained by an earlier version of ser, which normalised frames by speaker and not the "
                "pooled statistics; its figures would mean something else: train another run"
            )
    now = protocol_facts(protocol)
    for name, then in checkpoint["protocol"].items():
        if now[name] != then:
            raise UserError(
                f"{run.folder.name}: {name} changed since {path.name} was written ({str(then)[:12]}, now "
                f"{str(now[name])[:12]}); its figures would mean something else: bring the old split and clips back "
                f"(just split {protocol.corpus} {protocol.scheme}), or remove the run's folder and train again"
            )
    then = checkpoint.get("sound") or {}
    for corpus, facts in protocol.sound().items():
        if not same_sound(then.get(corpus), facts):
            raise UserError(
                f"{run.folder.name}: the recordings of {corpus} changed since {path.name} was written; bring the old "
                f"ones back ({prepare_command(corpus)}), or remove the run's folder and train again"
            )


def check_inputs(run: Run, experiment: Experiment, checkpoint: Mapping[str, Any]) -> None:
    """Raise a UserError where a finished run was made from other weights than a training today would begin with.

    These are the weights of the encoder that made stored features, and those of the run that it began with.
    """
    check_made_with(run.best, checkpoint, made_with(experiment.protocol.corpus, experiment.features))
    start = checkpoint["state"].get("start") or {}
    if "weights" not in start:
        return
    path = None
    with suppress(UserError):  # that it is gone says nothing of this run
        path = run_folder(experiment.training.start) / checkpoints.BEST
    if path is not None and path.is_file() and not checkpoints.is_of(start["weights"], checkpoints.load(path)):
        raise UserError(
            f"{run.folder.name}: began with other weights of {start['run']} than lie there now, which was trained "
            f"again since; remove {run.folder.name} to train it again, too"
        )


def check_made_with(path: Path, checkpoint: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Raise a UserError where features were made with other weights of an encoder than those a model learned from."""
    before = checkpoint.get("features") or {}
    if before and made_with and made_with != before:
        raise UserError(
            f"{path}: learned from features made with the weights {before}, these are of {dict(made_with)}; bring the "
            "old encoder back, or train again"
        )


def restore(run: Run, setup: Setup, scaler: torch.amp.GradScaler) -> State:  # type: ignore[name-defined]
    """Bring model, average, optimiser and random numbers back to where ``last.pt`` left them.

    Raises:
        UserError: other settings, data or weights, or another number of processes.
    """
    content = checkpoints.load(run.last)
    if content["format"] < checkpoints.FORMAT:
        raise UserError(
            f"{run.last}: begun by an earlier version of ser, which cannot be resumed; remove the folder, train again"
        )
    check_unchanged(run, setup.experiment, content, run.last)
    check_made_with(run.last, content, setup.reader.source.made_with)
    setup.reader.unreadable |= set(content.get("skipped", []))
    checkpoints.restore(setup.model, content["model"], run.last)
    try:
        setup.optimizer.load_state_dict(content["optimizer"])
    except ValueError as error:  # its groups are others, as those of weight decay were
        raise UserError(
            f"{run.last}: its optimiser is of an earlier version of ser, which cannot be resumed; remove the folder, "
            "train again"
        ) from error
    if setup.ema is not None:
        checkpoints.check(setup.ema.state_dict(), content["averaged"], run.last)
        setup.ema.load_state_dict(content["averaged"])
    if setup.embeddings is not None:
        setup.embeddings.values = content["embeddings"]
    if (made := len(content["rng"])) != dist.world_size():
        raise UserError(
            f"{run.last}: of {made} processes, now {dist.world_size()}; go on with as many: just gpus={made} resume "
            f"{run.folder.name}"
        )
    if content["scaler"]:
        scaler.load_state_dict(content["scaler"])
    own = content["rng"][dist.rank()]
    torch.set_rng_state(own["torch"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    return State(**content["state"])
