"""Ablations: an experiment with and without each of some changes, over several seeds, on validation speakers."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser import checkpoints, config, metrics, plots
from ser.batches import open_source
from ser.comparing import check_same
from ser.errors import UserError
from ser.experiment import Experiment
from ser.files import outputs_folder, read_json, write_csv, write_json
from ser.initial_weights import read_start
from ser.launching import Job, needs_processes, train_in_processes
from ser.metrics_file import commits_of
from ser.predictions import Predictions, read_predictions
from ser.run_evaluation import evaluated
from ser.runs import create, train
from ser.scoring import interval_reason, paired
from ser.wording import commits_text, missing_text, p_text

__all__ = ["ablate", "table"]

AS_IT_IS = "as it is"
COLUMNS = (
    "variant", "uar", "uar_sd", "wa", "difference", "ci95_low", "ci95_high", "p", "difference_lowest",
    "difference_highest", "hours", "parameters_trained", "tags",
)  # fmt: skip
SEED = re.compile(r"\s*seed\s*=")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what it changes, as it was given.
        overrides: of the experiment, for each seed.
    """

    name: str
    overrides: list[tuple[str, ...]]


@dataclass(frozen=True)
class Answered:
    """What the runs of a variant answered to the validation clips.

    Attributes:
        runs: name of each seed's run.
        predictions: of each seed.
        confusions: by seed and speaker, int64 [seeds, S, C, C].
        hours: of training, all seeds together.
        parameters: that are trained.
        tags: of the figures.
        commits: of the code that trained them.
    """

    runs: list[str]
    predictions: list[Predictions]
    confusions: np.ndarray
    hours: float
    parameters: int
    tags: list[str]
    commits: list[str]

    @property
    def uars(self) -> np.ndarray:
        """UAR of each seed."""
        return metrics.uar(self.confusions.sum(1))


def ablate(
    experiment: str,
    changes: Sequence[str],
    common: Sequence[str] = (),
    seeds: int = 3,
    jobs: int = 1,
    gpus: int = 1,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Train an experiment as it is and with each change alone, with several seeds, and compare on validation.

    The figures of a variant count the answers of all its seeds, so that its UAR is the mean of theirs. Differences are
    paired over speakers, see ``stats``. Finished runs are kept, interrupted ones go on.

    Args:
        experiment: as of ``config.load``.
        changes: each a gin binding, or several with ``;`` between.
        common: bindings of all variants.
        seeds: how many: 1, 2 and so on.
        jobs: trainings at the same time.
        gpus: processes that share each.
        progress: show bars; not of trainings in processes of their own.

    Returns:
        The folder written and the comparison.

    Raises:
        UserError: no change, one that changes nothing or the validation clips, features that are not extracted; or as
            ``create``, ``train`` and ``evaluate``.
    """
    apart = needs_processes(jobs, gpus)
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; expected 1 or more")
    variants, as_it_is, name = planned(experiment, changes, common, range(1, seeds + 1))
    if as_it_is.model.solves and seeds > 1:
        raise UserError(f"seeds is {seeds}, but a solver finds the same weights with every seed; set seeds=1")
    folder = outputs_folder() / "ablations" / name
    trainings = [
        Job(f"{variant.name}, {overrides[-1]}", overrides, folder / f"variant{number}-seed{seed}.log")
        for number, variant in enumerate(variants)
        for seed, overrides in enumerate(variant.overrides, start=1)
    ]
    if apart:
        train_in_processes(experiment, trainings, jobs, gpus)
    answers = [answered(experiment, variant, progress) for variant in variants]
    plain = answers[0]
    for own in answers:
        for run, found in zip(own.runs, own.predictions, strict=True):
            check_same(plain.predictions[0], found, [Path(plain.runs[0]), Path(run)])
    rows = [row(variant.name, plain, own) for variant, own in zip(variants, answers, strict=True)]
    result = {
        "experiment": experiment, "common": list(common), "seeds": seeds, "trained_on": as_it_is.protocol.describe(),
        "split_sha256": as_it_is.protocol.split.sha256, "chosen": what_was_chosen(as_it_is),
        "n_clips": int(plain.confusions[0].sum()),
        "n_speakers": len(set(plain.predictions[0].speakers) - {""}), "variants": rows,
        "ci95_reason": interval_reason(plain.predictions[0]),
        "clips_missing": as_it_is.protocol.table.missing,
        "commits": sorted({commit for own in answers for commit in own.commits}),
        "runs": {variant.name: own.runs for variant, own in zip(variants, answers, strict=True)},
    }  # fmt: skip
    write_json(folder / "ablation.json", result)
    write_csv(folder / "ablation.csv", COLUMNS, [line | {"tags": " ".join(line["tags"])} for line in rows])
    title = f"{experiment}: validation, {seeds} seed{'s' if seeds > 1 else ''}; as it is: UAR {rows[0]['uar']:.3f}"
    plots.ablation(folder / "ablation.png", rows, plots.tagged_title(title, tags=plain.tags))
    return folder, result


def planned(
    experiment: str, changes: Sequence[str], common: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Variant], Experiment, str]:
    """Return the variants, the experiment as it is, and a name for it all.

    Every variant is built once before any is trained, so that a mistake in the last change costs nothing.
    """
    if not changes:
        raise UserError("nothing to leave out or change; give gin bindings, such as 'train/label_smoothing = 0.0'")
    variants: list[Variant] = []
    plain: Experiment | None = None
    known: dict[str, str] = {}
    for name in (AS_IT_IS, *changes):
        own = [] if name == AS_IT_IS else [binding.strip() for binding in name.split(";") if binding.strip()]
        if any(SEED.match(binding) for binding in (*common, *own)):
            raise UserError("each variant is trained with seed = 1, 2 and so on; say how many with seeds=N")
        overrides = [(*common, *own, f"seed = {seed}") for seed in seeds]
        settings = config.load(experiment, overrides[0])
        made, run = create(settings)
        if other := known.get(run.folder.name):
            raise UserError(f"'{name}' trains the same as '{other}'; leave one of them out")
        plain = made if plain is None else plain
        check(made, plain, name)
        known[run.folder.name] = name
        variants.append(Variant(name, overrides))
    assert plain is not None
    text = " ".join([*sorted(known), str(len(seeds))])
    return variants, plain, f"{settings.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def check(made: Experiment, plain: Experiment, name: str) -> None:
    """See that a variant can be trained, and compared with the experiment as it is.

    Raises:
        UserError: it cannot.
    """
    ours, theirs = (
        ([(clip.clip, clip.speaker, clip.emotion) for clip in one.protocol.part("val")], one.model.labels)
        for one in (made, plain)
    )
    if ours != theirs:
        raise UserError(f"'{name}' changes which clips validate, or their labels; it cannot be compared on validation")
    if made.trains_on_validation:
        setting = "train/with_validation" if made.training.with_validation else "stats/refit"
        remedy = f"add --common '{setting} = False'" if made is plain else "leave it out"
        raise UserError(f"'{name}' is trained on the validation clips, too, which are to compare; {remedy}")
    for features in (made.features, *made.features.copies):
        for table in made.protocol.tables.values():
            open_source(features, table)
    if made.training.start:
        read_start(made.training.start, made.protocol)


def what_was_chosen(plain: Experiment) -> str:
    """Return what every run chose on the validation clips, or nothing."""
    if plain.model.solves:
        return "the strength of the regularisation"
    return "the epoch" if plain.training.keep == "best" else ""


def answered(experiment: str, variant: Variant, progress: bool) -> Answered:
    """Train and score the runs of a variant where that was not done yet."""
    folders, runs = [], []
    for overrides in variant.overrides:
        made, run = create(config.load(experiment, overrides))
        if not checkpoints.is_finished(run.last):
            train(made, run, progress)
        runs.append(run.folder.name)
        folders.append(evaluated(made, run, "val", progress))
    found = [read_predictions(folder / "predictions.csv") for folder in folders]
    figures = [read_json(folder / "metrics.json") for folder in folders]
    return Answered(
        runs,
        found,
        np.stack([one.confusions for one in found]),
        sum(one["hours"] for one in figures),
        figures[0]["parameters_trained"],
        figures[0]["tags"],
        commits_of(figures),
    )


def row(name: str, plain: Answered, own: Answered) -> dict[str, Any]:
    """Return a variant's figures, and what is between them and those of the experiment as it is."""
    first, second = plain.confusions.sum(0), own.confusions.sum(0)
    by_seed = own.uars - plain.uars
    differs = own is not plain
    intervals, p = paired(own.predictions[0], first, second)
    low, high = intervals["uar"] or (None, None)
    return {
        "variant": name,
        "uar": float(own.uars.mean()),
        "uar_sd": float(own.uars.std(ddof=1)) if len(by_seed) > 1 else None,
        "wa": float(metrics.wa(second.sum(0))),
        "difference": float(by_seed.mean()) if differs else None,
        "ci95_low": low if differs else None,
        "ci95_high": high if differs else None,
        "p": p["uar"] if differs else None,
        "difference_lowest": float(by_seed.min()) if differs else None,
        "difference_highest": float(by_seed.max()) if differs else None,
        "hours": round(own.hours, 4),
        "parameters_trained": own.parameters,
        "tags": own.tags,
    }


def table(folder: Path, result: dict[str, Any]) -> str:
    """Return a comparison for people, and where its files lie."""
    rows = result["variants"]
    width = max(len(line["variant"]) for line in rows)
    missing = missing_text(result["clips_missing"])
    lines = [
        f"{result['trained_on']}; validation: {result['n_clips']} clips of {result['n_speakers']} speakers{missing}; "
        f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''}",
        f"  {'':<{width}}  UAR    over seeds  difference  95 % over speakers  p        by seed",
    ]
    for line in rows:
        spread = "" if line["uar_sd"] is None else f"± {line['uar_sd']:.3f}"
        text = f"  {line['variant']:<{width}}  {line['uar']:.3f}  {spread:<10}"
        if line["difference"] is not None:
            low, high = line["ci95_low"], line["ci95_high"]
            interval = "none" if low is None else f"[{low:+.3f}, {high:+.3f}]"
            seeds = f"{line['difference_lowest']:+.3f} to {line['difference_highest']:+.3f}"
            text += f"  {line['difference']:+.3f}      {interval:<18}  {p_text(line['p']):<7}  {seeds}"
        lines.append(text.rstrip() + "".join(f"  [{tag}]" for tag in line["tags"]))
    if result["ci95_reason"]:
        lines.append(f"  no interval: {result['ci95_reason']}")
    if versions := commits_text(result["commits"]):
        lines.append(f"  {versions}")
    chosen = result["chosen"] or "nothing"
    lines.append(f"  p: the two exchanged speaker by speaker; {chosen} was chosen on these speakers")
    return "\n".join([*lines, *(str(folder / name) for name in ("ablation.csv", "ablation.json", "ablation.png"))])
