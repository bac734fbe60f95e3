"""``outputs/summary.csv``, ``.md``, ``.tex``: a line for every evaluation of every run, and what seeds make of it."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser import metrics, stats
from ser.errors import UserError
from ser.files import outputs_folder, read_json, write_csv, write_text
from ser.metrics_file import is_of_parts
from ser.predictions import read_predictions
from ser.scoring import draws_of, sums_of
from ser.scoring_count import parts_scored, scorings_now, times_scored
from ser.splits import evaluation_name
from ser.wording import aligned, estimate, estimate_of, markdown_table, title_of

__all__ = ["COLUMNS", "cells", "collect", "scorings_text", "seeds_table", "table", "write"]

SHOWN = (*metrics.FIGURES, "auc", "nll", "brier", "ece")
COLUMNS = (
    "run", "evaluation", "corpus", "split_scheme", "fold", "part", "label_source", "trained_labels", "speaker_clips",
    "model",
    "parameters_trained", "parameters_total", "hours", "memory_gib",
    *(f"{name}{end}" for name in SHOWN for end in ("", "_low", "_high")), "n_clips", "n_speakers",
    "strict_uar", "strict_wa", "calm_policy", "clips_missing", "tags", "split_sha256", "test_scorings",
)  # fmt: skip


def collect(outputs: Path) -> list[dict[str, Any]]:
    """Return one row an evaluation, sorted by corpus, scheme, part and falling UAR."""
    rows = []
    for path in outputs.glob("*/eval/*/metrics.json"):
        try:
            made = read_json(path)
            row, current = row_of(path, made), is_of_parts(made, path.parent)
        except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
            print(f"left out: {path}: not an evaluation of ser ({error}); score the run again", file=sys.stderr)
            continue
        if current:
            rows.append(row)
        else:
            print(f"left out: {path}: its runs were trained or scored again since; make it again", file=sys.stderr)
    return sorted(rows, key=lambda row: (row["corpus"], row["split_scheme"], row["part"], -row["uar"], row["run"]))


def row_of(path: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one ``metrics.json``."""
    row = {column: evaluation.get(column) for column in COLUMNS}
    for column in ("corpus", "split_scheme", "part", "label_source", "trained_labels"):
        row[column] = str(evaluation[column])
    row["run"], row["evaluation"] = path.parents[2].name, path.parent.name
    for name in SHOWN:
        figure = None if evaluation[name] is None else float(evaluation[name])
        row |= stats.columns(name, figure, evaluation["ci95"][name])
    row["uar"], row["test_scorings"] = float(evaluation["uar"]), scorings_now(path.parents[2], evaluation)
    strict = evaluation.get("strict") or {}
    row["strict_uar"], row["strict_wa"] = strict.get("uar"), strict.get("wa")
    row["tags"] = " ".join(evaluation["tags"])
    return row


def write() -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """Write ``outputs/summary.csv``, ``.md`` and ``.tex``; return the first's path, its rows, and those over seeds.

    All are made anew from what lies on disk and take their place whole, so that several may write at once.
    """
    path = outputs_folder() / "summary.csv"
    rows = collect(outputs_folder())
    seeds = over_seeds(outputs_folder(), rows)
    write_csv(path, COLUMNS, [{column: csv_cell(value) for column, value in row.items()} for row in rows])
    write_text(path.with_suffix(".md"), markdown(rows, seeds))
    write_text(path.with_suffix(".tex"), latex(rows))
    return path, rows, seeds


def over_seeds(outputs: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each of ``rows`` that runs differing in nothing but their seed share: mean, spread, interval.

    ``ci95`` is of the mean over seeds, speakers resampled for all seeds alike: what is left of the choice of
    speakers when that of the seed is averaged out.
    """
    groups: dict[tuple[str, str, str], dict[str, Path]] = {}  # a cross-validation is of its fold 1's settings, too
    for row in sorted(rows, key=lambda row: row["run"]):
        folder = outputs / row["run"]
        config = next((path for path in (folder / "run.gin", folder / "cv.gin") if path.is_file()), None)
        if config and not {"unfinished", "speakers-seen"} & set(row["tags"].split()):
            lines = config.read_text().splitlines()
            seed = next((line for line in lines if line.startswith("seed = ")), "")
            kind = "\n".join(line for line in lines if not line.startswith("seed = "))
            group = groups.setdefault((row["evaluation"], config.name, kind), {})
            if seed in group:
                print(
                    f"left out: {row['run']}: a copy of {group[seed].parents[1].name}, no further seed", file=sys.stderr
                )
            else:
                group[seed] = folder / "eval" / row["evaluation"]
    tags = {(row["run"], row["evaluation"]): row["tags"] for row in rows}
    found = []
    for (evaluation, *_), group in sorted(
        groups.items(), key=lambda each: (each[0][0], str(sorted(each[1].values())[0]))
    ):
        paths = sorted(folder / "predictions.csv" for folder in group.values())
        if len(paths) < 2:
            continue
        try:
            members = [read_predictions(path) for path in paths]
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        about = [(each.clips, each.labels, each.speakers, each.references) for each in members]
        if any(other != about[0] for other in about):
            run = paths[0].parents[2].name
            print(f"seeds of {run} were scored on different clips, labels or speakers of {evaluation}", file=sys.stderr)
            continue
        weights = draws_of(members[0])
        drawn = np.stack([sums_of(predictions).figures(weights)["uar"] for predictions in members])
        each = drawn[:, 0].tolist()
        run = paths[0].parents[2].name
        found.append({
            "run": run, "evaluation": evaluation, "seeds": len(each),
            "mean": statistics.mean(each), "sd": statistics.stdev(each), "ci95": stats.interval(drawn[:, 1:].mean(0)),
            "tags": tags[run, evaluation],
        })  # fmt: skip
    return found


def scorings_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each test part how many runs were scored on it, and how often: all that could have been chosen from."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        if row["part"] == "test" and not {"ensemble", "pooled-folds"} & set(row["tags"].split()):
            runs = counts.setdefault((row["corpus"], row["split_scheme"]), {})
            runs[row["run"]] = max(runs.get(row["run"], 0), row["test_scorings"])
    for path in sorted(outputs_folder().glob("*/run.gin")):  # those that only `robustness` has scored are among them
        for corpus, scheme in parts_scored(path.parent):
            times = times_scored(path.parent, evaluation_name(corpus, scheme, "test"))
            runs = counts.setdefault((corpus, scheme), {})
            runs[path.parent.name] = max(runs.get(path.parent.name, 0), times)
    return [
        f"{corpus} {scheme}, test: {len(runs)} run{'s' if len(runs) > 1 else ''} (a fold is a run), scored "
        f"{sum(runs.values())} time{'s' if sum(runs.values()) != 1 else ''} in all"
        for (corpus, scheme), runs in sorted(counts.items())
    ]


def seeds_table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return header and rows over seeds as text."""
    lines: list[tuple[str, ...]] = [("run and others", "evaluation", "seeds", "UAR, mean", "sd over seeds", "tags")]
    for row in rows:
        figures = (str(row["seeds"]), estimate(row["mean"], row["ci95"]), f"{row['sd']:.3f}")
        lines.append((row["run"], row["evaluation"], *figures, row["tags"]))
    return lines


def markdown(rows: Sequence[dict[str, Any]], seeds: Sequence[dict[str, Any]]) -> str:
    """Return both tables in Markdown."""
    notes = [line for text in ("Intervals: 95 %, resampling speakers.", *scorings_text(rows)) for line in (text, "")]
    more = ["", "## Over seeds", "", *markdown_table(seeds_table(seeds))] if seeds else []
    return "\n".join(["# Evaluations", "", *notes, *markdown_table(cells(rows)), *more, ""])


def latex(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a table for a paper, which needs the package booktabs."""
    special = str.maketrans({character: f"\\{character}" for character in "_%&#$"})
    header = ("run", "scored on", "UAR", "WA", "macro-F1", "tags")
    texts = [
        (row["run"], title_of(row), *(estimate_of(row, name) for name in ("uar", "wa", "macro_f1")), row["tags"])
        for row in rows
    ]
    lines = [" & ".join(cell.translate(special) for cell in line) + r" \\" for line in (header, *texts)]
    return "\n".join([
        "% 95 % intervals, resampling speakers; \\usepackage{booktabs}", r"\begin{tabular}{llrrrl}", r"\toprule",
        lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip


def csv_cell(value: Any) -> Any:
    """Round floats for the CSV; None becomes an empty cell."""
    return f"{value:.4f}" if isinstance(value, float) else value


def cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return header and rows as text, figures with their intervals."""
    header = (
        "run", "scored on", "UAR", "strict UAR", "WA", "macro-F1", "clips", "missing", "speakers", "scorings", "tags",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        uar, wa, macro_f1 = (estimate_of(row, name) for name in ("uar", "wa", "macro_f1"))
        strict = "" if row["strict_uar"] is None else f"{row['strict_uar']:.3f}"
        counts = (str(row[name] or 0) for name in ("n_clips", "clips_missing", "n_speakers", "test_scorings"))
        lines.append((row["run"], title_of(row), uar, strict, wa, macro_f1, *counts, row["tags"]))
    return lines


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """Return header and rows for people."""
    rule = tuple("-" * max(len(line[column]) for line in lines) for column in range(len(lines[0])))
    return "\n".join(aligned([lines[0], rule, *lines[1:]]))
