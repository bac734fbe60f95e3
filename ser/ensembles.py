"""Several runs as one: their probabilities (or logits) averaged, with weights that validation may choose."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ser import calibration, checkpoints, comparing, config, evaluation, scoring_count
from ser.errors import UserError, nearest, some
from ser.files import outputs_folder, run_folder, sha256_of, write_json
from ser.metadata import read_table
from ser.metrics_file import commits_of, highest
from ser.predictions import Predictions, read_predictions
from ser.run_evaluation import evaluate, is_current
from ser.splits import evaluation_name

__all__ = ["AVERAGES", "WEIGHTS", "averaged", "ensemble", "fitted_weights"]

AVERAGES = ("probabilities", "logits")
WEIGHTS = ("uniform", "fitted")
SAME = ("corpus", "split_scheme", "fold", "part", "label_source", "split_sha256", "clips_missing", "raters")
STEPS, RATE = 500, 0.5  # of the fit of weights


def ensemble(
    names: Sequence[str], part: str = "test", average: str = "probabilities", weights: str = "uniform"
) -> tuple[Path, dict[str, Any]]:
    """Score several runs as one; return the folder written and the metrics.

    A run that has not scored the part does so now. Members that cross-validated stand for themselves: each clip's
    answer is of models that never heard its speaker.

    Args:
        names: of two or more runs that were scored on the same clips.
        part: test or val, or the whole name of an evaluation.
        average: one of ``AVERAGES``.
        weights: ``uniform``, or ``fitted`` to the likelihood of the validation part that all members share.

    Raises:
        UserError: fewer than two runs, runs that were scored on other clips, or one that knows their speakers; fitted
            weights without a common validation part.
    """
    for value, known, what in ((average, AVERAGES, "average"), (weights, WEIGHTS, "weights")):
        if value not in known:
            raise UserError(f"{what} is '{value}'{nearest(value, known)}")
    folders = [run_folder(name, scored=True).resolve() for name in names]
    if len(set(folders)) < 2 or len(set(folders)) < len(folders):
        raise UserError(f"{' '.join(names)}: expected two or more different runs")
    if len({folder.name for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(names)}: two of them have one name; rename the folder of one")
    scored_as, members = scored(folders, part)
    about = members[0][1]
    chosen = np.full(len(members), 1 / len(members))
    temperature = None
    if weights == "fitted":
        if part == "val" or about["part"] == "val":
            raise UserError("weights fitted to validation cannot be scored on it; choose part=test, or weights=uniform")
        heard = [predictions for predictions, _ in scored(folders, "val")[1]]
        chosen = fitted_weights(heard, average)
        validated = averaged(heard, chosen, average)
        temperature = calibration.temperature(validated.logits, validated.indices)
    joined = averaged([predictions for predictions, _ in members], chosen, average)
    at_hand = {clip.clip: clip for clip in read_table(about["corpus"]).clips}
    if gone := set(joined.clips) - at_hand.keys():
        raise UserError(f"{about['corpus']}: clips that were scored are not at hand any more: {some(sorted(gone))}")
    references = zip(joined.clips, joined.references, strict=True)
    clips = [replace(at_hand[clip], emotion=reference) for clip, reference in references]
    every = [metrics for _, metrics in members]
    tested = about["part"] != "val"
    times = max(map(count_member, folders, [scored_as] * len(every), every)) if tested else 0
    key = json.dumps([sorted(folder.name for folder in folders), average, weights])
    run = outputs_folder() / f"ensemble-{about['corpus']}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"
    result = {name: about[name] for name in SAME} | {
        "run": run.name,
        "model": f"mean of {len(members)} runs' {average}, weights {weights}",
        "members": {folder.name: float(weight) for folder, weight in zip(folders, chosen, strict=True)},
        "member_answers": {
            folder.name: sha256_of(folder / "eval" / scored_as / "predictions.csv") for folder in folders
        },
        "parameters_total": sum(metrics["parameters_total"] for metrics in every),
        "parameters_trained": sum(metrics["parameters_trained"] for metrics in every),
        "hours": round(sum(metrics["hours"] for metrics in every), 4),
        "memory_gib": highest(every, "memory_gib"),
        "trained_on": "; ".join(sorted({metrics["trained_on"] for metrics in every})),
        "trained_labels": ", ".join(sorted({metrics["trained_labels"] for metrics in every})),
        "speaker_independent": all(metrics["speaker_independent"] for metrics in every),
        "tags": list(dict.fromkeys(["ensemble", *(tag for metrics in every for tag in metrics["tags"])])),
        "test_scorings": times,
        "commits": commits_of(every),
        "temperature": temperature,
        "speaker_clips": about.get("speaker_clips"),
        **({"calm_policy": about["calm_policy"], "left_out": about["left_out"]} if "calm_policy" in about else {}),
    }
    tempered = None if temperature is None else joined.tempered(temperature)
    folder = run / "eval" / scored_as
    figures = evaluation.write_evaluation(folder, joined, result, clips, tempered)
    write_json(run / "ensemble.json", {"members": result["members"], "average": average, "weights": weights})
    return folder, figures


def count_member(member: Path, scored_as: str, figures: dict[str, Any]) -> int:
    """Record that a member's answers to a test part were scored as part of an ensemble; return how often by now.

    What has no run of its own, such as a cross-validation, also counts the scorings of those that it is made of.
    """
    own = (member / "run.gin").is_file()
    what = evaluation_name(figures["corpus"], figures["split_scheme"], figures["part"])
    here = scoring_count.count_scoring(member, what, f"{scored_as.removeprefix(what)}-ensemble")
    return here + (0 if own else figures["test_scorings"])


def scored(folders: Sequence[Path], part: str) -> tuple[str, list[tuple[Predictions, dict[str, Any]]]]:
    """Return the evaluation's name, and each run's predictions in the order of the clips' names and its metrics.

    A run's own part is scored anew where that was not done, or not with its best weights.

    Raises:
        UserError: not scored on the same, or a model that was trained on the speakers.
    """
    for folder in folders:
        trained = (folder / "run.gin").is_file()
        if trained and not checkpoints.is_finished(folder / checkpoints.LAST):
            raise UserError(f"{folder.name}: is not finished; go on with: just resume {folder.name}")
        if trained and part in ("test", "val"):
            protocol = config.build_protocol(config.load(str(folder / "run.gin")))
            if not is_current(folder, protocol, part):
                evaluate(str(folder), part, progress=False)
    scored_as = comparing.shared_evaluation(folders, part)
    members = []
    for folder in folders:
        metrics = comparing.checked_figures(folder, scored_as)
        if "speakers-seen" in metrics["tags"]:
            raise UserError(f"{folder.name}: was trained on speakers of {scored_as}; it cannot take part")
        members.append((read_predictions(folder / "eval" / scored_as / "predictions.csv"), metrics))
    for folder, (predictions, metrics) in zip(folders[1:], members[1:], strict=True):
        comparing.check_same(members[0][0], predictions, [folders[0], folder])
        for name in ("split_sha256", "fold", "label_source"):
            if metrics[name] != members[0][1][name]:
                raise UserError(
                    f"{folders[0].name} and {folder.name}: {name} is {str(members[0][1][name])[:12]} and "
                    f"{str(metrics[name])[:12]}; members share one protocol"
                )
    return scored_as, members


def averaged(members: Sequence[Predictions], weights: np.ndarray, average: str) -> Predictions:
    """Return the weighted mean of probabilities, or of normalised logits, of predictions on the same clips."""
    logs = np.stack([calibration.log_softmax(predictions.logits) for predictions in members])
    share = weights[:, None, None]
    logits = (share * logs).sum(0) if average == "logits" else np.log((share * np.exp(logs)).sum(0).clip(1e-12))
    first = members[0]
    return Predictions(first.clips, first.speakers, first.references, first.labels, logits)


def fitted_weights(members: Sequence[Predictions], average: str) -> np.ndarray:
    """Return weights [M], above 0 and of sum 1, of the highest likelihood; by exponentiated gradients."""
    references = members[0].indices
    rows = np.arange(len(references))
    logs = np.stack([calibration.log_softmax(predictions.logits) for predictions in members])
    own = np.exp(logs[:, rows, references])

    def loss(weights: np.ndarray) -> float:
        if average == "probabilities":
            return float(-np.log((weights @ own).clip(1e-12)).mean())
        return float(-calibration.log_softmax(np.tensordot(weights, logs, 1))[rows, references].mean())

    weights, rate = np.full(len(members), 1 / len(members)), RATE
    least = loss(weights)
    for _ in range(STEPS):
        if average == "probabilities":
            slope = (own / (weights @ own).clip(1e-12)).mean(1)
        else:
            mixed = np.exp(calibration.log_softmax(np.tensordot(weights, logs, 1)))
            slope = (logs[:, rows, references] - (mixed * logs).sum(2)).mean(1)
        tried = weights * np.exp(rate * (slope - slope.max()))
        tried /= tried.sum()
        if (found := loss(tried)) <= least + 1e-12:
            weights, least, rate = tried, found, min(RATE, 1.2 * rate)
        else:  # the step leapt over the valley, as it does where members are very sure
            rate /= 2
    return weights
