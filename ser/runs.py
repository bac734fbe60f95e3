"""One run from its configuration to its figures: create, train, evaluate, cross-validate."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser import checkpoints, config, evaluation, splits, training
from ser.batches import ClipReader, SoundSource, check_labels
from ser.errors import UserError, some
from ser.experiment import Experiment, Run
from ser.features import FeatureStore
from ser.files import locked, outputs_folder, read_json, run_folder, write_json, write_text
from ser.interrupts import Interrupted
from ser.labels import label_set, shared_labels
from ser.metadata import Clip, read_table
from ser.tracking import environment

__all__ = ["create", "cross", "cross_validate", "evaluate", "reopen", "train"]


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
    return experiment, Run(outputs_folder() / name, text, config.settings(text), settings.name)


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
    return config.build(settings), Run(folder, text, config.settings(text), settings.name)


def train(experiment: Experiment, run: Run, progress: bool = True) -> bool:
    """Train a run in its folder; an interrupted one goes on, a finished one is left alone.

    Returns:
        False where Ctrl-C or SIGTERM stopped it.

    Raises:
        UserError: as ``training.fit``, or another process is training the run.
    """
    with locked(run.folder / ".lock", f"{run.folder}: another process is training this run; wait for it or stop it"):
        resume = run.last.is_file()
        write_text(run.folder / "run.gin", run.config)
        write_text(outputs_folder() / "last", run.folder.name + "\n")
        if resume and training.is_finished(run):
            print(f"{run.folder}: already trained with these settings; remove the folder to train again")
            return True
        write_json(run.folder / "environment.json", environment())
        print(f"{'resuming' if resume else 'training'} {run.folder}")
        try:
            state = training.fit(experiment, run, resume, progress)
        except Interrupted as stopped:
            print(stopped)
            return False
    print(
        f"best validation UAR {state.best_uar:.3f} at epoch {state.best_epoch} of {state.epoch}, "
        f"{(state.train_seconds + state.validation_seconds) / 60:.1f} min\n{run.best}\n{run.folder / 'curves.png'}"
    )
    return True


def trained(name: str) -> tuple[Experiment, Run]:
    """Reopen a run with its best weights in the model, on the device.

    Raises:
        UserError: not trained yet, or the split was changed since.
    """
    experiment, run = reopen(name)
    checkpoint = checkpoints.load(run.best)
    checkpoints.restore(experiment.model, checkpoint["model"], run.best)
    protocol = experiment.protocol
    if protocol.split.sha256 != checkpoint["split_sha256"]:
        raise UserError(
            f"{splits.split_path(protocol.corpus, protocol.scheme)}: changed since {run.folder.name} was trained "
            f"({protocol.split.sha256[:12]}, then {checkpoint['split_sha256'][:12]}); "
            f"its figures would mean something else: restore it with just split {protocol.corpus} {protocol.scheme}"
        )
    device = training.dist.device()
    experiment.model.to(device)
    experiment.features.front_end.to(device)
    return experiment, run


def evaluate(name: str, part: str = "test", progress: bool = True) -> tuple[Path, dict[str, Any]]:
    """Score a run on one part of its own protocol; return the folder written and the metrics.

    Raises:
        UserError: no such run or part, no clip of it at hand, or a speaker that the model was trained on.
    """
    experiment, run = trained(name)
    protocol = experiment.protocol
    clips = protocol.part(part)
    independent = protocol.split.speaker_independent
    if independent:
        check_unseen(run, clips, protocol.corpus)
    predictions = predict(experiment, protocol.corpus, clips, progress)
    label = f"{protocol.corpus}-{protocol.scheme}-{part}"
    scorings = evaluation.count_scoring(run.folder, label) if part == "test" else 0
    about = about_run(experiment, run) | {
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": protocol.fold,
        "part": part,
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "speaker_independent": independent,
        "tags": tags_of(experiment),
        "test_scorings": scorings,
    }
    folder = run.folder / "eval" / label
    return folder, evaluation.write_evaluation(folder, predictions, about)


def cross(name: str, corpus: str, calm: str = "neutral", progress: bool = True) -> tuple[Path, dict[str, Any]]:
    """Score a run on every clip of another corpus, over the labels that both share.

    Args:
        name: of the run.
        corpus: the other corpus.
        calm: one of ``labels.CALM_POLICIES``.
        progress: show a bar.

    Raises:
        UserError: the run's own corpus, or too few shared labels.
    """
    experiment, run = trained(name)
    own = experiment.protocol.corpus
    if corpus == own:
        raise UserError(f"{run.folder.name} was trained on {corpus} itself; score its test part with: just eval {name}")
    model_labels = experiment.model.labels
    shared, mapping = shared_labels(model_labels, label_set(corpus), calm)
    table = read_table(corpus)
    clips = [clip for clip in table.clips if clip.emotion in mapping]
    left_out = sorted({clip.emotion for clip in table.clips} - mapping.keys())
    predictions = predict(experiment, corpus, clips, progress).mapped(shared, mapping)
    label = f"{corpus}-none-all"
    about = about_run(experiment, run) | {
        "corpus": corpus,
        "split_scheme": "none",
        "fold": None,
        "part": "all",
        "split_sha256": experiment.protocol.split.sha256,
        "clips_missing": table.missing,
        "tags": ["cross-corpus", *tags_of(experiment)],
        "test_scorings": evaluation.count_scoring(run.folder, label),
        "calm_policy": calm,
        "left_out": {emotion: sum(clip.emotion == emotion for clip in table.clips) for emotion in left_out},
    }
    folder = run.folder / "eval" / label
    return folder, evaluation.write_evaluation(folder, predictions, about)


def predict(experiment: Experiment, corpus: str, clips: Sequence[Clip], progress: bool) -> evaluation.Predictions:
    """Run the model over clips of any corpus."""
    features = experiment.features
    source = FeatureStore(corpus, features) if features.cached else SoundSource(read_table(corpus))
    reader = ClipReader(source, experiment.model.labels)
    if corpus == experiment.protocol.corpus:
        check_labels(clips, reader.labels)
    return evaluation.predict(experiment.model, features, reader, clips, experiment.training.precision, progress)


def tags_of(experiment: Experiment) -> list[str]:
    """Return what a reader must know of every figure of a run."""
    return [] if experiment.protocol.split.speaker_independent else ["speaker-dependent"]


def check_unseen(run: Run, clips: Sequence[Clip], corpus: str) -> None:
    """Raise a UserError where a speaker to be scored is among those that the model was trained on."""
    seen = set(checkpoints.load(run.best)["train_speakers"])
    leaking = sorted({clip.speaker for clip in clips} & seen)
    if leaking:
        raise UserError(f"{run.folder.name}: was trained on speakers of this part of {corpus}: {some(leaking)}")


def about_run(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Return what stands beside every figure of a run."""
    model = experiment.model
    state = checkpoints.load(run.last)["state"]
    return {
        "run": run.folder.name,
        "model": type(model).__name__,
        "parameters_total": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "hours": round((state["train_seconds"] + state["validation_seconds"]) / 3600, 3),
        "trained_on": experiment.protocol.describe(),
        "label_source": experiment.protocol.label_source,
        "speaker_independent": True,
    }


def cross_validate(
    experiment: str, overrides: Sequence[str] = (), progress: bool = True
) -> tuple[Path, dict[str, Any]] | None:
    """Train and test every fold of the experiment's scheme, then pool the out-of-fold predictions.

    Finished folds are kept, an interrupted one goes on; each test fold is scored once.

    Returns:
        The folder written and the pooled metrics, or None where training was interrupted.

    Raises:
        UserError: a scheme without folds, or as ``train`` and ``evaluate``.
    """
    first, head = create(config.load(experiment, [*overrides, "split/fold = 1"]))
    folds = first.protocol.split.folds
    if not folds:
        raise UserError(f"scheme '{first.protocol.scheme}' has no folds to cross-validate; choose one that has")
    results, predictions = [], []
    for fold in range(1, folds + 1):
        fold_experiment, run = create(config.load(experiment, [*overrides, f"split/fold = {fold}"]))
        print(f"\nfold {fold} of {folds}")
        if not train(fold_experiment, run, progress):
            return None
        protocol = fold_experiment.protocol
        folder = run.folder / "eval" / f"{protocol.corpus}-{protocol.scheme}-test"
        if not (folder / "metrics.json").is_file():
            folder, _ = evaluate(str(run.folder), "test", progress)
        results.append(read_json(folder / "metrics.json"))
        predictions.append(evaluation.read_predictions(folder / "predictions.csv"))
        print(f"fold {fold}: test UAR {results[-1]['uar']:.3f}, WA {results[-1]['wa']:.3f}")
    cv_folder = outputs_folder() / head.folder.name.replace("-fold1-", "-cv-")
    protocol = first.protocol
    about = {
        **{key: results[0][key] for key in ("model", "parameters_total", "parameters_trained", "label_source")},
        "run": cv_folder.name,
        "hours": round(sum(result["hours"] for result in results), 3),
        "trained_on": f"{protocol.corpus} {protocol.scheme}, each fold on the others",
        "speaker_independent": True,
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": None,
        "part": "test",
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "tags": ["pooled-folds", *tags_of(first)],
        "test_scorings": max(result["test_scorings"] for result in results),
        "folds": [
            {"fold": number, "run": result["run"], **{name: result[name] for name in evaluation.metrics.FIGURES}}
            for number, result in enumerate(results, start=1)
        ],
    }
    folder = cv_folder / "eval" / f"{protocol.corpus}-{protocol.scheme}-test"
    return folder, evaluation.write_evaluation(folder, evaluation.pool(predictions), about)
