"""``fit``: the loop, readable from top to bottom. gin has done its work before this begins."""

import time

import numpy as np

from ser import dist, plots
from ser.errors import Interrupted
from ser.experiment import Experiment, Run
from ser.initial_weights import start_tags
from ser.interrupts import stop_requests
from ser.progress import progress_bar
from ser.read_ahead import prefetch, timed
from ser.scoring import validation_figures
from ser.tracking import Tracker, read_log
from ser.training_setup import Setup, describe, set_up
from ser.training_solver import solve
from ser.training_state import State, epoch_values, restore, save
from ser.training_step import Stepper, check_finite

__all__ = ["dry_run", "fit"]


def fit(run: Run, setup: Setup, resume: bool = False, progress: bool = True) -> State:
    """Train, validate after every epoch, keep the best and the last checkpoint.

    Several processes that torchrun has started share each batch; the main one writes.

    Args:
        run: where to write.
        setup: what to train; of ``set_up``, which has found what cannot work before anything was written.
        resume: go on from ``last.pt``; the result is the same as without the interruption.
        progress: show a bar on stderr.

    Raises:
        UserError: data or settings that cannot work, found before the first step wherever possible.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1, also in the last validation; the state is saved.
    """
    experiment, training, model = setup.experiment, setup.experiment.training, setup.model
    steps = training.epochs * len(setup.order(0))
    stepper = Stepper(setup)
    progress = progress and dist.is_main()

    state = State(start=setup.start)
    if resume:
        state = restore(run, setup, stepper.scaler)
    tags = [*experiment.tags, *start_tags(state.start)]
    title = plots.tagged_title(run.folder.name, tags=tags)
    tracker = Tracker(experiment.tracking, run.folder, run.settings, run.group, tags)
    tracker.rewind(state.step, state.epoch)
    if not resume:
        dist.seed_everything(experiment.seed + dist.rank())
    if progress:
        print(describe(setup, steps))
    if model.solves:
        solve(run, setup, state, tracker, progress)
        return state

    with stop_requests() as stop, progress_bar(None, "train", steps, "step", progress, state.step) as bar:
        while not state.finished:
            order = setup.order(state.epoch)[state.batch :]
            model.train()
            mark = time.perf_counter()
            for parts, waited in timed(prefetch(setup.pieces(order, state.epoch))):
                factor = experiment.schedule.factor(state.step, steps)
                values = stepper.step(parts, state.epoch, factor, lambda: stop.signal)
                stopped = values.pop("stop")
                state.skipped = state.skipped + 1 if "train/skipped" in values else 0
                check_finite(state.skipped, parts, values)
                if not {"train/skipped", "train/overflow"} & set(values):
                    state.losses.append(values["train/loss"])
                state.step += 1
                state.batch += 1
                if state.step % experiment.tracking.every == 0 or state.skipped:
                    tracker.log(state.step, values)
                bar.update()
                bar.set_postfix_str(
                    f"loss {np.mean(state.losses or np.nan):.3f}, best UAR {max(state.best_uar, 0):.3f}"
                )
                now = time.perf_counter()
                state.spend(now - mark, waited)
                mark = now
                if stopped:
                    save(run.last, run, setup, state, stepper.scaler)
                    tracker.close()
                    raise Interrupted(f"stopped at step {state.step}; {how_to_go_on(run)}", stop.status)

            if dist.world_size() > 1:  # their launcher gives them half a minute to end, and validation may take longer
                save(run.last, run, setup, state, stepper.scaler)
            predictions = setup.validate() if setup.validation else None
            figures = validation_figures(predictions) if predictions else None
            values = epoch_values(state, figures, state.batch * training.batch_size)
            tracker.log(state.step, values)
            state.close_epoch()
            if better := figures is None or state.improves(figures["uar"], training):
                state.best_uar, state.best_epoch = figures["uar"] if figures else -1.0, state.epoch
            patience_over = state.epoch - state.best_epoch >= training.patience
            state.finished = state.epoch == training.epochs or patience_over
            state.validation_seconds += time.perf_counter() - mark
            if progress:
                line = f"epoch {state.epoch:3d} of {training.epochs}  loss {values['epoch/train_loss']:.3f}"
                if figures:
                    line += f"  validation loss {figures['loss']:.3f}  UAR {figures['uar']:.3f}"
                bar.write(line + ("  best" if better and figures else ""))
            if better:
                if figures and predictions:
                    tracker.confusion(state.step, figures["confusion"], predictions.labels)
                save(run.best, run, setup, state, validated=predictions)
            # Of a finished run nothing is resumed, and the optimiser of a large encoder takes gigabytes.
            save(run.last, run, setup, state, None if state.finished else stepper.scaler)
            if dist.is_main():
                plots.curves(run.folder / "curves.png", read_log(run.folder), title)
            if dist.all_gather(stop.signal) != [0] * dist.world_size():
                tracker.close()
                left = "which was the last" if state.finished else how_to_go_on(run)
                raise Interrupted(f"stopped after epoch {state.epoch}; {left}", stop.status)
    tracker.close()
    return state


def how_to_go_on(run: Run) -> str:
    """Return the command that resumes a run with as many processes."""
    processes = f"gpus={dist.world_size()} " if dist.world_size() > 1 else ""
    return f"go on with: just {processes}resume {run.folder.name}"


def dry_run(experiment: Experiment, steps: int = 50) -> None:
    """Make a few steps and print loss, gradient norm, shapes and dtypes; nothing is written.

    Raises:
        UserError: as ``fit``.
    """
    setup = set_up(experiment)
    stepper = Stepper(setup)
    print(describe(setup, steps))
    dist.seed_everything(experiment.seed)
    setup.model.train()
    epochs = -(-steps // len(setup.order(0)))
    plan = [(e, rows) for e in range(epochs) for rows in setup.order(e)]
    skipped = 0
    for step, (epoch, rows) in enumerate(plan[:steps], start=1):
        started = time.perf_counter()
        (parts,) = setup.pieces([rows], epoch)
        values = stepper.step(parts, epoch, experiment.schedule.factor(step - 1, steps))
        skipped = skipped + 1 if "train/skipped" in values else 0
        check_finite(skipped, parts, values)
        if step == 1:
            for name in ("inputs", "lengths", "targets"):
                tensor = getattr(parts[0], name)
                print(f"  {name}: {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
            print(f"  class weights: {[round(weight, 3) for weight in setup.weights.tolist()]}")
        if step == 1 or step % 10 == 0 or step == steps:
            print(
                f"step {step:3d}  loss {values['train/loss']:.4f}  gradient norm {values['train/grad_norm']:.3f}  "
                f"lr {values['train/lr']:.2e}  {1000 * (time.perf_counter() - started):.0f} ms"
            )
    if setup.validation:
        print(f"validation: logits {list(setup.validate().logits.shape)}, all finite")
