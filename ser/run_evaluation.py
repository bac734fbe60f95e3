"""A trained run scored on a part of its own protocol, and what stands beside every figure of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import checkpoints, evaluation, metrics
from ser.batches import ClipReader, Source, check_labels, open_source
from ser.environment import commits
from ser.errors import UserError, some
from ser.experiment import Experiment, Run
from ser.initial_weights import start_tags
from ser.interfaces import normalised_by_speaker
from ser.labels import label_set
from ser.metadata import Clip, read_table, sound_facts
from ser.metrics_file import current_figures, highest
from ser.predictions import Predictions
from ser.protocol import Protocol
from ser.runs import TrainedRun, load_trained
from ser.scoring_count import count_scoring
from ser.tracking import read_log
from ser.training_state import check_inputs, check_made_with, check_unchanged
from ser.votes import Votes, plurality

__all__ = [
    "about_run",
    "embeddings",
    "evaluate",
    "evaluated",
    "how_chosen",
    "is_current",
    "predict_clips",
    "raters",
    "scorable",
    "seen_tags",
    "tags_of",
]


def evaluate(
    name: str,
    part: str = "test",
    label_source: str = "",
    speaker_clips: int | None = None,
    progress: bool = True,
    seen: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Score a run on one part of its own protocol; return the folder written and the metrics.

    Args:
        name: of the run.
        part: test (counted) or val.
        label_source: other labels than those that the run was trained with.
        speaker_clips: of each speaker to normalise by, the scored clip among them; None for all of the part. For
            models that normalise by speaker.
        progress: show a bar.
        seen: go on although the model was trained on speakers of the part; the figures carry the tag
            ``speakers-seen``.

    Raises:
        UserError: no such run or part, no clip of it at hand, or a speaker that the model was trained on.
    """
    trained = load_trained(name)
    if speaker_clips is not None and (speaker_clips < 1 or not normalised_by_speaker(trained.experiment.model)):
        raise UserError(
            f"speaker_clips is {speaker_clips}; expected 1 or more, and a model that normalises by speaker "
            f"({trained.run.folder.name} {'does' if normalised_by_speaker(trained.experiment.model) else 'does not'})"
        )
    protocol = trained.experiment.protocol
    if label_source and label_source != protocol.label_source:
        protocol = replace(protocol, label_source=label_source)
    clips = protocol.part(part)
    tags = [*seen_tags(trained, clips, part, seen), *tags_of(trained)]
    clips = scorable(protocol, part)
    members = [clip for clip in protocol.members[part] if clip.corpus == protocol.corpus]
    predictions = predict_clips(
        trained, protocol.corpus, clips, members, speaker_clips=speaker_clips, progress=progress
    )
    heard = raters(protocol.votes, protocol.label_source, clips, protocol.labels)  # before the scoring is counted
    what, how = protocol.evaluation_name(part), ""
    if protocol.label_source != trained.experiment.protocol.label_source:
        how += f"-{protocol.label_source}"
    if speaker_clips is not None:
        how += f"-speaker{speaker_clips}"
    times = count_scoring(trained.run.folder, what, how) if part == "test" else 0
    about = about_run(trained) | {
        "corpus": protocol.corpus,
        "split_scheme": protocol.scheme,
        "fold": protocol.fold,
        "part": part,
        "label_source": protocol.label_source,
        "split_sha256": protocol.split.sha256,
        "clips_missing": protocol.table.missing,
        "sound": sound_facts(protocol.table, clips),
        "raters": heard,
        "speaker_independent": protocol.speaker_independent and "speakers-seen" not in tags,
        "tags": tags,
        "speaker_clips": speaker_clips,
        "test_scorings": times,
    }
    folder = trained.run.folder / "eval" / f"{what}{how}"
    tempered = None if trained.temperature == 1 else predictions.tempered(trained.temperature)
    return folder, evaluation.write_evaluation(folder, predictions, about, clips, tempered)


def scorable(protocol: Protocol, part: str) -> list[Clip]:
    """Return the clips of a part that are of the corpus and have a label; votes on the others may still have taught."""
    return [clip for clip in protocol.part(part) if clip.corpus == protocol.corpus and clip.emotion]


def predict_clips(
    trained: TrainedRun,
    corpus: str,
    clips: Sequence[Clip],
    enrolled: Sequence[Clip],
    *,
    speaker_clips: int | None = None,
    source: Source | None = None,
    progress: bool = True,
) -> Predictions:
    """Run a trained model over clips of any corpus.

    Args:
        trained: the run that answers.
        corpus: of the clips.
        clips: to answer.
        enrolled: clips that, labelled or not, tell of their speakers.
        speaker_clips: as of ``evaluate``.
        source: of the inputs; without it what the experiment reads.
        progress: show a bar.

    Raises:
        UserError: clips or features that are not at hand, or features made with other weights than the model learned
            from.
    """
    experiment = trained.experiment
    reader = reader_of(trained, corpus, enrolled, speaker_clips, source)
    if corpus == experiment.protocol.corpus:
        check_labels(clips, reader.labels)
    precision = experiment.training.precision
    return evaluation.predict(experiment.model, experiment.features, reader, clips, precision, progress, enrolled)


def reader_of(
    trained: TrainedRun,
    corpus: str,
    enrolled: Sequence[Clip],
    speaker_clips: int | None = None,
    source: Source | None = None,
) -> ClipReader:
    """Return what reads clips for a trained model; arguments and errors as of ``predict_clips``."""
    model = trained.experiment.model
    source = open_source(trained.experiment.features, read_table(corpus)) if source is None else source
    check_made_with(trained.run.best, trained.checkpoint, source.made_with)
    told = enrolled if normalised_by_speaker(model) == "inputs" else None
    return ClipReader(source, model.labels, enrolled=told, limit=speaker_clips)


def embeddings(trained: TrainedRun, part: str, progress: bool = True) -> tuple[list[Clip], torch.Tensor]:
    """Return the clips of a part, and what the model makes of each before it classifies it, float32 [N, E].

    A model that normalises its embedding by speaker does so afterwards: these are before.

    Raises:
        UserError: no such part, or as ``predict_clips``.
    """
    experiment = trained.experiment
    protocol, model = experiment.protocol, experiment.model
    clips, members = (
        [clip for clip in every if clip.corpus == protocol.corpus]
        for every in (protocol.part(part), protocol.members[part])
    )
    reader = reader_of(trained, protocol.corpus, members)
    precision = experiment.training.precision
    made = evaluation.over_clips(model, experiment.features, reader, clips, model.embed, precision, progress)
    return clips, made.float()


def raters(
    votes: Mapping[str, Votes], label_source: str, clips: Sequence[Clip], classes: Sequence[str]
) -> dict[str, float] | None:
    """Return the figures of the people who only heard these clips, a reference line.

    None without all their votes, and against labels that are these votes.

    Their answer is the plurality of their votes for the classes, between which a model had to choose, too; a tie is an
    error.
    """
    if label_source in ("voice", "voice_soft") or any(clip.clip not in votes for clip in clips):
        return None
    labels = [label for label in label_set("crema_d") if label in classes]
    index = {label: number for number, label in enumerate(labels)}
    references = np.array([index[clip.emotion] for clip in clips])
    wanted = [label in classes for label in label_set("crema_d")]
    heard = [
        plurality([count * want for count, want in zip(votes[clip.clip].voice, wanted, strict=True)]) for clip in clips
    ]
    answers = np.array([index.get(label, len(labels)) for label in heard])
    counts = metrics.confusion(references, answers, len(labels) + 1)
    return {"wa": float(metrics.wa(counts)), "uar": float(metrics.uar(counts))}


def tags_of(trained: TrainedRun) -> list[str]:
    """Return what a reader must know of every figure of a run."""
    begun = start_tags(trained.checkpoint["state"].get("start"))
    skipped = ["clips-skipped"] if trained.checkpoint.get("skipped") else []
    return [*trained.experiment.tags, *begun, *skipped, *([] if trained.finished else ["unfinished"])]


def seen_tags(trained: TrainedRun, clips: Sequence[Clip], part: str, seen: bool) -> list[str]:
    """Return ``speakers-seen`` where a model was trained on clips to be scored, or on their speakers, else nothing.

    Only a scheme that is known to share its speakers may share them; no scheme shares its clips.

    Raises:
        UserError: it was trained on them, and ``seen`` does not ask for their figures all the same.
    """
    if part == "train" and not seen:
        raise UserError("part 'train': what a model was trained on is not scored; choose val or test")
    experiment = trained.experiment
    leaking = sorted({clip.speaker for clip in clips} & set(trained.checkpoint["train_speakers"]) - {""})
    if "speaker-dependent" in experiment.protocol.tags:
        leaking = []
    heard = part == "train" or (part == "val" and experiment.trains_on_validation)
    if (leaking or heard) and not seen:
        which = f"speakers of this part: {some(leaking)}" if leaking else "the clips of this part"
        validate = ""
        if heard and part == "val":
            setting = "stats/refit = False" if experiment.model.refit else "train/with_validation = False"
            validate = f"to validate, train it with '{setting}'; "
        raise UserError(
            f"{trained.run.folder.name}: was trained on {which}; its figures would say nothing of others "
            f"({validate}just seen=1 eval RUN scores it all the same, tagged)"
        )
    return ["speakers-seen"] if leaking or heard else []


def evaluated(experiment: Experiment, run: Run, part: str, progress: bool = True) -> Path:
    """Return the folder of a run's evaluation on a part of its protocol; one of today's weights and clips is kept.

    Raises:
        UserError: the run was made with other clips or another split; or as ``evaluate``.
    """
    checkpoint = checkpoints.load(run.best)
    check_unchanged(run, experiment, checkpoint, run.best)
    check_inputs(run, experiment, checkpoint)
    if is_current(run.folder, experiment.protocol, part):
        return run.folder / "eval" / experiment.protocol.evaluation_name(part)
    return evaluate(str(run.folder), part, progress=progress)[0]


def is_current(folder: Path, protocol: Protocol, part: str) -> bool:
    """Say whether a run's figures of a part of its protocol are of its best weights and of today's clips."""
    clips = scorable(protocol, part)
    wanted = {"split_sha256": protocol.split.sha256, "n_clips": len(clips)}
    figures = current_figures(folder, protocol.evaluation_name(part), **wanted)
    return figures is not None and evaluation.is_of_clips(figures, clips, sound_facts(protocol.table, clips))


def how_chosen(experiment: Experiment) -> str:
    """Say how a run's weights are chosen, in a sentence."""
    if experiment.model.solves:
        again = ", then all was solved again on both parts" if experiment.model.refit else ""
        return f"The strength of the regularisation was chosen on the validation part{again}."
    if experiment.training.with_validation:
        return "The validation part was trained on, too, for a number of epochs fixed before; nothing was chosen on it."
    if experiment.training.keep == "last":
        return "The weights are those of the last epoch; nothing was chosen on the validation part."
    return "The checkpoint was chosen on the validation part, so figures of that part are a little optimistic."


def about_run(trained: TrainedRun) -> dict[str, Any]:
    """Return what stands beside every figure of a run."""
    classifier, state = trained.experiment.model, trained.checkpoint["state"]
    log, start = read_log(trained.run.folder), state.get("start")
    return {
        "run": trained.run.folder.name,
        "model": type(classifier).__name__,
        "parameters_total": sum(p.numel() for p in classifier.parameters()),
        "parameters_trained": sum(p.numel() for p in classifier.parameters() if p.requires_grad),
        "hours": round(highest(log, "speed/hours") or 0.0, 4),
        "memory_gib": highest(log, "speed/memory_gib"),
        "checkpoint": checkpoints.identity(trained.checkpoint),
        "commits": commits(trained.run.folder),
        "temperature": trained.temperature,
        "trained_on": trained.experiment.protocol.describe()
        + "".join(
            f" ({table.missing} clips of {corpus} missing)"
            for corpus, table in trained.experiment.protocol.tables.items()
            if table.missing and corpus in trained.experiment.protocol.extra
        )
        + (", validation speakers too" if trained.experiment.trains_on_validation else "")
        + (f", begun with {start['run']}" if start else ""),
        "train_speakers": list(trained.checkpoint["train_speakers"]),
        "chosen": how_chosen(trained.experiment),
        "trained_labels": trained.experiment.protocol.label_source,
        "dropped": sorted(trained.experiment.protocol.drop),
    }
