"""What an evaluation prints, and how figures and tables are put into words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser.environment import short

__all__ = [
    "TITLES",
    "aligned",
    "commits_text",
    "estimate",
    "estimate_of",
    "evaluation",
    "gap_text",
    "markdown_table",
    "missing_text",
    "p_text",
    "temperature_of",
    "title_of",
    "with_interval",
]

TITLES = {
    "uar": "UAR", "wa": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "auc": "AUC", "nll": "NLL",
    "brier": "Brier", "ece": "ECE",
}  # fmt: skip
FILES = ("metrics.json", "predictions.csv", "subgroups.csv", "confusion.png", "calibration.png")


def evaluation(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the figures of a ``metrics.json`` for people, and where its files lie."""
    head = f"{metrics['run']}: {title_of(metrics)}" + "".join(f"  [{tag}]" for tag in metrics["tags"])
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
        rows.append(("calibration", f"{figures} with {temperature_of(metrics)}"))
    for grouping, gap in metrics["gaps"].items():
        rows.append((f"by {grouping}", gap_text(gap)))
    if versions := commits_text(metrics.get("commits") or []):
        rows.append(("code", versions))
    missing = missing_text(metrics["clips_missing"])
    labels = f"labels {metrics['label_source']}, trained on {metrics['trained_labels']}"
    rows.append(("scored", f"{metrics['n_clips']} clips, {metrics['n_speakers']} speakers{missing}; {labels}"))
    rows.append(("split", f"{metrics['split_sha256'][:12]}; test scorings {metrics['test_scorings']}"))
    lines = [f"  {name:<13}{text}" for name, text in rows]
    return "\n".join([head, *lines, *(str(folder / name) for name in FILES)])


def missing_text(clips: int) -> str:
    """Return what follows a number of clips where official ones are missing."""
    return f", {clips} official clips not at hand" if clips else ""


def commits_text(commits: Sequence[str]) -> str:
    """Say that runs were trained by different or uncommitted versions of the code; empty where they were not."""
    if len(commits) > 1:
        return f"trained by different versions: {', '.join(short(each) for each in commits)}"
    changed = [short(each) for each in commits if each.endswith("+")]
    return f"trained by {changed[0]}: that commit with changes, or new files of code" if changed else ""


def title_of(metrics: Mapping[str, Any]) -> str:
    """Name an evaluation for people: what was scored, and all that tells it from another of the same run."""
    if metrics["split_scheme"] == "none":
        name = f"{metrics['corpus']}, another corpus, calm {metrics['calm_policy']}"
    else:
        fold = f" fold {metrics['fold']}" if metrics["fold"] else ""
        part = {"test": "test part", "val": "validation part"}.get(metrics["part"], metrics["part"])
        name = f"{metrics['corpus']} {metrics['split_scheme']}{fold}, {part}"
    if {metrics["label_source"], metrics["trained_labels"]} != {"intended"}:
        name += f", labels {metrics['label_source']}"
    if clips := metrics.get("speaker_clips"):
        name += f", normalised by {clips} clip{'s' if clips > 1 else ''} of each speaker, the scored one among them"
    return name


def temperature_of(metrics: Mapping[str, Any]) -> str:
    """Say which temperature the calibrated figures of an evaluation are of."""
    return (
        "the temperature, fitted on these very clips" if metrics["part"] == "val" else "the temperature of validation"
    )


def estimate_of(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    """Return a row's figure with its interval, see ``stats.columns``; a dash where there is none."""
    return "-" if row[name] is None else estimate(row[name], (row[f"{name}_low"], row[f"{name}_high"]), sign)


def with_interval(figures: dict[str, Any], name: str) -> str:
    """Return a figure of a ``metrics.json`` as ``estimate`` does; a dash where there is none."""
    return "-" if figures[name] is None else estimate(figures[name], figures["ci95"][name])


def estimate(value: float, interval: Sequence[float | None] | None, sign: str = "") -> str:
    """Return ``0.612 [0.550, 0.660]``, without the interval where it or its ends are None; ``sign`` may be ``+``."""
    if not interval or interval[0] is None:
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def p_text(p: float | None) -> str:
    """Return a p-value for people: ``0.034``, ``< 0.001``, or a dash where there is none."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def gap_text(gap: dict[str, Any]) -> str:
    """Say how far the best and the worst group of ``subgroups.subgroups`` are apart."""
    return f"{gap['best']} is {estimate(gap['gap'], gap['ci95'])} UAR above {gap['worst']}"


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines, each column as wide as its longest cell."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def markdown_table(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as the lines of a Markdown table; the first row is its header."""
    texts = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return [texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]
