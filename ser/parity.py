"""Does an exported model answer as the run does? Largest differences over lengths and batches, and what they do to UAR.

Shapes: B clips, N samples at 16 kHz, C classes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser import audio, demo, metrics
from ser.audio import SAMPLE_RATE
from ser.errors import UserError
from ser.export_index import MOST_SAMPLES
from ser.pipeline import Pipeline
from ser.progress import progress_bar
from ser.runs import TrainedRun

__all__ = ["Answers", "Wanted", "answers_of", "compare", "compare_known", "variant_figures"]

Answers = Callable[[Tensor, Tensor], Tensor]  # sound [B, N] and lengths [B] to probabilities [B, C]

ALONE = (0.5, 0.73, 1.0, 2.0, 3.3, 5.0, 8.0, 13.0, 29.0, 30.0)  # seconds
TOGETHER = (
    (1.1, 0.5), (2.2, 2.2), (3.0, 0.9, 4.7), (0.6, 2.5, 1.7, 6.1), (1.3, 2.9, 0.8, 2.0, 3.6, 5.5, 4.1, 9.0),
    (30.0, 1.0),
)  # fmt: skip
LARGE, FEW = 100_000_000, 200  # parameters from which seconds go into a clip; clips that are answered then, about


@dataclass(frozen=True)
class Wanted:
    """Batches, and what the eager model says of them.

    Attributes:
        seconds: of the clips that stand alone.
        batches: seconds of the clips of each batch of several.
        inputs: sound [B, N] and lengths [B] of every batch, those alone first.
        answers: probabilities [B, C] of each.
    """

    seconds: list[float]
    batches: list[list[float]]
    inputs: list[tuple[Tensor, Tensor]]
    answers: list[Tensor]


@torch.no_grad()
def answers_of(pipeline: Pipeline) -> Wanted:
    """Return what a pipeline says of procedural speech of many lengths, alone and in batches."""
    groups = [(seconds,) for seconds in ALONE] + list(TOGETHER)
    inputs = [batch(group, number) for number, group in enumerate(groups)]
    return Wanted(list(ALONE), [list(group) for group in TOGETHER], inputs, [pipeline(*each) for each in inputs])


def batch(seconds: tuple[float, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return a padded batch of speech, the padding filled with noise that no model may hear."""
    clips = [speech(round(length * SAMPLE_RATE), 7 * seed + place) for place, length in enumerate(seconds)]
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = pad_sequence(clips, batch_first=True, padding_value=0.2)
    return padded, lengths


def speech(samples: int, seed: int) -> Tensor:
    """Return procedural speech float32 [N]."""
    names = demo.clip_names()
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < samples:
        parts.append(demo.synthesise(names[(131 * seed + 17 * len(parts)) % len(names)]))
    return torch.from_numpy(np.concatenate(parts)[:samples]).float()


@torch.no_grad()
def compare(answer: Answers, wanted: Wanted, longest: int, alone: bool = False) -> dict[str, Any]:
    """Return the largest difference in probability, and at which clip.

    Args:
        answer: of the exported model.
        wanted: of the run.
        longest: samples that the format takes; longer clips are passed over.
        alone: passes over batches of several, too.
    """
    worst, where, sizes = 0.0, "", []
    for (sound, lengths), expected in zip(wanted.inputs, wanted.answers, strict=True):
        if int(lengths.max()) > longest or (alone and len(lengths) > 1):
            continue
        given = answer(sound, lengths)
        sizes.append(len(lengths))
        differences = (given - expected).abs().amax(1)
        row = int(differences.nan_to_num(torch.inf).argmax())
        if not where or not float(differences[row]) <= worst:
            worst = float(differences[row])
            where = f"a clip of {int(lengths[row]) / SAMPLE_RATE:g} s in a batch of {len(lengths)}"
    seconds = longest / SAMPLE_RATE
    return {"largest_difference": worst, "where": where, "batches_of": sizes, "longest_seconds": seconds}


@torch.no_grad()
def compare_known(model: Any, pipeline: Pipeline, wanted: Wanted, alone: bool = False) -> dict[str, Any]:
    """Return the largest differences where the speakers are known: in probability, and of what clips tell of them.

    Args:
        model: TorchScript with the methods ``known`` and ``moments`` of a pipeline.
        pipeline: of the run.
        wanted: its batches.
        alone: passes over batches of several.
    """
    known, told = torch.zeros(()), torch.zeros(())  # tensors: their maximum lets no NaN pass
    for sound, lengths in wanted.inputs:
        if alone and len(lengths) > 1:
            continue
        ours, theirs = pipeline.moments(sound, lengths), model.moments(sound, lengths)
        for own, other in zip(ours, theirs, strict=True):
            told = told.maximum((own - other).abs().max() / own.abs().max().clamp_min(1))
        _, mean, _ = ours
        speaker = torch.full((len(lengths),), 3.0), mean + 0.1, torch.ones_like(mean)
        difference = model.known(sound, lengths, *speaker) - pipeline.known(sound, lengths, *speaker)
        known = known.maximum(difference.abs().max())
    return {"largest_difference_known": float(known), "largest_difference_moments": float(told)}


@torch.no_grad()
def variant_figures(answer: Answers, pipeline: Pipeline, trained: TrainedRun, shown: bool) -> dict[str, Any]:
    """Return UAR and WA on the validation part of a variant that rounds, beside the run's own, clip by clip.

    Of a run that was trained on the validation part, or without its sound at hand, the reason why not.
    """
    protocol = trained.experiment.protocol
    if trained.experiment.trains_on_validation:
        return {"uar": None, "reason": "the run was trained on its validation part, too"}
    clips = [clip for clip in protocol.parts["val"] if clip.corpus == protocol.corpus]
    every = len(clips)
    if sum(parameter.numel() for parameter in pipeline.parameters()) > LARGE:
        clips = clips[:: -(-len(clips) // FEW) or 1]
    labels = {label: number for number, label in enumerate(trained.experiment.model.labels)}
    answers: list[tuple[int, int]] = []
    try:
        for clip in progress_bar(clips, "validation", len(clips), shown=shown):
            sound = torch.from_numpy(audio.read(protocol.table.sound_path(clip)))[None, :MOST_SAMPLES]
            lengths = torch.tensor([sound.shape[1]])
            answers.append((int(pipeline(sound, lengths).argmax()), int(answer(sound, lengths).argmax())))
    except UserError as error:
        print(f"validation part: {error}", file=sys.stderr)
        return {"uar": None, "reason": "the validation part cannot be heard on the machine that exported it"}
    if not clips:
        return {"uar": None, "reason": "no clip of the validation part is at hand"}
    exact, rounded = np.array(answers).T
    references = np.array([labels[clip.emotion] for clip in clips])
    found: dict[str, Any] = {
        "part": "val",
        "n_clips": len(clips),
        "of_clips": every,
        "same_answers": float((exact == rounded).mean()),
    }
    for name, figure in (("uar", metrics.uar), ("wa", metrics.wa)):
        own, theirs = (float(figure(metrics.confusion(references, x, len(labels)))) for x in (rounded, exact))
        found |= {name: own, f"{name}_exact": theirs, f"{name}_change": own - theirs}
    return found
