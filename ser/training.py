"""``fit(experiment)``: the loop, readable from top to bottom. gin has done its work before this begins."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ser import checkpoints, dist, evaluation, plots
from ser.batches import Batch, ClipReader, check_labels, open_source, prefetch, shuffled
from ser.errors import UserError, some
from ser.experiment import Experiment, Run
from ser.interrupts import Interrupted, stop_requests
from ser.layers import Classifier, InputNorm
from ser.losses import class_weights
from ser.metadata import Clip
from ser.progress import progress as progress_bar
from ser.protocol import Protocol
from ser.tracking import read_log

__all__ = ["dry_run", "fit", "is_finished", "open_reader"]


@dataclass
class State:
    """Where a run stands.

    Attributes:
        epoch: the one that is running, counted from 0.
        batch: batches of it that are done.
        step: optimiser steps so far.
        best_uar, best_epoch: of validation; -1 before the first.
        losses: training loss of each step of the running epoch.
        train_seconds, validation_seconds: spent so far, over all sessions, waiting for data included.
        finished: no further step will be made.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_uar: float = -1.0
    best_epoch: int = -1
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    finished: bool = False


def fit(experiment: Experiment, run: Run, setup: "Setup", resume: bool = False, progress: bool = True) -> State:
    """Train, validate after every epoch, keep the best and the last checkpoint.

    Args:
        experiment: what to train.
        run: where to write.
        setup: of ``set_up``, which has found what cannot work before anything was written.
        resume: go on from ``last.pt``; the result is the same as without the interruption.
        progress: show a bar on stderr.

    Raises:
        UserError: data or settings that cannot work, found before the first step wherever possible.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    training, seed = experiment.training, experiment.seed
    train, model = setup.train, setup.model
    steps = training.epochs * len(shuffled(len(train), training.batch_size, seed, 0))

    state = State()
    if resume:
        state = restore(run, experiment, setup)
    tracker = experiment.tracking.open(run.folder, run.settings, run.group)
    tracker.rewind(state.step)
    if not resume:
        dist.seed_everything(seed)
    if progress:
        print(describe(experiment, setup, steps))

    with stop_requests() as stop, progress_bar(None, "train", steps, "step", progress, state.step) as bar:
        while not state.finished:
            order = shuffled(len(train), training.batch_size, seed, state.epoch)[state.batch :]
            model.train()
            mark = time.perf_counter()
            for batch in prefetch(setup.crops(order, seed, state.epoch)):
                factor = experiment.schedule.factor(state.step, steps)
                values = train_step(experiment, setup, batch, state.epoch, factor)
                state.losses.append(values["train/loss"])
                state.step += 1
                state.batch += 1
                if state.step % experiment.tracking.every == 0:
                    tracker.log(state.step, values)
                bar.update()
                bar.set_postfix_str(f"loss {np.mean(state.losses):.3f}, best UAR {max(state.best_uar, 0):.3f}")
                now = time.perf_counter()
                state.train_seconds, mark = state.train_seconds + now - mark, now
                if stop.requested:
                    save(run.last, experiment, run, state, setup, resumable=True)
                    tracker.close()
                    raise Interrupted(f"stopped at step {state.step}; go on with: just resume {run.folder.name}")

            predictions = setup.validate(experiment)
            figures = evaluation.score(predictions)
            values = epoch_values(state, figures, predictions)
            tracker.log(state.step, values)
            state.epoch, state.batch, state.losses = state.epoch + 1, 0, []
            if better := figures["uar"] > state.best_uar:
                state.best_uar, state.best_epoch = figures["uar"], state.epoch
            patience_over = state.epoch - state.best_epoch >= training.patience
            state.finished = state.epoch == training.epochs or patience_over
            state.validation_seconds += time.perf_counter() - mark
            if progress:
                bar.write(
                    f"epoch {state.epoch:3d} of {training.epochs}  loss {values['epoch/train_loss']:.3f}  "
                    f"validation loss {values['val/loss']:.3f}  UAR {figures['uar']:.3f}{'  best' if better else ''}"
                )
            if better:
                save(run.best, experiment, run, state, setup)
            save(run.last, experiment, run, state, setup, resumable=True)
            plots.curves(run.folder / "curves.png", read_log(run.folder), run.folder.name)
            if stop.requested and not state.finished:
                tracker.close()
                raise Interrupted(f"stopped after epoch {state.epoch}; go on with: just resume {run.folder.name}")
    tracker.close()
    return state


@dataclass(frozen=True)
class Setup:
    """What the loop works with, ready on the device.

    Attributes:
        train, validation: clips of the two parts.
        reader: of their inputs.
        model, optimizer: of the experiment.
        averaged: moving average of the model's weights and statistics, or None.
        weights: of the classes, float [C].
        crop: length of a training crop, in samples or frames.
    """

    train: list[Clip]
    validation: list[Clip]
    reader: ClipReader
    model: Classifier
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    weights: Tensor
    crop: int

    @property
    def answering(self) -> Any:
        """The model that validates and is kept: the average, where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def crops(self, order: Sequence[np.ndarray], seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the training batches of ``order`` on the device."""
        for rows in order:
            batch = self.reader.crops([self.train[row] for row in rows], self.crop, seed, epoch)
            yield batch.to(self.weights.device)

    def validate(self, experiment: Experiment) -> evaluation.Predictions:
        """Predict the validation part."""
        precision = experiment.training.precision
        return evaluation.predict(self.answering, experiment.features, self.reader, self.validation, precision)


def set_up(experiment: Experiment, fit_norm: bool = True) -> Setup:
    """Open the data, check it against the model, and bring everything to the device.

    Args:
        experiment: what to train.
        fit_norm: give the model the statistics of the training part; a checkpoint brings its own.

    Raises:
        UserError: no clips, no features, or a label that the model does not know.
    """
    protocol, device = experiment.protocol, dist.device()
    if device.type == "cpu":
        dist.keep_freed_memory()
    train, validation = protocol.part("train"), protocol.part("val")
    reader = open_reader(experiment)
    check_labels([*train, *validation], reader.labels)
    if fit_norm:
        fit_input_norm(experiment, reader, train)
    model = experiment.model.to(device)
    experiment.features.front_end.to(device)
    counts = reader.targets(train).sum(0)
    weights = class_weights(counts, experiment.loss.class_weights).to(device)
    crop = round(experiment.training.crop_seconds * experiment.features.input_rate)
    averaged = None
    if decay := experiment.training.average:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return Setup(train, validation, reader, model, experiment.optimizer.build(model), averaged, weights, crop)


def train_step(experiment: Experiment, setup: Setup, batch: Batch, epoch: int, factor: float) -> dict[str, Any]:
    """Augment, forward, backward, clip, step; return what the log wants to know."""
    model, optimizer = setup.model, setup.optimizer
    training, augment, seed = experiment.training, experiment.augment, experiment.seed
    inputs, targets = batch.inputs, batch.targets
    if not experiment.features.cached:
        inputs = augment.clipwise("sound", inputs, batch.lengths, seed, epoch, batch.names)
    frames, lengths = experiment.features.frames(inputs, batch.lengths)
    frames = augment.clipwise("features", frames, lengths, seed, epoch, batch.names)
    frames, targets = augment.across(frames, targets, seed, epoch, batch.names)

    for group in optimizer.param_groups:
        group["lr"] = experiment.optimizer.lr * factor
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        logits = model(frames, lengths)
    loss = experiment.loss(logits, targets, setup.weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    value = loss.item()
    if not math.isfinite(value) or not torch.isfinite(norm):
        raise UserError(
            f"loss {value}, gradient norm {float(norm)} in a batch of {', '.join(batch.names[:4])} ...; "
            "lower train/lr, or look at these clips"
        )
    optimizer.step()
    if setup.averaged is not None:
        setup.averaged.update_parameters(model)
    return {"train/loss": value, "train/lr": experiment.optimizer.lr * factor, "train/grad_norm": float(norm)}


def epoch_values(state: State, figures: dict, predictions: evaluation.Predictions) -> dict[str, Any]:
    """Return the line of the log that closes an epoch."""
    index = [predictions.labels.index(reference) for reference in predictions.references]
    likelihoods = np.log(predictions.probabilities[np.arange(len(index)), index].clip(1e-12))
    return {
        "epoch": state.epoch + 1,
        "hours": (state.train_seconds + state.validation_seconds) / 3600,
        "epoch/train_loss": float(np.mean(state.losses)),
        "val/loss": float(-likelihoods.mean()),
        **{f"val/{name}": figures[name] for name in ("uar", "wa", "macro_f1")},
        **{f"val/recall_{label}": value for label, value in figures["recall"].items() if value is not None},
    }


def open_reader(experiment: Experiment) -> ClipReader:
    """Return the reader of what the experiment's features are made from: the feature store, or sound."""
    protocol = experiment.protocol
    source = open_source(experiment.features, protocol.table)
    return ClipReader(source, experiment.model.labels, protocol.soft_target)


def fit_input_norm(experiment: Experiment, reader: ClipReader, clips: Sequence[Clip]) -> None:
    """Give the model's corpus normalisation the statistics of the training part."""

    def frames() -> Iterator[Tensor]:
        for clip in clips:
            value = reader.read(clip).float()
            yield experiment.features.frames(value[None], torch.tensor([len(value)]))[0][0]

    for module in experiment.model.modules():
        if isinstance(module, InputNorm) and module.kind == "corpus":
            module.fit(frames())


def save(path: Path, experiment: Experiment, run: Run, state: State, setup: Setup, resumable: bool = False) -> None:
    """Write a self-describing checkpoint: the model that answers, or everything to resume from."""
    protocol = experiment.protocol
    content: dict[str, Any] = {
        "model": (setup.model if resumable else setup.answering).state_dict(),
        "config": run.config,
        "labels": list(setup.model.labels),
        "protocol": protocol_facts(protocol),
        "train_speakers": sorted({clip.speaker for clip in protocol.part("train")}),
        "state": asdict(state),
    }
    if resumable:
        rng = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        content |= {"optimizer": setup.optimizer.state_dict(), "rng": rng}
        if setup.averaged is not None:
            content["averaged"] = setup.averaged.state_dict()
    checkpoints.save(path, content)


def protocol_facts(protocol: Protocol) -> dict[str, Any]:
    """Return what must be the same when a checkpoint is used again, for its figures to mean the same."""
    clips = "".join(f"{part} {clip.clip}\n" for part in ("train", "val") for clip in protocol.parts[part])
    return {
        "corpus": protocol.corpus,
        "scheme": protocol.scheme,
        "fold": protocol.fold,
        "label_source": protocol.label_source,
        "split_sha256": protocol.split.sha256,
        "clips_sha256": hashlib.sha256(clips.encode()).hexdigest(),
    }


def check_unchanged(run: Run, protocol: Protocol, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a UserError where configuration, split or clips are not those that a checkpoint was made with."""
    if checkpoint["config"] != run.config:
        lines = set(run.config.splitlines()) ^ set(checkpoint["config"].splitlines())
        raise UserError(
            f"{run.folder / 'run.gin'}: changed since {path.name} was written ({some(sorted(lines), 2)}); "
            "undo the change, or train another run with it"
        )
    now = protocol_facts(protocol)
    for name, then in checkpoint["protocol"].items():
        if now[name] != then:
            raise UserError(
                f"{run.folder.name}: {name} changed since {path.name} was written ({str(then)[:12]}, now "
                f"{str(now[name])[:12]}); its figures would mean something else: bring the old split and clips back "
                f"(just split {protocol.corpus} {protocol.scheme}), or train another run"
            )


def restore(run: Run, experiment: Experiment, setup: Setup) -> State:
    """Bring model, average, optimiser and random numbers back to where ``last.pt`` left them."""
    content = checkpoints.load(run.last)
    check_unchanged(run, experiment.protocol, content, run.last)
    checkpoints.restore(setup.model, content["model"], run.last)
    setup.optimizer.load_state_dict(content["optimizer"])
    if setup.averaged is not None:
        checkpoints.restore(setup.averaged, content["averaged"], run.last)
    torch.set_rng_state(content["rng"]["torch"])
    if "cuda" in content["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["rng"]["cuda"])
    return State(**content["state"])


def is_finished(run: Run) -> bool:
    """Say whether the run has made its last step."""
    return run.last.is_file() and checkpoints.load(run.last)["state"]["finished"]


def describe(experiment: Experiment, setup: Setup, steps: int) -> str:
    """Say in a few lines what is about to be trained on what."""
    model, protocol, train, validation = setup.model, experiment.protocol, setup.train, setup.validation
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    missing = f", {protocol.table.missing} official clips not at hand" if protocol.table.missing else ""
    return (
        f"{type(model).__name__}: {trained:,} parameters trained of {total:,}, on {dist.device()}\n"
        f"{protocol.describe()}: {len(train)} clips of {len({c.speaker for c in train})} speakers train, "
        f"{len(validation)} of {len({c.speaker for c in validation})} validate{missing}\n"
        f"split {protocol.split.sha256[:12]}, labels {protocol.label_source}, at most {steps} steps"
    )


def dry_run(experiment: Experiment, steps: int = 50) -> None:
    """Make a few steps and print loss, gradient norm, shapes and dtypes; nothing is written.

    Raises:
        UserError: as ``fit``.
    """
    training, seed = experiment.training, experiment.seed
    setup = set_up(experiment)
    print(describe(experiment, setup, steps))
    dist.seed_everything(seed)
    setup.model.train()
    epochs = -(-steps // len(shuffled(len(setup.train), training.batch_size, seed, 0)))
    plan = [(e, rows) for e in range(epochs) for rows in shuffled(len(setup.train), training.batch_size, seed, e)]
    for step, (epoch, rows) in enumerate(plan[:steps], start=1):
        started = time.perf_counter()
        (batch,) = setup.crops([rows], seed, epoch)
        values = train_step(experiment, setup, batch, epoch, experiment.schedule.factor(step - 1, steps))
        if step == 1:
            for name, tensor in (("inputs", batch.inputs), ("lengths", batch.lengths), ("targets", batch.targets)):
                print(f"  {name}: {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
            print(f"  class weights: {[round(weight, 3) for weight in setup.weights.tolist()]}")
        if step == 1 or step % 10 == 0 or step == steps:
            print(
                f"step {step:3d}  loss {values['train/loss']:.4f}  gradient norm {values['train/grad_norm']:.3f}  "
                f"lr {values['train/lr']:.2e}  {1000 * (time.perf_counter() - started):.0f} ms"
            )
    logits = setup.validate(experiment).logits
    print(f"validation: logits {list(logits.shape)}, all finite")
