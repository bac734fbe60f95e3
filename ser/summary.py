"""``outputs/summary.csv``: a line for every evaluation of every run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser.files import outputs_folder, read_json, write_csv

__all__ = ["COLUMNS", "collect", "table", "write"]

FIGURES = ("wa", "uar", "macro_f1")
COLUMNS = (
    "run", "corpus", "split_scheme", "fold", "part", "label_source", "model", "parameters_trained", "parameters_total",
    "hours", *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")), "n_clips", "n_speakers",
    "clips_missing", "tags", "split_sha256", "test_scorings",
)  # fmt: skip


def collect(outputs: Path) -> list[dict[str, Any]]:
    """Return one row an evaluation, sorted by corpus, scheme, part and falling UAR."""
    rows = []
    for path in outputs.glob("*/eval/*/metrics.json"):
        metrics = read_json(path)
        row = {column: metrics.get(column) for column in COLUMNS}
        row["run"] = path.parents[2].name
        for name in FIGURES:
            row[f"{name}_low"], row[f"{name}_high"] = metrics["ci95"][name] or (None, None)
        row["tags"] = " ".join(tag.replace(" ", "-") for tag in metrics["tags"])
        rows.append(row)
    return sorted(rows, key=lambda row: (row["corpus"], row["split_scheme"], row["part"], -row["uar"], row["run"]))


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
    header = ("run", "corpus", "scheme", "part", "UAR", "WA", "macro-F1", "clips", "speakers", "tags")
    lines = [header]
    for row in rows:
        fold = "" if row["fold"] is None else f" fold {row['fold']}"
        lines.append(
            (
                row["run"], row["corpus"], f"{row['split_scheme']}{fold}", row["part"],
                *(with_interval(row, name) for name in ("uar", "wa", "macro_f1")),
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
