"""Cross-validation: every fold trained and tested, one after the other or several at once, then pooled."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ser import checkpoints, config, evaluation, metrics
from ser.errors import UserError
from ser.evaluating import evaluate, made_with, raters
from ser.experiment import Experiment, Run
from ser.files import PROJECT, outputs_folder, read_json
from ser.interrupts import stop_requests
from ser.predictions import pool, read_predictions
from ser.progress import cores
from ser.runs import create, train
from ser.starting import read_start
from ser.state import check_unchanged

__all__ = ["cross_validate"]

SAME_IN_FOLDS = ("model", "parameters_total", "parameters_trained", "label_source", "trained_labels", "dropped")
POLL_SECONDS = 0.2


def cross_validate(
    experiment: str, overrides: Sequence[str] = (), progress: bool = True, jobs: int = 1, gpus: int = 1
) -> tuple[Path, dict[str, Any]] | int:
    """Train and test every fold of the experiment's scheme, then pool the out-of-fold predictions.

    Finished folds are kept, an interrupted one goes on; each test fold is scored once.

    Args:
        experiment, overrides: as of ``config.load``.
        progress: show bars; not of folds that train in processes of their own.
        jobs: folds that train at the same time.
        gpus: processes that share each training.

    Returns:
        The folder written and the pooled metrics, or the exit status where training was interrupted.

    Raises:
        UserError: a scheme without folds, or as ``train`` and ``evaluate``.
    """
    first, head = create(config.load(experiment, [*overrides, "split/fold = 1"]))
    folds = first.protocol.split.folds
    if not folds:
        raise UserError(f"scheme '{first.protocol.scheme}' has no folds to cross-validate; choose one that has")
    if jobs < 1 or gpus < 1:
        raise UserError(f"jobs is {jobs} and gpus {gpus}; expected 1 or more")
    if start := first.training.start:
        for fold in range(1, folds + 1):  # before any is trained: it may have heard the speakers of one of them
            read_start(start, replace(first.protocol, fold=fold))
    apart = jobs > 1 or gpus > 1
    cv_folder = outputs_folder() / head.folder.name.replace("-fold1-", "-cv-")
    if apart and (status := train_apart(experiment, overrides, folds, jobs, gpus, cv_folder)):
        return status
    results, predictions, tempered, scored = [], [], [], []
    for fold in range(1, folds + 1):
        fold_experiment, run = create(config.load(experiment, [*overrides, f"split/fold = {fold}"]))
        print(f"\nfold {fold} of {folds}")
        if status := train(fold_experiment, run, progress):
            return status
        protocol = fold_experiment.protocol
        folder = run.folder / "eval" / f"{protocol.corpus}-{protocol.scheme}-test"
        if not is_current(folder / "metrics.json", run, fold_experiment):
            folder, _ = evaluate(str(run.folder), "test", progress=progress)
        results.append(read_json(folder / "metrics.json"))
        predictions.append(read_predictions(folder / "predictions.csv"))
        tempered.append(predictions[-1].tempered(results[-1]["temperature"]))
        scored += protocol.part("test")
        print(f"fold {fold}: test UAR {results[-1]['uar']:.3f}, WA {results[-1]['wa']:.3f}")
    protocol = first.protocol
    about = {
        **{key: results[0][key] for key in SAME_IN_FOLDS},
        "run": cv_folder.name,
        "hours": round(sum(result["hours"] for result in results), 3),
        "trained_on": f"{protocol.corpus} {protocol.scheme}, each fold on the others",
        "speaker_independent": not protocol.tags,
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": None,
        "part": "test",
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "raters": raters(protocol.votes, protocol.label_source, scored),
        "tags": ["pooled-folds", *results[0]["tags"]],
        "test_scorings": max(result["test_scorings"] for result in results),
        "over_folds": {name: mean_and_spread([result[name] for result in results]) for name in metrics.FIGURES},
        "folds": [
            {"fold": number, "run": result["run"], **{name: result[name] for name in metrics.FIGURES}}
            for number, result in enumerate(results, start=1)
        ],
    }
    folder = cv_folder / "eval" / f"{protocol.corpus}-{protocol.scheme}-test"
    return folder, evaluation.write_evaluation(folder, pool(predictions), about, scored, pool(tempered))


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and standard deviation (of a sample) of some runs' figures."""
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def is_current(path: Path, run: Run, experiment: Experiment) -> bool:
    """Say whether figures were made with a run's best checkpoint, today's split and all clips that are at hand.

    Raises:
        UserError: the run itself was made with other clips or another split.
    """
    best = checkpoints.load(run.best)
    check_unchanged(run, experiment, best, run.best)
    if not path.is_file():
        return False
    figures = read_json(path)
    wanted = {"split_sha256": experiment.protocol.split.sha256, "n_clips": len(experiment.protocol.part("test"))}
    return made_with(figures, best) and all(figures.get(name) == value for name, value in wanted.items())


def train_apart(experiment: str, overrides: Sequence[str], folds: int, jobs: int, gpus: int, folder: Path) -> int:
    """Train the folds in processes of their own, ``jobs`` of them at once; return 0, or the status of a signal.

    What each prints goes to ``fold<k>.log`` in ``folder``. A signal is handed on, and waited for until all is saved.

    Raises:
        UserError: a fold failed; the others that were running have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(range(1, folds + 1))
    running: dict[int, tuple[subprocess.Popen, int]] = {}  # the process of a fold, and its slot
    ended: dict[int, int] = {}
    with stop_requests() as stop:
        while running or (waiting and not stop.signal and not any(ended.values())):
            while waiting and len(running) < jobs and not stop.signal and not any(ended.values()):
                fold = waiting.pop(0)
                slot = min(set(range(jobs)) - {place for _, place in running.values()})
                log = folder / f"fold{fold}.log"
                print(f"fold {fold} of {folds}: {log}", flush=True)
                running[fold] = start(experiment, [*overrides, f"split/fold = {fold}"], gpus, slot, jobs, log), slot
            time.sleep(POLL_SECONDS)
            if stop.signal:
                for process, _ in running.values():
                    # torchrun hands SIGTERM on to its processes, and knows no SIGUSR1.
                    process.send_signal(signal.SIGTERM if gpus > 1 else stop.signal)
                for process, _ in running.values():
                    process.wait()
                print(f"stopped; folds {', '.join(map(str, running))} are saved: the same command goes on")
                return stop.status
            for fold in [fold for fold, (process, _) in running.items() if process.poll() is not None]:
                ended[fold] = running.pop(fold)[0].returncode
                if not ended[fold]:
                    print(f"fold {fold}: trained", flush=True)
    for fold, status in ended.items():
        if status:
            log = folder / f"fold{fold}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"fold {fold} ended with status {status}: {''.join(last)[:200]} (see {log})")
    return 0


def start(experiment: str, overrides: Sequence[str], gpus: int, slot: int, jobs: int, log: Path) -> subprocess.Popen:
    """Start the training of a fold; ``slot`` of ``jobs`` has GPUs and cores of its own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // (jobs * gpus)))} | os.environ
    if (count := torch.cuda.device_count()) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str((slot * gpus + place) % count) for place in range(gpus))
    command = [sys.executable, *launch, str(PROJECT / "tools/train.py"), experiment, *overrides]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
