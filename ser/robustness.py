"""How a run holds up on worse recordings: the same clips again and again, each time made worse in one way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser import __version__, checkpoints, dist, metrics, plots, stats
from ser.audio import SAMPLE_RATE
from ser.augment import ClipRandom
from ser.batches import ClipReader, SoundSource
from ser.distortions import CONDITIONS, Distortion, recorded
from ser.errors import UserError
from ser.evaluation import clips_hash
from ser.extraction import stored
from ser.features import Features, store_folder
from ser.files import read_json, write_csv, write_json
from ser.metadata import Clip, sound_facts
from ser.predictions import Predictions
from ser.progress import progress_bar
from ser.run_evaluation import about_run, predict_clips, scorable, seen_tags, tags_of
from ser.runs import load_trained
from ser.samplers import bucketed
from ser.scoring import draws_of, interval_reason
from ser.scoring_count import count_scoring
from ser.wording import aligned, estimate_of

__all__ = ["CONDITIONS", "Distorted", "robustness", "shown_value", "table"]

COLUMNS = (
    "kind", "value", "uar", "uar_low", "uar_high", "change", "change_low", "change_high", "same_answers",
)  # fmt: skip
BUDGET_SECONDS = 32.0  # padded sound whose features are computed at once


class Distorted:
    """A source of inputs that makes each sound worse and computes its features anew; as of ``batches.Source``.

    Args:
        sound: of the clips.
        features: of the experiment.
        distort: what is done to a clip; None for nothing.
        place: of the condition, which random numbers depend on.
        others: clips of whose speakers babble is made.
    """

    def __init__(
        self,
        sound: SoundSource | ClipReader,
        features: Features,
        distort: Distortion | None,
        place: int,
        others: Sequence[Clip],
    ):
        self.sound, self.features, self.distort = sound, features, distort
        self.place, self.others = place, others
        self.time_axis = features.time_axis
        self.made_with = features.front_end.made_with if features.cached else {}
        self.done: dict[str, tuple[Tensor, int]] = {}

    def length(self, clip: Clip) -> int:
        """Return the length of a clip's input."""
        return self.of(clip)[1]

    def read(self, clip: Clip) -> Tensor:
        """Return a clip's input."""
        return self.of(clip)[0]

    def of(self, clip: Clip) -> tuple[Tensor, int]:
        """Return a clip's input and its length, as the store or a sound file would hold them."""
        if clip.clip not in self.done:
            self.prepare([clip])
        return self.done[clip.clip]

    @torch.inference_mode()
    def prepare(self, clips: Sequence[Clip]) -> None:
        """Make the inputs of many clips, those of similar length together."""
        sounds = [self.worse(clip) for clip in clips]
        if not self.features.cached:
            self.done |= {clip.clip: (x, len(x)) for clip, x in zip(clips, sounds, strict=True)}
            return
        device = dist.device()
        for rows in bucketed([len(x) for x in sounds], round(BUDGET_SECONDS * SAMPLE_RATE)):
            batch = pad_sequence([sounds[row] for row in rows], batch_first=True).to(device)
            lengths = torch.tensor([len(sounds[row]) for row in rows], device=device)
            values, frames = self.features.front_end(batch, lengths)
            for row, value, count in zip(rows, stored(values, self.features).cpu(), frames.tolist(), strict=True):
                kept = value if self.time_axis is None else value.narrow(self.time_axis, 0, count).clone()
                self.done[clips[row].clip] = kept, count

    def worse(self, clip: Clip) -> Tensor:
        """Return a clip's sound [N], made worse."""
        sound = self.sound.read(clip)
        if self.distort is None:
            return sound
        random = ClipRandom(0, 0, self.place, [clip.clip])
        return self.distort(sound[None], random, lambda random: self.voice(clip, random))[0]

    def voice(self, clip: Clip, random: ClipRandom) -> Tensor:
        """Return the sound of some clip of another speaker, at one loudness."""
        strangers = [
            other for other in self.others
            if other.clip != clip.clip and (not clip.speaker or other.speaker != clip.speaker)
        ]  # fmt: skip
        sound = self.sound.read(strangers[random.integers(len(strangers))[0]])
        return sound / sound.square().mean().sqrt().clamp_min(1e-6)


def robustness(
    name: str, part: str = "test", progress: bool = True, noise: str = ""
) -> tuple[Path, list[dict[str, Any]]]:
    """Score a run on a part made worse in every way of ``CONDITIONS``; babble is made of training speakers.

    The next call resumes one that was interrupted.

    Args:
        name: of the run.
        part: test (counted as one scoring) or val.
        progress: show a bar.
        noise: folder of recorded noise to add, too.

    Returns:
        The folder of the evaluation, where ``robustness.csv``, ``.json`` and ``.png`` are written, and a row of
        ``COLUMNS`` a condition, the first being the clips as they are. ``change`` of the UAR is paired over speakers.

    Raises:
        UserError: as ``run_evaluation.evaluate``, or sound that cannot be read.
    """
    kinds = CONDITIONS | (recorded(noise) if noise else {})
    trained = load_trained(name)
    protocol, features = trained.experiment.protocol, trained.experiment.features
    clips = scorable(protocol, part)
    seen_tags(trained, clips, part, seen=False)  # raises
    folder = trained.run.folder / "eval" / protocol.evaluation_name(part)
    index = store_folder(protocol.corpus, features) / "index.json"
    if features.cached and index.is_file():  # in the precision of the features that it is compared with
        features.front_end.settle(read_json(index)["spec"]["front_end"])
    sound = ClipReader(SoundSource(protocol.table), ())  # which keeps what it has read
    others = [clip for clip in protocol.parts["train"] if clip.corpus == protocol.corpus]
    if not others:
        raise UserError(
            f"{trained.run.folder.name}: babble is of voices of {protocol.corpus} that train, and none does"
        )

    def answer(distort: Distortion | None, place: int) -> Predictions:
        source = Distorted(sound, features, distort, place, others)
        source.prepare(protocol.members[part])
        return predict_clips(trained, protocol.corpus, clips, protocol.members[part], source=source, progress=False)

    heard = sound_facts(protocol.table, clips)
    part_file = folder / "robustness.part.json"
    of = checkpoints.identity(trained.checkpoint) | {
        "ser": __version__, "clips": [[clip.clip, clip.emotion] for clip in clips], "noise": noise,
        "sound": heard,
    }  # fmt: skip
    known = rows_so_far(part_file, of)
    if part == "test" and not known:
        count_scoring(trained.run.folder, folder.name, "-robustness")
    conditions = [(kind, value, distort) for kind, values in kinds.items() for value, distort in values.items()]
    clean = answer(None, 0)
    rows = [row_of("as it is", None, clean, clean)]
    for place, (kind, value, distort) in enumerate(
        progress_bar(conditions, "robustness", len(conditions), "condition", progress), start=1
    ):
        rows.append(known.get((kind, value)) or row_of(kind, value, clean, answer(distort, place)))
        write_json(part_file, {"of": of, "rows": rows})
    write_csv(folder / "robustness.csv", COLUMNS, rows)
    about = about_run(trained)
    tags = tags_of(trained)
    facts = {"run": about["run"], "evaluation": folder.name, "clips": len(clips), "checkpoint": about["checkpoint"]}
    facts |= {"clips_sha256": clips_hash(clips), "sound": heard}
    facts |= {"tags": tags, "clips_missing": protocol.table.missing, "noise": noise}
    write_json(folder / "robustness.json", facts | {"ci95_reason": interval_reason(clean), "rows": rows})
    plots.robustness(
        folder / "robustness.png",
        rows,
        plots.tagged_title(trained.run.folder.name, f"{folder.name}, {len(clips)} clips", tags=tags),
    )
    part_file.unlink(missing_ok=True)
    return folder, rows


def rows_so_far(path: Path, of: dict[str, Any]) -> dict[tuple[str, float | None], dict[str, Any]]:
    """Return the rows that an interrupted call has left of the same weights and clips, by kind and value."""
    try:
        content = read_json(path) if path.is_file() else {}
        return {(row["kind"], row["value"]): row for row in content["rows"]} if content["of"] == of else {}
    except (UserError, KeyError, TypeError):
        return {}


def row_of(kind: str, value: float | None, clean: Predictions, worse: Predictions) -> dict[str, Any]:
    """Return the row of one condition."""
    weights = draws_of(clean)
    before, after = (metrics.uar(stats.weighted(made.confusions, weights)) for made in (clean, worse))
    row: dict[str, Any] = {"kind": kind, "value": value}
    for figure, drawn in (("uar", after), ("change", after - before)):
        row |= stats.columns(figure, float(drawn[0]), stats.interval(drawn[1:]))
    return row | {"same_answers": float((clean.answers == worse.answers).mean())}


def table(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows for people, and where the files lie."""
    lines: list[tuple[str, ...]] = [("", "value", "UAR", "change", "same answers")]
    for row in rows:
        same = f"{row['same_answers']:.3f}"
        lines.append((row["kind"], shown_value(row), estimate_of(row, "uar"), estimate_of(row, "change", "+"), same))
    tags = read_json(folder / "robustness.json")["tags"]
    files = (str(folder / f"robustness.{ending}") for ending in ("csv", "png"))
    return "\n".join([*(f"[{tag}]" for tag in tags), *aligned(lines), *files])


def shown_value(row: dict[str, Any]) -> str:
    """Return how much of its kind a condition is; nothing of the clips as they are."""
    return "" if row["value"] is None else f"{row['value']:g}"
