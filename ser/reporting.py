"""What an evaluation prints."""

from pathlib import Path
from typing import Any

__all__ = ["evaluation"]


def evaluation(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the figures of a ``metrics.json`` for people, and where its files lie."""
    fold = "" if metrics["fold"] is None else f" fold {metrics['fold']}"
    tags = "".join(f"  [{tag}]" for tag in metrics["tags"])
    lines = [f"{metrics['run']}: {metrics['corpus']} {metrics['split_scheme']}{fold}, {metrics['part']}{tags}"]
    for name, title in (("uar", "UAR"), ("wa", "WA"), ("macro_f1", "macro-F1")):
        interval = metrics["ci95"][name]
        shown = f"  95 % over speakers [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(f"  {title:<9}{metrics[name]:.3f}{shown}")
    if reason := metrics.get("ci95_reason"):
        lines.append(f"  no interval: {reason}")
    if strict := metrics.get("strict"):
        lines.append(f"  strict   UAR {strict['uar']:.3f}, WA {strict['wa']:.3f}: an answer outside them is an error")
        lines.append(f"  calm     {metrics['calm_policy']}; left out: {metrics['left_out'] or 'nothing'}")
    if raters := metrics.get("raters"):
        lines.append(f"  raters   UAR {raters['uar']:.3f}, WA {raters['wa']:.3f}: people who only heard these clips")
    if folds := metrics.get("folds"):
        lines.append("  folds    UAR " + "  ".join(f"{fold['uar']:.3f}" for fold in folds))
    lines.append("  recall   " + "  ".join(f"{k} {v:.2f}" for k, v in metrics["recall"].items() if v is not None))
    if metrics["absent"]:
        lines.append(f"  absent   no clip of {', '.join(metrics['absent'])}: left out of UAR")
    missing = f", {metrics['clips_missing']} official clips not at hand" if metrics["clips_missing"] else ""
    labels = f"labels {metrics['label_source']}, trained on {metrics['trained_labels']}"
    if clips := metrics.get("speaker_clips"):
        lines.append(f"  speakers normalised by {clips} of their clips, the scored one among them")
    lines.append(f"  {metrics['n_clips']} clips, {metrics['n_speakers']} speakers{missing}; {labels}")
    lines.append(f"  split {metrics['split_sha256'][:12]}; test scorings {metrics['test_scorings']}")
    return "\n".join([*lines, *(str(folder / name) for name in ("metrics.json", "predictions.csv", "confusion.png"))])
