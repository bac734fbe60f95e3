"""``just bench training``: what the loop adds to its model's own work, and what keeping and resuming a run costs."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from ser.measuring import Row, compare, limited, timed

__all__ = ["prepared_demo", "training"]


def training() -> list[Row]:
    """Time ``fit`` on cached features against a bare loop of the same forward, backward and step, on the demo corpus.

    The bare loop has its batches ready, does not augment, average or log. What is allowed for a checkpoint and for
    resuming is a share of an epoch of the same run.
    """
    import torch

    from ser import config, runs, training_state
    from ser import training as loop
    from ser.tracking import read_log
    from ser.training_setup import set_up

    quick = ["train/epochs = 2", "track/wandb = 'off'", "ecapa/channels = 128"]
    with prepared_demo(), tempfile.TemporaryDirectory() as folder:
        settings = config.load("demo_ecapa", quick)
        experiment, run = runs.create(settings)
        run = replace(run, folder=Path(folder))
        setup = set_up(experiment)
        order = setup.order(0)
        batches = [part for (part,) in setup.pieces(order, 0)]
        waiting: list[float] = []
        epochs: list[float] = []

        def fit() -> float:
            fresh, _ = runs.create(settings)
            (run.folder / "log.jsonl").unlink(missing_ok=True)
            reached = loop.fit(run, set_up(fresh), progress=False)
            waiting.extend(line["speed/waiting"] for line in read_log(run.folder) if "speed/waiting" in line)
            epochs.append((reached.train_seconds + reached.validation_seconds) / reached.epoch)
            return reached.train_seconds / reached.step

        def bare() -> float:
            setup.model.train()
            started = time.perf_counter()
            for batch in batches:
                logits = setup.model(batch.inputs, batch.lengths)
                loss = torch.nn.functional.cross_entropy(logits, batch.targets)
                setup.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(setup.model.parameters(), experiment.training.clip_norm)
                setup.optimizer.step()
            return (time.perf_counter() - started) / len(batches)

        def resume() -> None:
            fresh, _ = runs.create(settings)
            training_state.restore(run, set_up(fresh, fresh=False), scaler)

        saved = timed(lambda: training_state.save(run.last, run, setup, training_state.State(), scaler))
        resumed = timed(resume)
        scaler = torch.amp.GradScaler("cpu", enabled=False)  # type: ignore[attr-defined]
        step = compare("a step of fit, all included, against a bare loop, s", fit, bare, 1.03, repeats=7)
        epoch = median(epochs)
        return [
            step,
            limited("share of a step spent waiting for stored features", median(waiting), 0.02),
            limited("a checkpoint to resume from, written (a hundredth of an epoch), s", middle(saved), epoch / 100),
            limited("resuming, data opened again (an epoch), s", middle(resumed), epoch),
        ]


def middle(measure: Callable[[], float]) -> float:
    """Return the median of some measurements."""
    return median(measure() for _ in range(7))


@contextmanager
def prepared_demo() -> Iterator[None]:
    """Make, prepare and extract the demo corpus in a home of its own, so that a benchmark needs nothing before it."""
    from ser import config, corpora, demo, metadata, preparing, schemes, splits
    from ser.extraction import extract
    from ser.files import corpus_folder

    before = os.environ.get("SER_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["SER_HOME"] = home
        try:
            raw = corpus_folder("demo") / "raw"
            demo.make(raw)
            clips, missing = preparing.clips_of(corpora.corpus_named("demo"), raw)
            metadata.write_table("demo", clips)
            metadata.remember_raw("demo", raw, missing)
            splits.write_split(schemes.make_split("demo", "holdout"))
            extract(metadata.read_table("demo"), config.load_features("logmel80"))
            yield
        finally:
            os.environ.pop("SER_HOME") if before is None else os.environ.update(SER_HOME=before)
