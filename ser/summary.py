"""``outputs/summary.csv``: a line for every evaluation of every run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser import metrics
from ser.errors import UserError
from ser.files import outputs_folder, read_json, write_csv

__all__ = ["COLUMNS", "collect", "table", "write"]

COLUMNS = (
    "run", "corpus", "split_scheme", "fold", "part", "label_source", "trained_labels", "model",
    "parameters_trained", "parameters_total",
    "hours", *(f"{name}{end}" for name in metrics.FIGURES for end in ("", "_low", "_high")), "n_clips", "n_speakers",
    "strict_uar", "strict_wa", "calm_policy", "clips_missing", "tags", "split_sha256", "test_scorings",
)  # fmt: skip


def collect(outputs: Path) -> list[dict[str, Any]]:
    """Return one row an evaluation, sorted by corpus, scheme, part and falling UAR."""
    rows = []
    for path in outputs.glob("*/eval/*/metrics.json"):
        try:
            rows.append(row_of(path, read_json(path)))
        except (UserError, AttributeError, KeyError, TypeError) as error:
            print(f"left out: {path}: not an evaluation of ser ({error}); score the run again", file=sys.stderr)
    return sorted(rows, key=lambda row: (row["corpus"], row["split_scheme"], row["part"], -row["uar"], row["run"]))


def row_of(path: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one ``metrics.json``."""
    row = {column: evaluation.get(column) for column in COLUMNS}
    for column in ("corpus", "split_scheme", "part", "label_source"):
        row[column] = str(evaluation[column])
    row["run"] = path.parents[2].name
    for name in metrics.FIGURES:
        row[name] = float(evaluation[name])
        row[f"{name}_low"], row[f"{name}_high"] = evaluation["ci95"][name] or (None, None)
    strict = evaluation.get("strict") or {}
    row["strict_uar"], row["strict_wa"] = strict.get("uar"), strict.get("wa")
    row["tags"] = " ".join(evaluation["tags"])
    return row


def write() -> tuple[Path, list[dict[str, Any]]]:
    """Write ``outputs/summary.csv``; return its path and rows."""
    path = outputs_folder() / "summary.csv"
    rows = collect(outputs_folder())
    write_csv(path, COLUMNS, [{column: number(value) for column, value in row.items()} for row in rows])
    return path, rows


def number(value: Any) -> Any:
    """Round floats for the CSV; None becomes an empty cell."""
    return f"{value:.4f}" if isinstance(value, float) else value


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows for people, figures with their intervals."""
    header = (
        "run", "corpus", "scheme", "part", "labels", "UAR", "strict UAR", "WA", "macro-F1", "clips", "speakers", "tags",
    )  # fmt: skip
    lines = [header]
    for row in rows:
        fold = "" if row["fold"] is None else f" fold {row['fold']}"
        calm = f", calm {row['calm_policy']}" if row["calm_policy"] else ""
        strict = "" if row["strict_uar"] is None else f"{row['strict_uar']:.3f}"
        lines.append(
            (
                row["run"], row["corpus"], f"{row['split_scheme']}{fold}", f"{row['part']}{calm}", row["label_source"],
                with_interval(row, "uar"), strict, with_interval(row, "wa"), with_interval(row, "macro_f1"),
                str(row["n_clips"]), str(row["n_speakers"]), row["tags"],
            )
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])


def with_interval(row: dict[str, Any], name: str) -> str:
    """Return ``0.612 [0.550, 0.660]``, without the interval where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
