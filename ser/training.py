"""``fit(experiment)``: the loop, readable from top to bottom. gin has done its work before this begins."""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from ser import dist, evaluation, plots
from ser.batches import Batch
from ser.errors import UserError
from ser.experiment import Experiment, Run
from ser.interfaces import Solvable
from ser.interrupts import Interrupted, stop_requests
from ser.progress import progress as progress_bar
from ser.samplers import prefetch
from ser.solving import solve
from ser.state import State, epoch_values, restore, save
from ser.tracking import read_log
from ser.workbench import Setup, describe, set_up

__all__ = ["dry_run", "fit"]


def fit(experiment: Experiment, run: Run, setup: Setup, resume: bool = False, progress: bool = True) -> State:
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
    model = setup.model
    steps = training.epochs * len(setup.order(training, seed, 0))

    state = State()
    if resume:
        state = restore(run, experiment, setup)
    tracker = experiment.tracking.open(run.folder, run.settings, run.group)
    tracker.rewind(state.step)
    if not resume:
        dist.seed_everything(seed)
    if progress:
        print(describe(experiment, setup, steps))
    if isinstance(model, Solvable) and model.solves:
        solve(experiment, run, setup, state, tracker, progress)
        return state

    with stop_requests() as stop, progress_bar(None, "train", steps, "step", progress, state.step) as bar:
        while not state.finished:
            order = setup.order(training, seed, state.epoch)[state.batch :]
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
        group["lr"] = experiment.optimizer.lr * group["scale"] * factor
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        if setup.embeddings is None:
            logits = model(frames, lengths, batch.speakers)
        else:
            embedding = model.embed(frames, lengths)
            logits = model.classify(embedding, setup.embeddings.of(batch.clips, embedding, f"{seed}/{epoch}/"))
    loss = experiment.loss(logits, targets, setup.weights, setup.prior)
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
        setup.averaged.update()
    return {"train/loss": value, "train/lr": experiment.optimizer.lr * factor, "train/grad_norm": float(norm)}


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
    epochs = -(-steps // len(setup.order(training, seed, 0)))
    plan = [(e, rows) for e in range(epochs) for rows in setup.order(training, seed, e)]
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
