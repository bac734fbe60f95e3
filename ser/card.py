"""The model card: what a run was trained on, what it reaches, whom it serves, and what it must not be used for.

Markdown with the front matter that the Hugging Face Hub reads; every figure in it comes from the run's own files.
"""

import json
from pathlib import Path
from typing import Any

from ser import __version__, checkpoints
from ser.corpora import licence, readme_entry
from ser.evaluation import is_of_clips
from ser.files import read_json
from ser.interfaces import normalised_by_speaker
from ser.metadata import sound_facts
from ser.metrics_file import is_of_best, is_of_parts, readable
from ser.robustness import shown_value
from ser.run_evaluation import how_chosen, is_current, scorable, tags_of
from ser.runs import TrainedRun
from ser.scoring_count import scorings_now
from ser.subgroups import read_subgroups
from ser.wording import (
    TITLES,
    estimate_of,
    gap_text,
    markdown_table,
    temperature_of,
    title_of,
    with_interval,
)

__all__ = ["model_card"]

# Names of licences as the hub knows them; the weights are passed on under the terms of what they were trained on.
LICENCES = {"crema_d": "odbl", "ravdess": "cc-by-nc-sa-4.0", "demo": "mit"}
FIGURES = ("uar", "wa", "macro_f1", "auc", "nll", "ece")


def model_card(trained: TrainedRun, parity: dict[str, Any], parameters: int) -> str:
    """Return the card of a run.

    Args:
        trained: the run.
        parity: content of ``parity.json``.
        parameters: how many were trained.
    """
    scored = evaluations(trained)
    sections = [
        front_matter(trained, scored), title(trained, parameters), usage(trained), data(trained),
        figures(trained, scored),
        groups(scored, trained.experiment.protocol.corpus), calibration(scored), robustness(trained),
        uses(trained), contamination(trained), formats(trained, parity), citations(trained),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def evaluations(trained: TrainedRun) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and metrics of every evaluation of these very weights."""
    every = readable(trained.run.folder.glob("eval/*/metrics.json"))
    protocol, run = trained.experiment.protocol, trained.run.folder
    own = {protocol.evaluation_name(part): part for part in ("val", "test")}
    return [
        (folder, metrics)
        for folder, metrics in every
        if is_of_best(metrics, trained.checkpoint)
        and (folder.name not in own or is_current(run, protocol, own[folder.name]))
    ]


def over_folds(trained: TrainedRun) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and pooled metrics of the cross-validations that these very weights are a fold of."""
    every = readable(trained.run.folder.parent.glob("*-cv-*/eval/*/metrics.json"))
    return [
        (folder, metrics)
        for folder, metrics in every
        if any(checkpoints.is_of(fold.get("checkpoint"), trained.checkpoint) for fold in metrics.get("folds", []))
        and is_of_parts(metrics, folder)
    ]


def corpora(trained: TrainedRun) -> list[str]:
    """Return the corpora that a run was trained on."""
    protocol = trained.experiment.protocol
    return list(dict.fromkeys([protocol.corpus, *protocol.extra, *trained.start_corpora]))


def front_matter(trained: TrainedRun, scored: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return the YAML that the hub reads; JSON is YAML, so quoting is never a question."""
    licences = {LICENCES.get(corpus, "other") for corpus in corpora(trained)}
    terms = licences.pop() if len(licences) == 1 else "other"
    facts: dict[str, Any] = {
        "license": terms,
        **({"license_name": "of-the-training-data"} if terms == "other" else {}),
        "library_name": "ser-toolkit",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "audio", *corpora(trained), type(trained.experiment.model).__name__],
    }
    results = [
        {
            "task": {"type": "audio-classification", "name": "speech emotion recognition"},
            "dataset": {"type": metrics["corpus"], "name": tagged(metrics), "split": metrics["part"]},
            "metrics": [
                {"type": name, "value": metrics[name], "name": TITLES[name]} for name in ("uar", "wa", "macro_f1")
            ],
        }
        for _, metrics in scored
        if metrics["speaker_independent"] and not {"speakers-seen", "transductive"} & set(metrics["tags"])
    ]
    if results:
        facts["model-index"] = [{"name": trained.run.folder.name, "results": results}]
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
    return "\n".join(["---", *lines, "---"])


def scored_on(metrics: dict[str, Any]) -> str:
    """Name an evaluation, also to those who do not know its tags."""
    by_all = "speaker-normalised" in metrics["tags"] and not metrics.get("speaker_clips")
    return title_of(metrics) + (", normalised by all clips of each speaker" if by_all else "")


def tagged(metrics: dict[str, Any]) -> str:
    """Name an evaluation with its tags, where they have no place of their own."""
    return scored_on(metrics) + (f" [{', '.join(metrics['tags'])}]" if metrics["tags"] else "")


def title(trained: TrainedRun, parameters: int) -> str:
    """Return what the model is, in a few lines."""
    classifier, protocol = trained.experiment.model, trained.experiment.protocol
    lines = [
        f"# {trained.run.folder.name}",
        "",
        f"{type(classifier).__name__}: speech of up to 30 s in, probabilities of {', '.join(classifier.labels)} out. "
        f"Trained on {protocol.describe()} ({len(trained.checkpoint['train_speakers'])} speakers, labels "
        f"{protocol.label_source}); {parameters:,} parameters were trained. Exported by ser {__version__}.",
    ]
    if facts := facts_of(trained):
        weights = f", weights SHA-256 `{facts['weights_sha256']}`" if "weights_sha256" in facts else ""
        lines += ["", f"Pretrained encoder: {facts['source']}, revision {facts['revision']}{weights}."]
    if tags := tags_of(trained):
        lines += ["", f"Tags of every figure: {', '.join(f'`{tag}`' for tag in tags)}."]
    return "\n".join(lines)


def facts_of(trained: TrainedRun) -> dict[str, Any]:
    """Return source, revision and fingerprint of the encoder, in the model or before it; empty without one."""
    inside = trained.experiment.model.encoder
    pretrained = getattr(trained.experiment.features.front_end, "pretrained", None)
    if inside is not None:
        facts = inside.facts
    else:
        facts = {} if pretrained is None else {"source": pretrained.source, "revision": pretrained.revision}
        facts |= (trained.checkpoint.get("features") or {}) if facts else {}
    if facts and Path(facts["source"]).is_absolute():  # a folder of this machine is nobody else's concern
        facts["source"] = Path(facts["source"]).name
    return facts


def started_from(trained: TrainedRun) -> str:
    """Return the pretrained weights that the model began with or listens through; empty where there are none."""
    if facts := facts_of(trained):
        return f"the encoder {facts['source']}"
    if start := getattr(trained.experiment.model, "start", ""):
        return f"the speaker model {Path(start).name if Path(start).is_absolute() else start}"
    return ""


def usage(trained: TrainedRun) -> str:
    """Return how to run it."""
    return f"""## Use

```sh
pip install ser_toolkit-*.whl           # from the toolkit's repository, by: just wheel
ser predict FOLDER speech.wav          # the folder of this card, or where it was published
```

Or with torch alone:

```python
model = torch.jit.load("model.ts")
probabilities = model(sound, lengths)      # float32 [B, N] at 16 kHz, long [B] -> float32 [B, C]
```

Names of the outputs: `labels.json`, in this order: {", ".join(trained.experiment.model.labels)}."""


def data(trained: TrainedRun) -> str:
    """Return what it was trained on, and what the licence of that forbids."""
    lines = ["## Data and licence", ""]
    for corpus in corpora(trained):
        lines.append(f"- {licence(corpus)}")
    lines += ["", "The weights hold what they learned from these recordings; use them within those terms."]
    if started := started_from(trained):
        lines.append(
            f"They also hold those of {started}, which came under a licence of its own: see its page before you pass "
            "them on."
        )
    if "ravdess" in corpora(trained):
        lines.append("RAVDESS forbids commercial use, and so should everyone who uses this model.")
    if dropped := sorted(trained.experiment.protocol.drop):
        lines.append(f"Left out of training and scoring: {', '.join(dropped)}.")
    return "\n".join(lines)


def figures(trained: TrainedRun, scored: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return protocol and figures of every evaluation."""
    protocol = trained.experiment.protocol
    lines = [
        "## Figures", "",
        f"Protocol: {protocol.describe()}, split SHA-256 `{protocol.split.sha256}`. {how_chosen(trained.experiment)} "
        "Intervals are 95 % percentiles over draws of speakers; they do not cover the variation between training "
        "seeds.", "",
    ]  # fmt: skip
    pooled = over_folds(trained)
    if not scored and not pooled:
        return "\n".join([*lines, "Not scored yet: `just eval RUN`, then export again."])
    rows = [("scored on", *(TITLES[name] for name in FIGURES), "clips, speakers", "tags")]
    for folder, metrics in [*scored, *pooled]:
        what = scored_on(metrics)
        if metrics["part"] == "test":
            times = scorings_now(folder.parents[1], metrics)
            what += f" (scored {times} time{'s' if times != 1 else ''})"
        missing = f" ({metrics['clips_missing']} missing)" if metrics["clips_missing"] else ""
        counts = f"{metrics['n_clips']}{missing}, {metrics['n_speakers']}"
        tags = " ".join(metrics["tags"]) or "-"
        rows.append((what, *(with_interval(metrics, name) for name in FIGURES), counts, tags))
    lines += markdown_table(rows)
    if pooled:
        lines += [
            "",
            "`pooled-folds`: each fold scored by a model of its own with these settings; this is one of them.",
        ]
    if reasons := sorted({metrics["ci95_reason"] for _, metrics in [*scored, *pooled] if metrics.get("ci95_reason")}):
        lines += ["", *(f"No interval: {reason}." for reason in reasons)]
    return "\n".join(lines)


def groups(scored: list[tuple[Path, dict[str, Any]]], corpus: str) -> str:
    """Return UAR by group on the model's own corpus, of the test part if it was scored, and the widest gaps."""
    for folder, metrics in sorted(scored, key=lambda each: each[1]["part"] != "test"):
        if metrics["corpus"] != corpus or not (folder / "subgroups.csv").is_file():
            continue
        rows = [row for row in read_subgroups(folder / "subgroups.csv") if row["grouping"] != "speaker"]
        cells = [(row["grouping"], row["group"], str(row["clips"]), estimate_of(row, "uar")) for row in rows]
        table = markdown_table([("by", "group", "clips", "UAR"), *cells])
        gaps = [f"{grouping}: {gap_text(gap)}." for grouping, gap in metrics["gaps"].items()]
        return "\n".join(["## Subgroups", "", f"{tagged(metrics)}.", "", *table, "", *gaps]) if rows else ""
    return ""


def calibration(scored: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return what the temperature changes."""
    rows = [
        f"- {tagged(metrics)}: NLL {metrics['nll']:.3f} to {after['nll']:.3f}, ECE {metrics['ece']:.3f} to "
        f"{after['ece']:.3f} with {temperature_of(metrics)}"
        for _, metrics in scored
        if (after := metrics.get("calibrated"))
    ]
    if not rows:
        return ""
    lead = "A temperature fitted on validation speakers is inside the model. What it changes:"
    return "\n".join(["## Calibration", "", lead, "", *rows])


def robustness(trained: TrainedRun) -> str:
    """Return UAR on worse recordings, if it was measured."""
    protocol = trained.experiment.protocol
    for part in ("test", "val"):
        path = trained.run.folder / "eval" / protocol.evaluation_name(part) / "robustness.json"
        made = read_json(path) if path.is_file() else {}
        if not checkpoints.is_of(made.get("checkpoint"), trained.checkpoint):
            continue
        clips = scorable(protocol, part)
        if not is_of_clips(made, clips, sound_facts(protocol.table, clips)):
            continue
        cells = [
            (row["kind"], str(shown_value(row)), estimate_of(row, "uar"), f"{row['same_answers']:.2f}")
            for row in made["rows"]
        ]
        table = markdown_table([("condition", "value", "UAR", "same answers"), *cells])
        return "\n".join(["## Robustness", "", f"{path.parent.name}.", "", *table])
    if trained.experiment.trains_on_validation:
        return "## Robustness\n\nNot measured: the run was trained on its validation part, too."
    return f"## Robustness\n\nNot measured: `just part=val robustness {trained.run.folder.name}`."


def uses(trained: TrainedRun) -> str:
    """Return what the model is for and what not."""
    kinds = {"custom": "recordings of its maker", "demo": "procedural speech, which is no real speech at all"}
    acted = "short sentences, acted, recorded in a studio"
    heard = "; ".join(dict.fromkeys(kinds.get(corpus, acted) for corpus in corpora(trained)))
    return f"""## Intended use, and what not to use it for

For research on speech emotion recognition, on speech like that which it was trained on: {heard}.
It tells how an utterance sounds to such a corpus's labels. It does not tell what a person feels.

Do not use it to judge people: not in hiring, school, credit, insurance, policing, border control, or medicine. The
European Union's AI Act (2024/1689, article 5) prohibits inferring emotions at work and in education, but for medical
or safety reasons. Tell people who are heard, and ask them first. Acted emotion differs from lived emotion; figures
fall far on other corpora, other languages, noise and distant microphones; groups that the corpus lacks were never
tested."""


def contamination(trained: TrainedRun) -> str:
    """Return what may have heard the test speakers before."""
    lines = ["## What may have heard the test before", ""]
    if started := started_from(trained):
        lines.append(
            f"{started[0].upper()}{started[1:]} was trained by others, on data that this project has not seen; whether "
            "it held recordings of this corpus cannot be ruled out."
        )
    protocol = trained.experiment.protocol
    parts = ["the training part"] + ["the validation part"] * trained.experiment.trains_on_validation
    parts += [f"all of {corpus}" for corpus in protocol.extra]
    begun = trained.checkpoint["state"].get("start")
    if begun:
        before = ", ".join(begun["corpora"]) or "the same split"
        lines.append(f"Training began with the weights of {begun['run']}, which was trained on {before}.")
    if not started and not begun:
        lines.append(f"Nothing: all weights began at random and were trained on {' and '.join(parts)}.")
    if not protocol.split.speaker_independent:
        lines.append("The scheme has the same speakers in all parts: its figures say nothing of other speakers.")
    elif protocol.scheme != "holdout_text":
        lines.append("Sentences repeat across the parts; the split is by speaker, not by text.")
    return "\n".join(lines)


def formats(trained: TrainedRun, parity: dict[str, Any]) -> str:
    """Return what is delivered and how closely it follows the run."""
    by_speaker = normalised_by_speaker(trained.experiment.model)
    uar = "validation UAR of unknown speakers" if by_speaker else "validation UAR"
    rows = [("file", "MiB", "largest difference in probability to the run", f"{uar}, change")]
    for name, found in parity["formats"].items():
        change = "-" if found.get("uar") is None else f"{found['uar']:.3f}, {found['uar_change']:+.3f}"
        rows.append((name, f"{found['bytes'] / 2**20:.1f}", f"{found['largest_difference']:.1e}", change))
    lines = ["## Files", "", *markdown_table(rows), ""]
    lines += [f"{name} is left out: {reason}." for name, reason in parity["left_out"].items()]
    clips = {(found["n_clips"], found.get("of_clips")) for found in parity["formats"].values() if "n_clips" in found}
    lines += [f"UAR of {some} of the {every} validation clips." for some, every in clips if every and some < every]
    if "model_int8.ts" in parity["formats"]:
        lines.append("`model_int8.ts` rounds by the range of a batch: give it one clip at a time.")
    if longest := parity["formats"].get("model.pt2", {}).get("longest_seconds"):
        lines.append(f"`model.pt2` takes clips of up to {longest:g} s, the others 30 s.")
    return "\n".join(lines)


def citations(trained: TrainedRun) -> str:
    """Return what to cite."""
    lines = [f"- {corpus}: {text}" for corpus in corpora(trained) if (text := readme_entry(corpus, "Cite:"))]
    lines.append(f"- the toolkit: ser-toolkit {__version__}")
    if started := started_from(trained):
        lines.append(f"- {started}")
    return "\n".join(["## How to cite", "", *lines])
