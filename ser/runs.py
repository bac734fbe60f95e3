"""One run from its configuration to its figures: create, train, evaluate, on its own corpus or another."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ser import checkpoints, config, dist, evaluation, metrics, training
from ser.batches import ClipReader, check_labels, open_source
from ser.errors import UserError, some
from ser.experiment import Experiment, Run
from ser.files import locked, outputs_folder, read_json, run_folder, write_json, write_text
from ser.interrupts import Interrupted
from ser.labels import CALM_POLICIES, label_set, shared_labels
from ser.layers import normalises_by_speaker
from ser.metadata import Clip, read_table
from ser.predictions import Predictions
from ser.state import check_unchanged, is_finished
from ser.tracking import environment, read_log
from ser.votes import Votes, plurality, stored_votes
from ser.workbench import set_up

__all__ = ["create", "cross", "evaluate", "raters", "reopen", "tags_of", "train"]


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


def train(experiment: Experiment, run: Run, progress: bool = True) -> int:
    """Train a run in its folder; an interrupted one goes on, a finished one is left alone.

    Returns:
        Exit status: 0, or where a signal stopped it that of ``interrupts.Interrupted``.

    Raises:
        UserError: as ``training.fit``, or another process is training the run.
    """
    resume = run.last.is_file()
    if resume and is_finished(run):
        if dist.is_main():
            print(f"{run.folder}: already trained with these settings; remove the folder to train again")
            remember(run)
        return 0
    setup = set_up(experiment, fresh=not resume)  # what cannot work is said before anything is written
    with claimed(run):
        if dist.is_main():
            remember(run)
            if not resume:
                write_text(run.folder / "run.gin", run.config)
            record_session(run.folder / "environment.json", resume)
            print(f"{'resuming' if resume else 'training'} {run.folder}")
        try:
            state = training.fit(experiment, run, setup, resume, progress)
        except Interrupted as stopped:
            if dist.is_main():
                print(stopped)
            return stopped.status
    if dist.is_main():
        print(
            f"{experiment.training.keep} validation UAR {state.best_uar:.3f} at epoch {state.best_epoch} of "
            f"{state.epoch}, {(state.train_seconds + state.validation_seconds) / 60:.1f} min\n"
            f"{run.best}\n{run.folder / 'curves.png'}"
        )
    return 0


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
class Trained:
    """A run with its best weights in the model, on the device.

    Attributes:
        experiment, run: of the run.
        checkpoint: what ``best.pt`` says of itself.
    """

    experiment: Experiment
    run: Run
    checkpoint: dict[str, Any]

    @property
    def temperature(self) -> float:
        """What logits are to be divided by, as validation says; 1 for a checkpoint of an earlier ser."""
        return float(self.checkpoint.get("temperature", 1.0))

    @property
    def finished(self) -> bool:
        """Whether the run has made its last step; a figure made before is only provisional."""
        return self.run.last.is_file() and is_finished(self.run)


def trained(name: str) -> Trained:
    """Reopen a run with its best weights.

    Raises:
        UserError: not trained yet, or configuration, split or clips were changed since.
    """
    experiment, run = reopen(name)
    checkpoint = checkpoints.load(run.best)
    check_unchanged(run, experiment, checkpoint, run.best)
    checkpoints.restore(experiment.model, checkpoint["model"], run.best)
    device = dist.device()
    experiment.model.to(device)
    experiment.features.front_end.to(device)
    return Trained(experiment, run, checkpoint)


def evaluate(
    name: str, part: str = "test", label_source: str = "", speaker_clips: int | None = None, progress: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Score a run on one part of its own protocol; return the folder written and the metrics.

    Args:
        name: of the run.
        part: test (counted) or val.
        label_source: other labels than those that the run was trained with.
        speaker_clips: of each speaker to normalise by, the scored clip among them; None for all of the part. For
            models that normalise by speaker.
        progress: show a bar.

    Raises:
        UserError: no such run or part, no clip of it at hand, or a speaker that the model was trained on.
    """
    if part == "train":
        raise UserError("part 'train': what a model was trained on is never scored; choose val or test")
    model = trained(name)
    if speaker_clips is not None and (speaker_clips < 1 or not normalises_by_speaker(model.experiment.model)):
        raise UserError(
            f"speaker_clips is {speaker_clips}; expected 1 or more, and a model that normalises by speaker "
            f"({model.run.folder.name} {'does' if normalises_by_speaker(model.experiment.model) else 'does not'})"
        )
    protocol = model.experiment.protocol
    if label_source and label_source != protocol.label_source:
        protocol = replace(protocol, label_source=label_source)
    clips = protocol.part(part)
    check_unseen(model, clips)
    predictions = predict(model.experiment, protocol.corpus, clips, progress, speaker_clips, protocol.members[part])
    heard = raters(protocol.votes, protocol.label_source, clips)  # before the scoring is counted
    label = f"{protocol.corpus}-{protocol.scheme}-{part}"
    if protocol.label_source != model.experiment.protocol.label_source:
        label += f"-{protocol.label_source}"
    if speaker_clips is not None:
        label += f"-speaker{speaker_clips}"
    scorings = evaluation.count_scoring(model.run.folder, label) if part == "test" else 0
    about = about_run(model) | {
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": protocol.fold,
        "part": part,
        "label_source": protocol.label_source,
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "raters": heard,
        "tags": tags_of(model.experiment, model.finished),
        "speaker_clips": speaker_clips,
        "test_scorings": scorings,
    }
    folder = model.run.folder / "eval" / label
    return folder, evaluation.write_evaluation(
        folder, predictions, about, clips, predictions.tempered(model.temperature)
    )


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
    model = trained(name)
    own = model.experiment.protocol.corpus
    if corpus == own:
        raise UserError(f"{model.run.folder.name} was trained on {corpus}; score its test part with: just eval {name}")
    table = read_table(corpus)
    occurring = tuple(label for label in label_set(corpus) if label in {clip.emotion for clip in table.clips})
    shared, mapping = shared_labels(model.experiment.model.labels, occurring, calm)
    clips = [clip for clip in table.clips if clip.emotion in mapping]
    left_out = sorted({clip.emotion for clip in table.clips} - mapping.keys())
    predictions = predict(model.experiment, corpus, clips, progress, None, table.clips)
    unknown = [] if all(clip.speaker for clip in clips) else ["speakers-unknown"]
    label = f"{corpus}-none-all" + ("" if calm == CALM_POLICIES[0] else f"-{calm}")
    about = about_run(model) | {
        "corpus": corpus,
        "split_scheme": "none",
        "fold": None,
        "part": "all",
        "label_source": "intended",
        "split_sha256": model.experiment.protocol.split.sha256,
        "clips_missing": table.missing,
        "speaker_independent": not model.experiment.protocol.tags and not unknown,
        "raters": raters(stored_votes(corpus), "intended", clips),
        "tags": ["cross-corpus", *unknown, *tags_of(model.experiment, model.finished)],
        "test_scorings": evaluation.count_scoring(model.run.folder, label),
        "calm_policy": calm,
        "left_out": {emotion: sum(clip.emotion == emotion for clip in table.clips) for emotion in left_out},
    }
    folder = model.run.folder / "eval" / label
    tempered = predictions.tempered(model.temperature).mapped(shared, mapping)
    return folder, evaluation.write_evaluation(folder, predictions.mapped(shared, mapping), about, clips, tempered)


def predict(
    experiment: Experiment,
    corpus: str,
    clips: Sequence[Clip],
    progress: bool,
    speaker_clips: int | None,
    company: Sequence[Clip],
) -> Predictions:
    """Run the model over clips of any corpus; all of ``company``, labelled or not, tells it of their speakers."""
    features, table = experiment.features, read_table(corpus)
    at_inputs = normalises_by_speaker(experiment.model) and experiment.model.speakers_at == "inputs"
    enrolled = company if at_inputs else None
    source = open_source(features, table)
    reader = ClipReader(source, experiment.model.labels, enrolled=enrolled, limit=speaker_clips)
    if corpus == experiment.protocol.corpus:
        check_labels(clips, reader.labels)
    precision = experiment.training.precision
    return evaluation.predict(experiment.model, features, reader, clips, precision, progress, company)


def raters(votes: Mapping[str, Votes], label_source: str, clips: Sequence[Clip]) -> dict[str, float] | None:
    """Return the figures of the people who only heard these clips, a reference line.

    None without all their votes, and against labels that are these votes.

    Their answer is the plurality of their votes; a tie is an error.
    """
    if label_source in ("voice", "voice_soft") or any(clip.clip not in votes for clip in clips):
        return None
    labels = label_set("crema_d")
    index = {label: number for number, label in enumerate(labels)}
    references = np.array([index[clip.emotion] for clip in clips])
    heard = [plurality(votes[clip.clip].voice) for clip in clips]
    answers = np.array([index.get(label, len(labels)) for label in heard])
    counts = metrics.confusion(references, answers, len(labels) + 1)
    return {"wa": float(metrics.wa(counts)), "uar": float(metrics.uar(counts))}


def tags_of(experiment: Experiment, finished: bool = True) -> list[str]:
    """Return what a reader must know of every figure of a run."""
    dropped = ["clips-dropped"] if experiment.protocol.drop else []
    normalised = ["speaker-normalised"] if normalises_by_speaker(experiment.model) else []
    return [*experiment.protocol.tags, *normalised, *dropped, *([] if finished else ["unfinished"])]


def check_unseen(model: Trained, clips: Sequence[Clip]) -> None:
    """Raise a UserError where a speaker to be scored is among those that the model was trained on."""
    if model.experiment.protocol.tags:
        return
    leaking = sorted({clip.speaker for clip in clips} & set(model.checkpoint["train_speakers"]))
    if leaking:
        raise UserError(f"{model.run.folder.name}: was trained on speakers of this part: {some(leaking)}")


def about_run(model: Trained) -> dict[str, Any]:
    """Return what stands beside every figure of a run."""
    classifier, state = model.experiment.model, model.checkpoint["state"]
    log = read_log(model.run.folder)
    return {
        "run": model.run.folder.name,
        "model": type(classifier).__name__,
        "parameters_total": sum(p.numel() for p in classifier.parameters()),
        "parameters_trained": sum(p.numel() for p in classifier.parameters() if p.requires_grad),
        "hours": round(max((line["speed/hours"] for line in log if "speed/hours" in line), default=0.0), 4),
        "checkpoint": {"epoch": state["epoch"], "step": state["step"]},
        "temperature": model.temperature,
        "trained_on": model.experiment.protocol.describe(),
        "trained_labels": model.experiment.protocol.label_source,
        "dropped": sorted(model.experiment.protocol.drop),
        "speaker_independent": not model.experiment.protocol.tags,
    }
