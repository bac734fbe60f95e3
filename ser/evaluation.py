"""Model x clips -> predictions -> figures; where evaluations are written."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import dist, plots
from ser.batches import ClipReader
from ser.errors import UserError
from ser.features import Features
from ser.files import write_csv, write_json
from ser.interfaces import Classifier, normalised_by_speaker
from ser.layers import SpeakerStatistics
from ser.metadata import Clip, same_sound
from ser.predictions import Predictions, write_predictions
from ser.progress import progress_bar
from ser.samplers import bucketed
from ser.scoring import score
from ser.speakers import SpeakerPool
from ser.subgroups import COLUMNS, subgroups
from ser.wording import title_of

__all__ = ["clips_hash", "is_of_clips", "over_clips", "predict", "write_evaluation"]

BUDGET_SECONDS = 128.0  # padded sound of an evaluation batch


@torch.inference_mode()
def predict(
    model: Classifier,
    features: Features,
    reader: ClipReader,
    clips: Sequence[Clip],
    precision: str = "float32",
    progress: bool = False,
    enrolled: Sequence[Clip] | None = None,
) -> Predictions:
    """Run a model over whole clips, in batches of similar length; the order of ``clips`` is kept.

    A model that normalises embeddings by speaker sees those of all of ``enrolled`` (by default ``clips``) before it
    answers. Several processes share the batches, and each returns all predictions.

    Raises:
        UserError: an input that cannot be read, or an answer that is not finite.
    """
    twice = normalised_by_speaker(model) == "embedding"
    asked = {clip.clip for clip in clips}
    heard = [*clips, *(clip for clip in enrolled or () if clip.clip not in asked)] if twice else clips

    def work(inputs: torch.Tensor, lengths: torch.Tensor, speakers: SpeakerStatistics | None) -> torch.Tensor:
        return model.embed(inputs, lengths) if twice else model(inputs, lengths, speakers)

    answers = over_clips(model, features, reader, heard, work, precision, progress)
    if twice:
        place = {clip.clip: row for row, clip in enumerate(heard)}
        speakers = SpeakerPool(heard, lambda clip: answers[place[clip.clip]], None, reader.limit).of(clips)
        device = dist.device()
        with evaluating(model):
            answers = model.classify(answers[: len(clips)].float().to(device), speakers.to(device)).double().cpu()
    logits = answers.numpy()
    bad = np.flatnonzero(~np.isfinite(logits).all(1)).tolist()
    if bad:
        raise UserError(f"clip '{clips[bad[0]].clip}': the model's answer is not finite; train again, lower train/lr")
    return Predictions(
        [clip.clip for clip in clips], [clip.speaker for clip in clips], [clip.emotion for clip in clips],
        reader.labels, logits,
    )  # fmt: skip


@contextmanager
def evaluating(model: Classifier) -> Iterator[None]:
    """Let a model be in evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def over_clips(
    model: Classifier,
    features: Features,
    reader: ClipReader,
    clips: Sequence[Clip],
    work: Callable[[torch.Tensor, torch.Tensor, SpeakerStatistics | None], torch.Tensor],
    precision: str = "float32",
    progress: bool = False,
) -> torch.Tensor:
    """Return what ``work`` makes of inputs, lengths and known speakers, float64 [N, ...] in the order of the clips.

    Several processes share the batches, and each returns all.

    Raises:
        UserError: an input that cannot be read.
    """
    device, rate = dist.device(), features.input_rate

    def answer(rows: Sequence[int]) -> torch.Tensor:
        batch = reader.whole([clips[row] for row in rows]).to(device)
        inputs, lengths = features.frames(batch.inputs, batch.lengths)
        with dist.autocast(device, precision):
            return work(inputs, lengths, batch.speakers).double().cpu()

    done: list[int] = []
    outputs: list[torch.Tensor] = []
    batches = bucketed([reader.source.length(clip) for clip in clips], round(BUDGET_SECONDS * rate))
    with evaluating(model), progress_bar(None, "evaluate", len(clips), shown=progress) as bar:
        for rows, out in dist.as_memory_allows(batches[dist.rank() :: dist.world_size()], answer):
            done += rows
            outputs.append(out)
            bar.update(len(rows))
    return joined(done, outputs)


def joined(rows: list[int], outputs: list[torch.Tensor]) -> torch.Tensor:
    """Return the outputs of all processes in the order of the clips; ``rows`` are those of this process."""
    parts = dist.all_gather((rows, torch.cat(outputs) if outputs else None))
    values = torch.cat([part for _, part in parts if part is not None])
    order = torch.tensor([row for where, _ in parts for row in where])
    return torch.empty_like(values).index_copy(0, order, values)


def clips_hash(clips: Iterable[Clip]) -> str:
    """Return the SHA-256 of the sorted ``clip,emotion`` lines: what figures are of, and against which labels."""
    lines = sorted(f"{clip.clip},{clip.emotion}\n" for clip in clips)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_of_clips(figures: Mapping[str, Any], clips: Iterable[Clip], sound: Mapping[str, Any]) -> bool:
    """Say whether figures are of these clips, labels and ``metadata.sound_facts``.

    Figures of an earlier version of ser do not say so, and are believed.
    """
    now = clips_hash(clips)
    return figures.get("clips_sha256", now) == now and same_sound(figures.get("sound"), sound)


def write_evaluation(
    folder: Path,
    predictions: Predictions,
    about: Mapping[str, Any],
    clips: Sequence[Clip],
    tempered: Predictions | None = None,
) -> dict[str, Any]:
    """Score, write ``metrics.json``, ``predictions.csv``, ``subgroups.csv`` and pictures, and return the metrics.

    Args:
        folder: ``<run>/eval/<corpus>-<scheme>-<part>``.
        predictions: of a part.
        about: protocol, tags and counts that stand beside the figures.
        clips: of the part.
        tempered: as of ``scoring.score``.

    Raises:
        UserError: no clip to score, or a folder that cannot be written.
    """
    if not predictions.clips:
        raise UserError(f"{folder}: no clip to score")
    rows, gaps = subgroups(predictions, clips)
    result = {**score(predictions, tempered), "gaps": gaps, "clips_sha256": clips_hash(clips), **about}
    write_predictions(folder / "predictions.csv", predictions)
    write_csv(folder / "subgroups.csv", COLUMNS, rows)
    title = plots.tagged_title(about["run"], f"{title_of(about)}: UAR {result['uar']:.3f}", tags=about["tags"])
    plots.confusion(folder / "confusion.png", np.array(result["confusion"]), predictions.labels, title)
    plots.calibration(folder / "calibration.png", result, title)
    write_json(folder / "metrics.json", result)
    return result
