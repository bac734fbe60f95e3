"""Across corpora: one run on another corpus, or every run on every other, with one table and one picture."""

import sys
from pathlib import Path
from typing import Any

from ser import checkpoints, evaluation, plots, scoring_count
from ser.batches import ClipReader, open_source
from ser.errors import UserError
from ser.files import outputs_folder, write_csv
from ser.labels import CALM_POLICIES, LABEL_SETS, label_set, shared_labels
from ser.layers import InputNorm
from ser.metadata import Table, clips_at_hand, metadata_path, read_table, sound_facts
from ser.metrics_file import current_figures
from ser.protocol import Protocol
from ser.run_evaluation import about_run, predict_clips, raters, tags_of
from ser.runs import TrainedRun, load_trained
from ser.splits import check_same_sound, evaluation_name
from ser.stats import columns
from ser.training_setup import fit_input_norm
from ser.votes import stored_votes
from ser.wording import aligned, estimate_of

__all__ = ["cross", "matrix", "table"]

COLUMNS = (
    "run", "trained_on", "corpus", "adapted", "calm_policy", "uar", "uar_low", "uar_high", "strict_uar",
    "strict_uar_low", "strict_uar_high", "n_clips", "n_speakers", "tags",
)  # fmt: skip


def cross(
    name: str,
    corpus: str,
    calm: str = CALM_POLICIES[0],
    adapt: bool = False,
    progress: bool = True,
    label_source: str = "intended",
) -> tuple[Path, dict[str, Any]]:
    """Score a run on every clip of another corpus, over the labels that both share.

    Args:
        name: of the run.
        corpus: the other corpus.
        calm: one of ``labels.CALM_POLICIES``.
        adapt: normalise features by the other corpus's statistics instead of the training part's; no label is looked
            at, and the figures carry the tag ``transductive``.
        progress: show a bar.
        label_source: one of ``votes.LABEL_SOURCES`` that the other corpus has.

    Raises:
        UserError: the run's own corpus, or recordings that it was trained on, too few shared labels, or a model without
            statistics to adapt.
    """
    trained = load_trained(name)
    protocol, run = trained.experiment.protocol, trained.run.folder
    if corpus == protocol.corpus:
        raise UserError(f"{run.name} was trained on {corpus}; score its test part with: just eval {name}")
    if corpus in (*protocol.extra, *trained.start_corpora):
        raise UserError(f"{run.name} was trained on {corpus}, too; its figures there would say nothing")
    table = read_table(corpus)
    labelled = Protocol(corpus, "none", label_source=label_source).labelled(table.clips, "test")
    occurring = tuple(label for label in label_set(corpus) if label in {clip.emotion for clip in labelled})
    learned = trained.experiment.trained_clips
    taught = {clip.emotion for clip in learned}  # of a table of one's own perhaps fewer than it has classes
    known = tuple(label for label in trained.experiment.model.labels if label in taught)
    shared, mapping = shared_labels(known, occurring, calm)
    clips = [clip for clip in labelled if clip.emotion in mapping]
    left_out = sorted({clip.emotion for clip in labelled} - mapping.keys())
    heard = [*learned, *clips_at_hand(trained.start_corpora)]
    where, remedy = f"{run.name} on {corpus}", "score it on another corpus"
    check_same_sound({"training": heard, corpus: clips}, where, remedy)
    if adapt:
        adapt_statistics(trained, table)
    predictions = predict_clips(trained, corpus, clips, table.clips, progress=progress)
    unknown = [] if all(clip.speaker for clip in clips) else ["speakers-unknown"]
    scored_as, whole = evaluation_of(corpus, calm, adapt, label_source), evaluation_name(corpus, "none", "all")
    about = about_run(trained) | {
        "corpus": corpus,
        "split_scheme": "none",
        "fold": None,
        "part": "all",
        "label_source": label_source,
        "split_sha256": protocol.split.sha256,
        "clips_missing": table.missing,
        "sound": sound_facts(table, clips),
        "speaker_independent": protocol.speaker_independent and not unknown,
        "raters": raters(stored_votes(corpus), label_source, clips, shared),
        "tags": [
            "cross-corpus",
            *(["transductive"] if adapt else []),
            *unknown,
            *tags_of(trained),
        ],
        "test_scorings": scoring_count.count_scoring(run, whole, scored_as.removeprefix(whole)),
        "calm_policy": calm,
        "left_out": {emotion: sum(clip.emotion == emotion for clip in labelled) for emotion in left_out},
    }
    folder = run / "eval" / scored_as
    tempered = predictions.tempered(trained.temperature).mapped(shared, mapping)
    return folder, evaluation.write_evaluation(folder, predictions.mapped(shared, mapping), about, clips, tempered)


def evaluation_of(corpus: str, calm: str, adapt: bool, label_source: str = "intended") -> str:
    """Name the evaluation on another corpus."""
    policy = "" if calm == CALM_POLICIES[0] else f"-{calm}"
    labels = "" if label_source == "intended" else f"-{label_source}"
    return f"{evaluation_name(corpus, 'none', 'all')}{policy}{labels}{'-adapted' if adapt else ''}"


def adapt_statistics(trained: TrainedRun, table: Table) -> None:
    """Give the model's normalisation the statistics of another corpus.

    Raises:
        UserError: it has none.
    """
    norms = [part for part in trained.experiment.model.modules() if isinstance(part, InputNorm) and part.fitted]
    if not norms:
        raise UserError(f"{trained.run.folder.name}: has no statistics of a corpus to adapt; leave adapt=1 out")
    reader = ClipReader(open_source(trained.experiment.features, table), trained.experiment.model.labels)
    fit_input_norm(trained.experiment, reader, table.clips)


def matrix(calm: str = CALM_POLICIES[0], progress: bool = True) -> tuple[Path, list[dict[str, Any]]]:
    """Score every run on every other prepared corpus, as it is and adapted; write ``outputs/cross/``.

    What was scored with the same weights is not scored again. What cannot be scored is said on stderr and left out.

    Returns:
        The folder written and a row of ``COLUMNS`` for each figure.

    Raises:
        UserError: nothing to score.
    """
    corpora = [corpus for corpus in LABEL_SETS if metadata_path(corpus).is_file()]
    rows = []
    for folder in sorted(path.parents[1] for path in outputs_folder().glob(f"*/{checkpoints.BEST}")):
        try:
            own = checkpoints.load(folder / checkpoints.BEST)["protocol"]["corpus"]
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for corpus in [corpus for corpus in corpora if corpus != own]:
            for adapt in (False, True):
                try:
                    metrics = scored(folder, corpus, calm, adapt, progress)
                except UserError as error:
                    print(
                        f"left out: {folder.name} on {corpus}{', adapted' if adapt else ''}: {error}", file=sys.stderr
                    )
                    continue
                rows.append(row_of(metrics, adapt))
    if not rows:
        raise UserError("no run that another prepared corpus could be scored with; train one, prepare another")
    target = outputs_folder() / "cross"
    write_csv(target / "matrix.csv", COLUMNS, rows)
    plots.cross_corpus(target / "matrix.png", rows)
    return target, rows


def scored(folder: Path, corpus: str, calm: str, adapt: bool, progress: bool) -> dict[str, Any]:
    """Return the figures of a run on a corpus, those on disk where they were made with its best weights."""
    known = read_table(corpus)
    figures = current_figures(folder, evaluation_of(corpus, calm, adapt), clips_missing=known.missing)
    if figures:
        clips = [clip for clip in known.clips if clip.emotion not in figures["left_out"]]
        if evaluation.is_of_clips(figures, clips, sound_facts(known, clips)):
            return figures
    return cross(str(folder), corpus, calm, adapt, progress)[1]


def row_of(metrics: dict[str, Any], adapt: bool) -> dict[str, Any]:
    """Return the row of one figure."""
    row = {name: metrics.get(name) for name in COLUMNS} | {"adapted": adapt, "tags": " ".join(metrics["tags"])}
    for prefix, figures in (("", metrics), ("strict_", metrics["strict"])):
        row |= columns(f"{prefix}uar", figures["uar"], figures["ci95"]["uar"])
    return row


def table(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Return the rows for people, and where the files lie."""
    lines = [("run", "corpus", "", "UAR", "strict UAR", "clips", "tags")]
    for row in rows:
        shown = [estimate_of(row, name) for name in ("uar", "strict_uar")]
        adapted = "adapted" if row["adapted"] else ""
        lines.append((row["run"], row["corpus"], adapted, *shown, str(row["n_clips"]), row["tags"]))
    calm = f"calm {rows[0]['calm_policy']}; adapted: normalised by the other corpus's statistics, no label looked at"
    return "\n".join([*aligned(lines), calm, str(folder / "matrix.csv"), str(folder / "matrix.png")])
