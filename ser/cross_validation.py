"""Cross-validation: every fold trained and tested, one after the other or several at once, then pooled."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ser import config, evaluation, metrics
from ser.errors import UserError
from ser.files import outputs_folder, read_json, write_text
from ser.initial_weights import read_start
from ser.launching import Job, needs_processes, train_in_processes
from ser.metrics_file import commits_of, highest
from ser.predictions import pool, read_predictions
from ser.run_evaluation import evaluated, how_chosen, raters
from ser.runs import create, train

__all__ = ["cross_validate"]

SAME_IN_FOLDS = (
    "model",
    "parameters_total",
    "parameters_trained",
    "label_source",
    "trained_labels",
    "dropped",
)


def cross_validate(
    experiment: str, overrides: Sequence[str] = (), progress: bool = True, jobs: int = 1, gpus: int = 1
) -> tuple[Path, dict[str, Any]]:
    """Train and test every fold of the experiment's scheme, then pool the out-of-fold predictions.

    Finished folds are kept, an interrupted one goes on; each test fold is scored once.

    Args:
        experiment, overrides: as of ``config.load``.
        progress: show bars; not of folds that train in processes of their own.
        jobs: folds that train at the same time.
        gpus: processes that share each training.

    Returns:
        The folder written and the pooled metrics.

    Raises:
        UserError: a scheme without folds, or as ``train`` and ``evaluate``.
    """
    first, head = create(config.load(experiment, [*overrides, "split/fold = 1"]))
    folds = first.protocol.split.folds
    if not folds:
        raise UserError(
            f"scheme '{first.protocol.scheme}' has no folds to cross-validate; choose one that "
            "has, such as: 'split/scheme = \"kfold5\"'"
        )
    if start := first.training.start:
        for fold in range(1, folds + 1):  # before any is trained: it may have heard the speakers of one of them
            read_start(start, replace(first.protocol, fold=fold))
    apart = needs_processes(jobs, gpus)
    cv_folder = outputs_folder() / head.folder.name.replace("-fold1-", "-cv-")
    trainings = [
        Job(f"fold {fold}", (*overrides, f"split/fold = {fold}"), cv_folder / f"fold{fold}.log")
        for fold in range(1, folds + 1)
    ]
    if apart:
        train_in_processes(experiment, trainings, jobs, gpus)
    results, predictions, tempered, scored = [], [], [], []
    for fold, training in enumerate(trainings, start=1):
        fold_experiment, run = create(config.load(experiment, training.overrides))
        print(f"\nfold {fold} of {folds}")
        train(fold_experiment, run, progress)
        folder = evaluated(fold_experiment, run, "test", progress)
        results.append(read_json(folder / "metrics.json"))
        predictions.append(read_predictions(folder / "predictions.csv"))
        tempered.append(predictions[-1].tempered(results[-1]["temperature"]))
        scored += fold_experiment.protocol.part("test")
        print(f"fold {fold}: test UAR {results[-1]['uar']:.3f}, WA {results[-1]['wa']:.3f}")
    protocol = first.protocol
    whole = replace(protocol, fold=None).describe()
    beyond = results[0]["trained_on"].removeprefix(protocol.describe())
    but = "" if first.trains_on_validation else " but those that validate"
    about = {
        **{key: results[0][key] for key in SAME_IN_FOLDS},
        "run": cv_folder.name,
        "hours": round(sum(result["hours"] for result in results), 3),
        "memory_gib": highest(results, "memory_gib"),
        "trained_on": f"{whole}{beyond}, each fold on the others{but}",
        "chosen": how_chosen(first),
        "speaker_independent": protocol.speaker_independent,
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": None,
        "part": "test",
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "raters": raters(protocol.votes, protocol.label_source, scored, protocol.labels),
        "tags": list(dict.fromkeys(["pooled-folds", *(tag for result in results for tag in result["tags"])])),
        "test_scorings": max(result["test_scorings"] for result in results),
        "commits": commits_of(results),
        "over_folds": {name: mean_and_spread([result[name] for result in results]) for name in metrics.FIGURES},
        "folds": [
            {"fold": number, "run": result["run"], "train_speakers": result.get("train_speakers")}
            | {"checkpoint": result.get("checkpoint")}
            | {name: result[name] for name in metrics.FIGURES}
            for number, result in enumerate(results, start=1)
        ],
    }
    write_text(cv_folder / "cv.gin", head.config)  # of the first fold: by it seeds of one setting find each other
    folder = cv_folder / "eval" / protocol.evaluation_name("test")
    return folder, evaluation.write_evaluation(
        folder,
        pool(predictions),
        about,
        scored,
        pool(tempered) if any(r["temperature"] != 1 for r in results) else None,
    )


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and standard deviation (of a sample) of some runs' figures."""
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
