"""Training without steps: a solver finds the weights, validation speakers choose how strongly it is held back."""

import time

import torch

from ser import dist, plots
from ser.experiment import Run
from ser.losses import class_weights
from ser.progress import progress_bar
from ser.scoring import validation_figures
from ser.tracking import Tracker, read_log
from ser.training_setup import Setup
from ser.training_state import State, epoch_values, save

__all__ = ["solve"]


@torch.no_grad()
def solve(
    run: Run,
    setup: Setup,
    state: State,
    tracker: Tracker,
    progress: bool = True,
) -> None:
    """Solve for each strength, keep the best on validation, and solve again on both parts where the model says so.

    In log, checkpoint and curves each strength stands for an epoch.
    """
    experiment, model = setup.experiment, setup.model
    train = setup.everything(setup.train)
    best = model.strengths[0]
    for strength in progress_bar(model.strengths, "solve", len(model.strengths), "strength", progress):
        started = time.perf_counter()
        model.solve(train, setup.weights, strength)
        state.step += 1
        state.spend(time.perf_counter() - started, 0.0)
        logits = model(train.inputs, train.lengths, train.speakers)
        state.losses = [float(experiment.loss(logits, train.targets, setup.weights, setup.prior))]
        predictions = setup.validate()
        figures = validation_figures(predictions)
        tracker.log(state.step, epoch_values(state, figures, len(setup.train)) | {"strength": strength})
        state.close_epoch()
        if better := figures["uar"] > state.best_uar:
            state.best_uar, state.best_epoch, best = figures["uar"], state.epoch, strength
            tracker.confusion(state.step, figures["confusion"], predictions.labels)
            validated = predictions
            save(run.best, run, setup, state, validated=validated)
        if progress:
            print(f"C {strength:<8g} validation UAR {figures['uar']:.3f}{'  best' if better else ''}")
    state.finished = True
    if model.refit:
        heard = [*setup.train, *setup.validation]
        weights = class_weights(setup.reader.targets(heard).sum(0), experiment.loss.class_weights)
        model.solve(setup.everything(heard), weights.to(setup.weights), best)
        save(run.best, run, setup, state, validated=validated)
    save(run.last, run, setup, state)
    if dist.is_main():
        title = plots.tagged_title(run.folder.name, tags=experiment.tags)
        plots.curves(run.folder / "curves.png", read_log(run.folder), title)
    tracker.close()
