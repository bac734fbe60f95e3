"""Two runs on the same clips: paired differences over speakers, and the clips whose answer changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser import metrics
from ser.errors import UserError, nearest, some
from ser.files import outputs_folder, run_folder, write_csv, write_json
from ser.metrics_file import current_figures
from ser.predictions import Predictions, read_predictions
from ser.scoring import interval_reason, paired
from ser.splits import PARTS
from ser.wording import missing_text, p_text

__all__ = ["check_same", "checked_figures", "compare", "shared_evaluation", "table"]


def compare(first: str, second: str, part: str = "test") -> tuple[Path, dict[str, Any]]:
    """Compare two runs on a part that both have scored; return the folder written and the comparison.

    Args:
        first, second: names of runs; differences are second less first.
        part: end of the name of an evaluation, such as ``val`` or ``crema_d-none-all``.

    Raises:
        UserError: no such run, not scored on the part, with other weights than the best, or on other clips, labels or
            references.
    """
    folders = [run_folder(name, scored=True).resolve() for name in (first, second)]
    if folders[0] == folders[1]:
        raise UserError(f"{folders[0].name}: the same run twice; compare two")
    evaluation = shared_evaluation(folders, part)
    figures = [checked_figures(folder, evaluation) for folder in folders]
    tags, missing = [made["tags"] for made in figures], figures[0]["clips_missing"]
    one, other = (read_predictions(folder / "eval" / evaluation / "predictions.csv") for folder in folders)
    check_same(one, other, folders)
    result = comparison(one, other) | {
        "first": folders[0].name, "second": folders[1].name, "evaluation": evaluation,
        "first_tags": tags[0], "second_tags": tags[1], "clips_missing": missing,
    }  # fmt: skip
    folder = outputs_folder() / "compare" / f"{folders[0].name}--{folders[1].name}" / evaluation
    write_csv(folder / "flips.csv", ["clip", "speaker", "label", "first", "second"], flips(one, other))
    write_json(folder / "comparison.json", result)
    return folder, result


def shared_evaluation(folders: Sequence[Path], part: str) -> str:
    """Return the name of the evaluation that all runs have of a part.

    Raises:
        UserError: they have none in common, or several.
    """
    have = [{path.parent.name for path in folder.glob("eval/*/predictions.csv")} for folder in folders]
    found = sorted(name for name in set.intersection(*have) if name == part or name.endswith(f"-{part}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"'{part}' may be any of {', '.join(found)}; give the whole name: part=NAME")
    lacking = [folder for folder, names in zip(folders, have, strict=True) if not any(part in n for n in names)]
    if lacking:
        names = " and ".join(folder.name for folder in lacking)
        if part not in ("test", "val"):
            raise UserError(f"{names}: no evaluation '{part}'; one of another corpus is made by: just cross RUN CORPUS")
        if joined := [folder.name for folder in lacking if not (folder / "run.gin").is_file()]:
            raise UserError(f"{' and '.join(joined)}: is made of several runs' answers and has no '{part}' of its own")
        raise UserError(f"{names}: not scored on '{part}' yet; run: just part={part} eval {lacking[0].name}")
    raise UserError(f"no evaluation on '{part}' that all runs have{nearest(part, sorted(set.union(*have)))}")


def checked_figures(folder: Path, evaluation: str) -> dict[str, Any]:
    """Return the metrics of an evaluation, see ``metrics_file.current_figures``.

    Raises:
        UserError: they are of other weights or of an earlier version of ser.
    """
    if figures := current_figures(folder, evaluation):
        return figures
    if not (folder / "run.gin").is_file():
        raise UserError(
            f"{folder.name}: {evaluation} is of runs that were trained or scored again since; "
            "give the just cv or just ensemble that made it once more"
        )
    part = evaluation.rpartition("-")[2]
    again = f": just part={part} eval {folder.name}" if part in PARTS else ""
    raise UserError(
        f"{folder.name}: {evaluation} was scored before the run was finished, or by an earlier version of ser; "
        f"score it again{again}"
    )


def check_same(one: Predictions, other: Predictions, folders: list[Path]) -> None:
    """Raise a UserError where two runs were not scored on the same."""
    names = " and ".join(folder.name for folder in folders)
    if one.labels != other.labels:
        raise UserError(f"{names}: have different labels ({', '.join(one.labels)}; {', '.join(other.labels)})")
    if apart := sorted(set(one.clips) ^ set(other.clips)):
        raise UserError(f"{names}: were scored on different clips: {some(apart)}; score both again: just eval RUN")
    if one.speakers != other.speakers:
        raise UserError(
            f"{names}: speakers have other names now than when one was scored; score both again: just eval RUN"
        )
    changed = [clip for clip, a, b in zip(one.clips, one.references, other.references, strict=True) if a != b]
    if changed:
        raise UserError(
            f"{names}: were scored against different labels of {some(changed)}; choose the same label source"
        )


def comparison(one: Predictions, other: Predictions) -> dict[str, Any]:
    """Return both runs' figures and what is between them."""
    index = {label: number for number, label in enumerate(one.labels)}
    counts = (one.confusions, other.confusions)
    figures = [metrics.figures(per_speaker.sum(0)) for per_speaker in counts]
    recalls = [metrics.recalls(per_speaker.sum(0)) for per_speaker in counts]
    intervals, p = paired(one, *counts)
    right = [predictions.answers == one.indices for predictions in (one, other)]
    return {
        "n_clips": len(one.clips),
        "n_speakers": len(set(one.speakers) - {""}),
        "figures": {
            name: {
                "first": figures[0][name], "second": figures[1][name],
                "difference": figures[1][name] - figures[0][name], "ci95": intervals[name], "p": p[name],
            }
            for name in metrics.FIGURES
        },
        "ci95_reason": interval_reason(one),
        "recall": {
            label: [float(recalls[0][number]), float(recalls[1][number])]
            for label, number in index.items() if not np.isnan(recalls[0][number])
        },
        "won": int((right[1] & ~right[0]).sum()),
        "lost": int((right[0] & ~right[1]).sum()),
    }  # fmt: skip


def flips(one: Predictions, other: Predictions) -> list[dict[str, Any]]:
    """Return a row for each clip that only one of the two answers rightly."""
    rows = []
    for number, reference in enumerate(one.references):
        answers = [predictions.labels[predictions.answers[number]] for predictions in (one, other)]
        if (answers[0] == reference) != (answers[1] == reference):
            rows.append({
                "clip": one.clips[number], "speaker": one.speakers[number], "label": reference,
                "first": answers[0], "second": answers[1],
            })  # fmt: skip
    return rows


def table(folder: Path, result: dict[str, Any]) -> str:
    """Return a comparison for people, and where its files lie."""
    lines = [
        f"{which:<8}{result[which]}" + "".join(f"  [{tag}]" for tag in result[f"{which}_tags"])
        for which in ("first", "second")
    ]
    lines.append(f"on      {result['evaluation']}")
    for name, title in (("uar", "UAR"), ("wa", "WA"), ("macro_f1", "macro-F1")):
        figure = result["figures"][name]
        interval = figure["ci95"]
        shown = f"  95 % over speakers [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
        lines.append(
            f"  {title:<9}{figure['first']:.3f}  {figure['second']:.3f}  {figure['difference']:+.3f}{shown}  "
            f"p {p_text(figure['p'])}"
        )
    if result["ci95_reason"]:
        lines.append(f"  no interval: {result['ci95_reason']}")
    recalls = (f"{label} {second - first:+.2f}" for label, (first, second) in result["recall"].items())
    lines.append("  recall   " + "  ".join(recalls))
    lines.append(f"  {result['won']} clips won, {result['lost']} lost, of {result['n_clips']}")
    people = f"{result['n_speakers']} speakers{missing_text(result['clips_missing'])}"
    lines.append(f"  {people}; p: the two exchanged speaker by speaker; seeds are not in it")
    return "\n".join([*lines, *(str(folder / name) for name in ("comparison.json", "flips.csv"))])
