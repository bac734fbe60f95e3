"""Which layer of an encoder tells emotions best: a linear probe on each, and on all joined.

Cross-validated by speaker on the training part, so that neither validation nor test speakers choose anything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser import plots
from ser.batches import ClipReader, open_source
from ser.errors import UserError
from ser.experiment import Experiment
from ser.features import Features
from ser.files import outputs_folder, write_csv, write_json
from ser.losses import class_weights
from ser.predictions import Predictions
from ser.progress import cores, progress_bar
from ser.scoring import score
from ser.stats import columns
from ser.stats_probe import NEVER, StatsProbe, logistic_regression, turned

__all__ = ["check_layers", "probe", "table"]

FOLDS = 5
WIDE = 20_000  # features of a clip from which a fit takes gigabytes
COLUMNS = ("layer", "uar", "uar_low", "uar_high", "wa", "wa_low", "wa_high")


def probe(experiment: Experiment, progress: bool = True) -> tuple[Path, list[dict[str, Any]]]:
    """Probe every layer that the features keep; write ``layers.csv``, ``layers.png`` and ``probe.json``.

    Args:
        experiment: whose model is a ``StatsProbe``; the first of its strengths is used, and its class weights.
        progress: show a bar.

    Returns:
        The folder written, and a row of ``COLUMNS`` for each layer and for all of them joined (``all``).

    Raises:
        UserError: another model, or fewer than two speakers to train on.
    """
    model, protocol, front_end = experiment.model, experiment.protocol, experiment.features.front_end
    if not isinstance(model, StatsProbe) or not experiment.features.cached:
        raise UserError("a layer probe reads stored statistics of an encoder; choose such features in gin/features/")
    clips = [clip for clip in protocol.part("train") if clip.emotion]
    if protocol.extra:
        raise UserError("data/extra: a probe of layers is of one corpus; leave it out")
    idle = {
        "stats/normalisation": model.norm.kind != "corpus",
        "stats/wccn": model.wccn > 0,
        "encoder/copies": bool(experiment.features.copies),
    }
    if named := [name for name, used in idle.items() if used]:
        raise UserError(f"{' and '.join(named)}: a probe of layers goes without; leave it out, or train with it")
    reader = ClipReader(open_source(experiment.features, protocol.table), model.labels)
    batch = reader.whole(clips)
    x = batch.inputs.numpy()  # [N, L, 2D]
    classes = batch.targets.argmax(1).numpy()
    speakers = np.array([clip.speaker for clip in clips])
    weights = class_weights(batch.targets.sum(0), experiment.loss.class_weights).numpy()
    folds = folds_by_speaker(speakers)

    from joblib import Parallel, delayed

    layers = front_end.spec["layers"]
    inputs = {str(layer): x[:, number] for number, layer in enumerate(layers)}
    if len(layers) > 1:
        inputs["all"] = x.reshape(len(x), -1)
    work = [(name, fold) for name in inputs for fold in range(len(folds))]
    # Threads: what takes long lets go of Python's lock, and nothing has to be copied.
    at_once = cores() if x[0].size < WIDE else min(cores(), 2)
    jobs = Parallel(n_jobs=at_once, prefer="threads", return_as="generator")(
        delayed(held_out_logits)(inputs[name], classes, folds[fold], weights, model.strengths[0], len(model.labels))
        for name, fold in work
    )
    logits = {name: np.zeros((len(clips), len(model.labels))) for name in inputs}
    for (name, fold), answer in zip(work, progress_bar(jobs, "probe", len(work), "fit", progress), strict=True):
        logits[name][folds[fold]] = answer
    about = (batch.names, list(speakers), [clip.emotion for clip in clips], model.labels)
    rows = [row_of(name, Predictions(*about, each)) for name, each in logits.items()]
    part = protocol.scheme if protocol.fold is None else f"{protocol.scheme}-fold{protocol.fold}"
    told = [protocol.label_source] * (protocol.label_source != "intended") + protocol.tags
    heard = "".join(f"-{word}" for word in told)
    folder = outputs_folder() / "probe" / f"{protocol.corpus}-{part}-{experiment.features.store}{heard}"
    what = " ".join([experiment.features.name, "on", protocol.describe(), *told])
    title = f"{what}\ntraining part, {len(folds)} folds by speaker"
    write_csv(folder / "layers.csv", COLUMNS, rows)
    facts = {
        "title": title, "strength": model.strengths[0], "class_weights": experiment.loss.class_weights,
        "label_source": protocol.label_source, "labels": list(protocol.labels), "tags": protocol.tags,
        "dropped": sorted(protocol.drop), "clips": len(clips),
    }  # fmt: skip
    write_json(folder / "probe.json", facts | {"split_sha256": protocol.split.sha256, "rows": rows})
    plots.layers(folder / "layers.png", rows, title)
    return folder, rows


def check_layers(features: Features) -> None:
    """Raise a UserError where features are not of an encoder's layers."""
    if "layers" not in features.front_end.spec:
        raise UserError(f"features '{features.name}' have no layers to compare; choose those of an encoder")


def folds_by_speaker(speakers: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each held-out fold; no speaker is in two."""
    names = sorted(set(speakers))
    if len(names) < 2:
        raise UserError(f"{len(names)} speaker trains; a probe holds speakers out and needs at least 2")
    groups = [names[start::FOLDS] for start in range(min(FOLDS, len(names)))]
    return [np.flatnonzero(np.isin(speakers, group)) for group in groups]


def held_out_logits(
    x: np.ndarray, classes: np.ndarray, held_out: np.ndarray, weights: np.ndarray, strength: float, size: int
) -> np.ndarray:
    """Fit on all but the held-out rows of x [N, F] and return the logits [H, size] of those."""
    rest = np.setdiff1d(np.arange(len(x)), held_out)
    mean, std = x[rest].mean(0), x[rest].std(0).clip(1e-5)
    seen, basis = turned((x[rest] - mean) / std)
    known, coefficients, intercepts = logistic_regression(seen, classes[rest], weights[classes[rest]], strength)
    coefficients = coefficients if basis is None else coefficients @ basis.T
    logits = np.full((len(held_out), size), NEVER)
    logits[:, known] = (x[held_out] - mean) / std @ coefficients.T + intercepts
    return logits


def row_of(layer: str, predictions: Predictions) -> dict[str, Any]:
    """Return the figures of one layer."""
    figures = score(predictions)
    row: dict[str, Any] = {"layer": layer}
    for name in ("uar", "wa"):
        row |= columns(name, round(figures[name], 4), figures["ci95"][name])
    return row


def table(experiment: Experiment, folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows for people, and the gin line of the best layer."""
    lines = [f"{'layer':<7}{'UAR':<8}{'95 % over speakers':<22}WA"]
    for row in rows:
        interval = "" if row["uar_low"] is None else f"[{row['uar_low']:.3f}, {row['uar_high']:.3f}]"
        lines.append(f"{row['layer']:<7}{row['uar']:<8.3f}{interval:<22}{row['wa']:.3f}")
    single = [row for row in rows if row["layer"] != "all"]
    best = max(single, key=lambda row: row["uar"])
    lines.append(f"best single layer:  encoder/layers = [{best['layer']}]")
    if rows[-1]["layer"] == "all":
        verdict = "better than" if rows[-1]["uar"] > best["uar"] else "not better than"
        lines.append(f"all joined are {verdict} it:  encoder/layers = None")
    command = experiment.features.command(experiment.protocol.corpus)
    lines.append(f"its frames:  {command} 'encoder/keep = \"frames\"' 'encoder/layers = [{best['layer']}]'")
    return "\n".join([*lines, str(folder / "layers.csv"), str(folder / "layers.png")])
