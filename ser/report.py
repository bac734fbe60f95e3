"""``report.html``: everything that is known of a run, in one file that needs no network and no script."""

import io
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ser import audio, checkpoints
from ser.corpora import licence
from ser.environment import revision_of, short
from ser.errors import UserError, some
from ser.files import read_json, run_folder, write_text
from ser.metadata import Clip, Table, read_table, same_sound
from ser.metrics_file import is_known, is_of_parts
from ser.pages import bar, details, image, matrix, page, player, section, table
from ser.predictions import read_predictions
from ser.robustness import shown_value
from ser.scoring_count import scorings_now
from ser.subgroups import read_subgroups
from ser.wording import (
    TITLES,
    estimate_of,
    gap_text,
    missing_text,
    temperature_of,
    title_of,
    with_interval,
)

__all__ = ["report"]

SHAKY = {"unfinished", "speakers-seen"}  # tags of figures that no headline is made of where there are others
OLD = "of an earlier version, or of runs that were trained or scored again since"
MISTAKES = 12  # that are shown, the most confident first
PACKAGES = ("torch", "transformers", "speechbrain", "numpy")  # whose versions are named at once


def report(name: str, sound: bool = False) -> Path:
    """Write ``<run>/report.html`` and return its path.

    Args:
        name: of a run, a cross-validation or an ensemble.
        sound: let the most confident mistakes be heard: the page then holds recordings, and names their licence.

    Raises:
        UserError: no such run, or it was not scored yet.
    """
    folder = run_folder(name, scored=True)
    evaluations = [(path.parent, read_json(path)) for path in folder.glob("eval/*/metrics.json")]
    if not evaluations:
        raise UserError(
            f"{folder.name}: not scored yet; run: just eval {folder.name}, or just part=val eval {folder.name}"
        )
    order = {"test": 0, "val": 1}
    current = {place for place, metrics in evaluations if is_known(metrics) and is_of_parts(metrics, place)}
    good = [(place, metrics) for place, metrics in evaluations if place in current]
    good.sort(key=lambda pair: (bool(SHAKY & set(pair[1]["tags"])), order.get(pair[1]["part"], 2), pair[0].name))
    old = sorted(place.name for place, _ in evaluations if place not in current)
    links = "".join(f'<a href="#{escape(place.name)}">{escape(place.name)}</a>' for place, _ in good)
    parts = [
        f"<h1>{escape(folder.name)}</h1>",
        headline(good[0][1]) if good else "",
        f'<nav>{links}<a href="#training">training</a><a href="#settings">settings</a></nav>',
        *(f"<p>{escape(name)}: {OLD}; make it again</p>" for name in old),
        *(section(place.name, title_of(metrics), scored(place, metrics, sound)) for place, metrics in good),
        section("training", "Training", trained(folder)),
        section("settings", "Settings and environment", settings(folder)),
    ]
    path = folder / "report.html"
    write_text(path, page(folder.name, parts))
    return path


def headline(metrics: dict[str, Any]) -> str:
    """Return what the first evaluation says, in a line."""
    tags = "".join(f" [{tag}]" for tag in metrics["tags"])
    return (
        f"<p>{escape(metrics['model'])}, trained on {escape(metrics['trained_on'])}: "
        f"<b>UAR {escape(with_interval(metrics, 'uar'))}</b> on {escape(title_of(metrics) + tags)}.</p>"
    )


def scored(folder: Path, metrics: dict[str, Any], sound: bool) -> list[str]:
    """Return the parts of one evaluation."""
    figures = [(title, with_interval(metrics, name)) for name, title in TITLES.items()]
    if after := metrics.get("calibrated"):
        figures += [
            (f"{TITLES[name]}, with {temperature_of(metrics)}", with_interval(after, name))
            for name in ("nll", "brier", "ece")
        ]
    if strict := metrics.get("strict"):
        figures += [(f"{TITLES[name]}, strict", with_interval(strict, name)) for name in ("uar", "wa")]
    if raters := metrics.get("raters"):
        figures.append(("people who only heard these clips", f"UAR {raters['uar']:.3f}, WA {raters['wa']:.3f}"))
    reason = metrics.get("ci95_reason")
    note = (
        f"No interval: {reason}." if reason else "95 % intervals resample speakers; they do not cover training seeds."
    )
    each = [
        (label, values["clips"], *(with_interval(values, name) for name in ("precision", "recall", "f1", "auc")))
        for label, values in metrics["classes"].items()
    ]
    return [
        protocol(folder, metrics),
        "<h3>Figures</h3>" + table(("figure", "value"), figures) + f'<p class="soft">{escape(note)}</p>',
        "<h3>Classes</h3>" + table(("class", "clips", "precision", "recall", "F1", "AUC"), each, (1,)),
        "<h3>Confusion</h3>" + matrix(metrics["labels"], metrics["confusion"]),
        "<h3>Calibration and abstention</h3>"
        + image(folder / "calibration.png", "reliability before and after the temperature; errors by share answered"),
        groups(folder / "subgroups.csv", metrics["gaps"]),
        robustness(folder, metrics),
        folds(metrics),
        mistakes(folder, metrics, sound),
    ]


def protocol(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the box that says what the figures are of."""
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in metrics["tags"])
    facts = [
        f"{metrics['n_clips']} clips of {metrics['n_speakers']} speakers{missing_text(metrics['clips_missing'])}",
        f"labels {metrics['label_source']}, trained on {metrics['trained_labels']}",
        "no speaker of them was trained on" if metrics["speaker_independent"] else "not independent of the speaker",
        f"split {metrics['split_sha256'][:12]}",
        f"test scorings {scorings_now(folder.parents[1], metrics)}",
    ]
    if chosen := metrics.get("chosen"):
        facts.append(chosen[0].lower() + chosen[1:].rstrip("."))
    if heard := [name for name in metrics.get("train_speakers") or [] if name]:
        facts.append(f"trained on {len(heard)} speaker{'s' if len(heard) > 1 else ''}: {some(heard, 40)}")
    if metrics["absent"]:
        facts.append(f"no clip of {', '.join(metrics['absent'])}")
    if metrics.get("left_out"):
        facts.append("left out: " + ", ".join(f"{count} {label}" for label, count in metrics["left_out"].items()))
    if metrics.get("calm_policy"):
        facts.append(f"calm: {metrics['calm_policy']}")
    return f'<div class="box"><p>{tags}{escape("; ".join(facts))}.</p></div>'


def groups(path: Path, gaps: dict[str, Any]) -> str:
    """Return the table of subgroups."""
    if not path.is_file():
        return ""
    shown = []
    for row in read_subgroups(path):
        figure = estimate_of(row, "uar"), bar(row["uar"]) if row["uar"] is not None else ""
        shown.append((row["grouping"], row["group"], row["clips"], row["speakers"], *figure))
    said = [f"{grouping}: {gap_text(gap)}" for grouping, gap in gaps.items()]
    note = f'<p class="soft">{escape("; ".join(said))}.</p>' if said else ""
    header = ("by", "group", "clips", "speakers", "UAR", "")
    return "<h3>Subgroups</h3>" + note + table(header, shown, (2, 3))


def robustness(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the table and the picture of worse recordings, if they were made."""
    if not (folder / "robustness.json").is_file():
        return ""
    made, rows = read_json(folder / "robustness.json"), []
    same_clips = made.get("clips_sha256", metrics.get("clips_sha256")) == metrics.get("clips_sha256")
    same_clips = same_clips and same_sound(made.get("sound"), metrics.get("sound") or {})
    if not same_clips or not checkpoints.same(made.get("checkpoint"), metrics.get("checkpoint")):
        return "<h3>Robustness</h3><p>Of other weights or clips than these; make it again: just robustness RUN.</p>"
    for row in made["rows"]:
        uar, change = estimate_of(row, "uar"), estimate_of(row, "change", "+")
        rows.append((row["kind"], shown_value(row), uar, change, f"{row['same_answers']:.2f}"))
    header = ("condition", "value", "UAR", "change", "same answers")
    picture = image(folder / "robustness.png", "UAR on worse recordings")
    return "<h3>Robustness</h3>" + picture + table(header, rows, (1, 4))


def folds(metrics: dict[str, Any]) -> str:
    """Return the table of folds of a cross-validation."""
    if not metrics.get("folds"):
        return ""
    rows = [(fold["fold"], f"{fold['uar']:.3f}", f"{fold['wa']:.3f}", fold["run"]) for fold in metrics["folds"]]
    spread = metrics["over_folds"]["uar"]
    note = f'<p class="soft">UAR over folds: mean {spread["mean"]:.3f}, standard deviation {spread["sd"]:.3f}.</p>'
    return "<h3>Folds</h3>" + table(("fold", "UAR", "WA", "run"), rows, (0,)) + note


def mistakes(folder: Path, metrics: dict[str, Any], sound: bool) -> str:
    """Return the most confident wrong answers, with players where they are asked for."""
    predictions = read_predictions(folder / "predictions.csv")
    confidence, answers = predictions.probabilities.max(1), predictions.answers
    wrong = np.flatnonzero(answers != predictions.indices)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    if not len(wrong):
        return ""
    table_of, clips = corpus_of(metrics["corpus"]) if sound else (None, {})
    rows = []
    for row in wrong:
        heard: object = ""
        clip = clips.get(predictions.clips[row])
        if table_of is not None and clip is not None:
            heard = player(wav(table_of, clip))
        answer = predictions.labels[answers[row]]
        said = (predictions.clips[row], predictions.speakers[row], predictions.references[row], answer)
        rows.append((*said, f"{confidence[row]:.2f}", heard))
    terms = f'<p class="soft">Recordings: {escape(licence(metrics["corpus"]))}</p>' if sound else ""
    header = ("clip", "speaker", "reference", "answer", "confidence", "sound" if sound else "")
    return "<h3>The most confident mistakes</h3>" + table(header, rows, (4,)) + terms


def corpus_of(corpus: str) -> tuple[Table, dict[str, Clip]]:
    """Return a corpus's table and its clips by name."""
    known = read_table(corpus)
    return known, {clip.clip: clip for clip in known.clips}


def wav(known: Table, clip: Clip) -> bytes:
    """Return a clip at 16 kHz as the bytes of a WAV file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio.read(known.sound_path(clip)), audio.SAMPLE_RATE, "PCM_16", format="WAV")
    return buffer.getvalue()


def trained(folder: Path) -> list[str]:
    """Return curves, what the checkpoint says of itself, and the weights of an encoder's layers."""
    path = folder / checkpoints.BEST
    if not path.is_file():
        return []
    checkpoint = checkpoints.load(path)
    state, encoder = checkpoint["state"], checkpoint.get("encoder")
    speakers = len(checkpoint["train_speakers"])
    facts = [f"weights of epoch {state['epoch']}, step {state['step']}; trained on {speakers} speakers"]
    if "temperature" in checkpoint:
        facts.append(f"temperature {checkpoint['temperature']:.3f}")
    if encoder:
        facts.append("encoder " + ", ".join(f"{name} {value}" for name, value in encoder.items()))
    weights = [value for name, value in checkpoint["model"].items() if name.endswith("sum.scores")]
    shares = weights[0].softmax(0).tolist() if weights else []
    rows = [(place, f"{share:.3f}", bar(share / max(shares))) for place, share in enumerate(shares)]
    layers = (
        "<h3>Weights of the layers used, in their order</h3>" + table(("place", "weight", ""), rows, (1,))
        if rows
        else ""
    )
    return [
        image(folder / "curves.png", "loss and validation figures by epoch"),
        f'<p class="soft">{escape("; ".join(facts))}.</p>',
        layers,
    ]


def settings(folder: Path) -> list[str]:
    """Return the resolved settings and what each session ran on."""
    parts = []
    if (folder / "run.gin").is_file():
        parts.append(details("run.gin: every setting, defaults included", (folder / "run.gin").read_text()))
    if (folder / "ensemble.json").is_file():
        parts.append(details("members", json.dumps(read_json(folder / "ensemble.json"), indent=2)))
    if (folder / "environment.json").is_file():
        parts += environment(read_json(folder / "environment.json"))
    return parts


def environment(content: Any) -> list[str]:
    """Return what the last session ran on, and all sessions; a foreign file is shown as it is."""
    try:
        last = content["sessions"][-1]
        versions = ", ".join(f"{name} {last['packages'].get(name)}" for name in PACKAGES)
        machine = f"{last['machine']['device']}, {last['machine']['cores']} cores; Python {last['python']}, {versions}"
        line = f"<p>{escape(machine)}; commit {escape(short(revision_of(last['git'])))}.</p>"
    except (KeyError, TypeError, IndexError):
        line = "<p>environment.json is not of ser.</p>"
    return [line, details("all sessions", json.dumps(content, indent=2))]
