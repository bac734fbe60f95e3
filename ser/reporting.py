"""What an evaluation prints."""

from pathlib import Path
from typing import Any

__all__ = ["TITLES", "evaluation", "with_interval"]

TITLES = {
    "uar": "UAR", "wa": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "auc": "AUC", "nll": "NLL",
    "brier": "Brier", "ece": "ECE",
}  # fmt: skip
FILES = ("metrics.json", "predictions.csv", "subgroups.csv", "confusion.png", "calibration.png")


def evaluation(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the figures of a ``metrics.json`` for people, and where its files lie."""
    fold = "" if metrics["fold"] is None else f" fold {metrics['fold']}"
    tags = "".join(f"  [{tag}]" for tag in metrics["tags"])
    head = f"{metrics['run']}: {metrics['corpus']} {metrics['split_scheme']}{fold}, {metrics['part']}{tags}"
    rows = [(title, with_interval(metrics, name)) for name, title in TITLES.items()]
    rows.append(("", metrics.get("ci95_reason") or "95 % intervals over speakers; not over training seeds"))
    if strict := metrics.get("strict"):
        uar, wa = with_interval(strict, "uar"), with_interval(strict, "wa")
        rows.append(("strict", f"UAR {uar}, WA {wa}: an answer outside them is an error"))
        rows.append(("calm", f"{metrics['calm_policy']}; left out: {metrics['left_out'] or 'nothing'}"))
    if raters := metrics.get("raters"):
        rows.append(("raters", f"UAR {raters['uar']:.3f}, WA {raters['wa']:.3f}: people who only heard these clips"))
    if folds := metrics.get("folds"):
        spread, each = metrics["over_folds"]["uar"], "  ".join(f"{fold['uar']:.3f}" for fold in folds)
        rows.append(("folds", f"UAR {each}  (mean {spread['mean']:.3f}, sd {spread['sd']:.3f})"))
    recalls = {label: values["recall"] for label, values in metrics["classes"].items()}
    rows.append(("recall", "  ".join(f"{label} {value:.2f}" for label, value in recalls.items() if value is not None)))
    if metrics["absent"]:
        rows.append(("absent", f"no clip of {', '.join(metrics['absent'])}: left out of UAR"))
    if after := metrics.get("calibrated"):
        figures = ", ".join(f"{TITLES[name]} {metrics[name]:.3f} -> {after[name]:.3f}" for name in ("nll", "ece"))
        rows.append(("calibration", f"{figures} with the temperature that validation gave"))
    for grouping, gap in metrics["gaps"].items():
        interval = f" [{gap['ci95'][0]:.3f}, {gap['ci95'][1]:.3f}]" if gap["ci95"] else ""
        rows.append((f"by {grouping}", f"{gap['best']} is {gap['gap']:.3f}{interval} UAR above {gap['worst']}"))
    if clips := metrics.get("speaker_clips"):
        rows.append(("speakers", f"normalised by {clips} of their clips, the scored one among them"))
    missing = f", {metrics['clips_missing']} official clips not at hand" if metrics["clips_missing"] else ""
    labels = f"labels {metrics['label_source']}, trained on {metrics['trained_labels']}"
    rows.append(("scored", f"{metrics['n_clips']} clips, {metrics['n_speakers']} speakers{missing}; {labels}"))
    rows.append(("split", f"{metrics['split_sha256'][:12]}; test scorings {metrics['test_scorings']}"))
    lines = [f"  {name:<13}{text}" for name, text in rows]
    return "\n".join([head, *lines, *(str(folder / name) for name in FILES)])


def with_interval(figures: dict[str, Any], name: str) -> str:
    """Return ``0.612 [0.550, 0.660]``, without the interval where there is none; a dash for no figure."""
    if figures[name] is None:
        return "-"
    interval = figures["ci95"][name]
    return f"{figures[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
