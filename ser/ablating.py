"""Ablations: an experiment with and without each of some changes, over several seeds, on validation speakers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser import config, metrics, plots, stats
from ser.batches import open_source
from ser.comparing import check_same
from ser.errors import UserError
from ser.evaluating import evaluated
from ser.experiment import Experiment, Run
from ser.files import outputs_folder, read_json, write_csv, write_json
from ser.launching import needs_processes, train_apart
from ser.predictions import Predictions, read_predictions
from ser.runs import create, train

__all__ = ["ablate", "table"]

AS_IT_IS = "as it is"
COLUMNS = (
    "variant", "uar", "uar_sd", "wa", "difference", "ci95_low", "ci95_high", "p", "difference_lowest",
    "difference_highest", "hours", "parameters_trained",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what it changes, as it was given.
        overrides: of the experiment, but for the seed.
        made: experiment and run of each seed.
    """

    name: str
    overrides: tuple[str, ...]
    made: list[tuple[Experiment, Run]]


@dataclass(frozen=True)
class Answered:
    """What the runs of a variant answered to the validation clips.

    Attributes:
        predictions: of each seed.
        confusions: by seed and speaker, int64 [seeds, S, C, C].
        hours: of training, all seeds together.
        parameters: that are trained.
    """

    predictions: list[Predictions]
    confusions: np.ndarray
    hours: float
    parameters: int

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
) -> tuple[Path, dict[str, Any]] | int:
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
        The folder written and the comparison, or the exit status where training was interrupted.

    Raises:
        UserError: no change, or one that changes nothing; features of one are not extracted; or as ``create``, ``train`` and ``evaluate``.
    """
    apart = needs_processes(jobs, gpus)
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; expected 1 or more")
    variants = built(experiment, changes, common, range(1, seeds + 1))
    protocol = variants[0].made[0][0].protocol
    folder = outputs_folder() / "ablations" / variants[0].made[0][1].folder.name.replace("-s1-", "-")
    works = {
        f"variant {number} seed {seed}": (*variant.overrides, f"seed = {seed}")
        for number, variant in enumerate(variants)
        for seed in range(1, seeds + 1)
    }
    if apart and (status := train_apart(experiment, works, jobs, gpus, folder)):
        return status
    answers = []
    for variant in variants:
        for experiment_made, run in variant.made:
            if status := train(experiment_made, run, progress):
                return status
        answers.append(answered(variant, progress))
    for variant, own in zip(variants, answers, strict=True):
        for (_, run), found in zip(variant.made, own.predictions, strict=True):
            check_same(answers[0].predictions[0], found, [variants[0].made[0][1].folder, run.folder])
    plain = answers[0]
    rows = [row(variant.name, plain, own) for variant, own in zip(variants, answers, strict=True)]
    result = {
        "experiment": experiment, "common": list(common), "seeds": seeds, "trained_on": protocol.describe(),
        "split_sha256": protocol.split.sha256, "n_clips": int(plain.confusions[0].sum()),
        "n_speakers": len(plain.confusions[0]), "tags": list(protocol.tags), "variants": rows,
        "runs": {variant.name: [run.folder.name for _, run in variant.made] for variant in variants},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ablation.json", result)
    write_csv(folder / "ablation.csv", COLUMNS, rows)
    plots.ablation(folder / "ablation.png", rows, f"{experiment}: validation, {seeds} seeds")
    return folder, result


def built(experiment: str, changes: Sequence[str], common: Sequence[str], seeds: Sequence[int]) -> list[Variant]:
    """Build every run before the first is trained: a mistake in the last change then costs nothing."""
    if not changes:
        raise UserError("nothing to leave out or change; give gin bindings, such as 'train/label_smoothing = 0.0'")
    variants: list[Variant] = []
    for name in (AS_IT_IS, *changes):
        own = [] if name == AS_IT_IS else [binding.strip() for binding in name.split(";") if binding.strip()]
        overrides = (*common, *own)
        made = [create(config.load(experiment, [*overrides, f"seed = {seed}"])) for seed in seeds]
        open_source(made[0][0].features, made[0][0].protocol.table)  # features that are not extracted yet
        for other in variants:
            if made[0][1].folder == other.made[0][1].folder:
                raise UserError(f"'{name}' trains the same as '{other.name}'; leave one of them out")
        variants.append(Variant(name, overrides, made))
    return variants


def answered(variant: Variant, progress: bool) -> Answered:
    """Score the runs of a variant on their validation part, where that was not done yet."""
    folders = [evaluated(made, run, "val", progress) for made, run in variant.made]
    found = [read_predictions(folder / "predictions.csv").by_clip() for folder in folders]
    figures = [read_json(folder / "metrics.json") for folder in folders]
    confusions = [
        stats.speaker_confusions(np.array(one.speakers), one.indices, one.answers, len(one.labels)) for one in found
    ]
    hours = sum(one["hours"] for one in figures)
    return Answered(found, np.stack(confusions), hours, figures[0]["parameters_trained"])


def row(name: str, plain: Answered, own: Answered) -> dict[str, Any]:
    """Return a variant's figures, and what is between them and those of the experiment as it is."""
    first, second = plain.confusions.sum(0), own.confusions.sum(0)
    low, high = stats.paired_intervals(first, second)["uar"] or (None, None)
    by_seed = own.uars - plain.uars
    differs = own is not plain
    return {
        "variant": name,
        "uar": float(own.uars.mean()),
        "uar_sd": float(own.uars.std(ddof=1)) if len(by_seed) > 1 else None,
        "wa": float(metrics.wa(second.sum(0))),
        "difference": float(by_seed.mean()) if differs else None,
        "ci95_low": low if differs else None,
        "ci95_high": high if differs else None,
        "p": stats.permutation_p(first, second)["uar"] if differs else None,
        "difference_lowest": float(by_seed.min()) if differs else None,
        "difference_highest": float(by_seed.max()) if differs else None,
        "hours": round(own.hours, 4),
        "parameters_trained": own.parameters,
    }


def table(folder: Path, result: dict[str, Any]) -> str:
    """Return a comparison for people, and where its files lie."""
    rows = result["variants"]
    width = max(len(line["variant"]) for line in rows)
    lines = [
        f"{result['trained_on']}; validation: {result['n_clips']} clips of {result['n_speakers']} speakers",
        f"  {'':<{width}}  UAR    over seeds  difference  95 % over speakers  p      by seed",
    ]
    for line in rows:
        spread = "" if line["uar_sd"] is None else f"± {line['uar_sd']:.3f}"
        text = f"  {line['variant']:<{width}}  {line['uar']:.3f}  {spread:<10}"
        if line["difference"] is not None:
            low, high = line["ci95_low"], line["ci95_high"]
            interval = "none" if low is None else f"[{low:+.3f}, {high:+.3f}]"
            seeds = f"{line['difference_lowest']:+.3f} to {line['difference_highest']:+.3f}"
            text += f"  {line['difference']:+.3f}      {interval:<18}  {line['p']:.3f}  {seeds}"
        lines.append(text.rstrip())
    if reason := stats.interval_reason(result["n_speakers"]):
        lines.append(f"  no interval: {reason}")
    lines.append("  p: the two exchanged speaker by speaker; the epochs were chosen on these speakers")
    return "\n".join([*lines, *(str(folder / name) for name in ("ablation.csv", "ablation.json", "ablation.png"))])
