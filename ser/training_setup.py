"""What the loop works with: data opened and checked, model and optimiser on the device."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser import dist, evaluation
from ser.batches import Batch, ClipReader, Joined, check_labels, joined, open_source
from ser.errors import UserError, some
from ser.experiment import Experiment
from ser.features import Features
from ser.initial_weights import read_start, start_from
from ser.interfaces import Classifier, normalised_by_speaker
from ser.layers import InputNorm
from ser.losses import class_weights
from ser.metadata import Clip
from ser.optim import EMA
from ser.predictions import Predictions
from ser.samplers import shuffled
from ser.speakers import EmbeddingMemory
from ser.wording import missing_text

__all__ = ["Setup", "describe", "fit_input_norm", "set_up"]


@dataclass(frozen=True)
class Setup:
    """What the loop works with, ready on the device.

    Attributes:
        experiment: what to train.
        train, validation: clips of the two parts; all train and none validates where the run says so.
        reader: of their inputs.
        copies: readers of their altered copies, which training alone hears.
        model, optimizer: of the experiment.
        ema: moving average of what the model learns, or None.
        weights, prior: of the classes in the training part, float [C].
        crop: length of a training crop, in samples or frames; None for whole clips.
        start: what is known of the run that training begins with, or None.
        sound: ``Protocol.sound`` as it was when training began, or went on.
        embeddings: the newest of each training clip, for a model that normalises them by speaker.
    """

    experiment: Experiment
    train: list[Clip]
    validation: list[Clip]
    reader: ClipReader
    copies: list[ClipReader]
    model: Classifier
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    weights: Tensor
    prior: Tensor
    crop: int | None
    start: dict[str, Any] | None
    embeddings: EmbeddingMemory | None
    sound: dict[str, dict[str, str | None]]

    @property
    def skipped(self) -> set[str]:
        """Clips that could not be read so far, by this process."""
        return set().union(*(reader.unreadable for reader in (self.reader, *self.copies)))

    def answering(self) -> AbstractContextManager[None]:
        """Let the model answer with the average, where there is one: what validates and is kept."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def everything(self, clips: Sequence[Clip]) -> Batch:
        """Return clips and all their copies as one batch, on the device."""
        readers = [self.reader, *self.copies]
        for reader in readers:
            clips = reader.readable(clips)
        return joined([reader.whole(clips) for reader in readers]).to(self.weights.device)

    def order(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch as rows of ``train``, repeats as of ``samplers.shuffled``."""
        training = self.experiment.training
        lengths, shares = None, None
        if self.crop is None and self.reader.source.time_axis is not None:
            lengths = [self.reader.source.length(clip) for clip in self.train]
        if training.balanced:
            each = 1 / self.prior.cpu().double().clamp_min(1e-12)
            rare = self.reader.targets(self.train).double() @ each
            shares = (rare / rare.sum()).tolist()
        return shuffled(len(self.train), training.batch_size, self.experiment.seed, epoch, lengths, shares)

    def pieces(self, order: Sequence[np.ndarray], epoch: int) -> Iterator[list[Batch]]:
        """Yield this process's parts of each batch of ``order``, on the device.

        A part brings the clips before it along, as many as operations mix clips of a batch with their neighbours, so
        that each clip meets the same neighbour however a batch is divided.
        """
        accumulate = self.experiment.training.accumulate
        mixing = len(self.experiment.augment.mixing)
        for rows in order:
            parts = np.array_split(np.arange(len(rows)), accumulate * dist.world_size())
            own = parts[dist.rank() * accumulate : (dist.rank() + 1) * accumulate]
            batches = []
            for places in own:
                neighbours = min(mixing, len(rows) - len(places)) if len(places) else 0
                chosen = rows[(np.arange(-neighbours, len(places)) + places[0]) % len(rows)] if len(places) else places
                batch = self.piece(chosen, neighbours, epoch)
                if batch is not None:
                    batches.append(batch)
            yield batches

    def piece(self, rows: np.ndarray, neighbours: int, epoch: int) -> Batch | None:
        """Return a part of a batch, or None where too few of its clips can be read to learn from."""
        clips = [self.train[row % len(self.train)] for row in rows]
        there = {clip.clip for clip in self.reader.readable(clips)}
        drawn = [(clip, int(row) // len(self.train)) for clip, row in zip(clips, rows, strict=True)]
        known = [(clip, repeat) for clip, repeat in drawn if clip.clip in there]
        neighbours = sum(clip.clip in there for clip in clips[:neighbours])
        fewest = 2 if self.model.batch_statistics else 1  # one clip alone has no statistics of a batch
        if len(known) - neighbours < fewest:
            return None
        repeats = [repeat for _, repeat in known]
        batch = self.reader.crops([clip for clip, _ in known], self.crop, self.experiment.seed, epoch, repeats)
        batch.neighbours, batch.repeats = neighbours, repeats
        return batch.to(self.weights.device)

    def validate(self) -> Predictions:
        """Predict the validation part."""
        experiment = self.experiment
        precision = experiment.training.precision
        with self.answering():
            return evaluation.predict(
                self.model, experiment.features, self.reader, self.validation, precision,
                enrolled=experiment.protocol.members["val"],
            )  # fmt: skip


def set_up(experiment: Experiment, fresh: bool = True) -> Setup:
    """Open the data, check it against the model, and bring everything to the device.

    Args:
        experiment: what to train.
        fresh: give the model what it begins with, statistics of the training part among it; a checkpoint brings its
            own.

    Raises:
        UserError: no clips, no features, a label that the model does not know, fp16 without a GPU, embeddings of
            speakers over several processes, or a run that training cannot begin with.
    """
    protocol, device = experiment.protocol, dist.device()
    by_embedding = normalised_by_speaker(experiment.model) == "embedding"
    if experiment.training.precision == "fp16" and device.type == "cpu":
        raise UserError("train/precision is 'fp16', which needs a GPU; set 'train/precision = \"bf16\"'")
    if by_embedding and dist.world_size() > 1:
        raise UserError("normalisation of embeddings by speaker needs one process; set gpus=1")
    if device.type == "cpu":
        dist.keep_freed_memory()
    check_parts(experiment)
    if fresh:
        check_statements(experiment)
    for operation in experiment.augment.operations:
        operation.ready()
    train, validation = protocol.part("train"), protocol.part("val")
    reader, *copies = (open_reader(experiment, each) for each in (experiment.features, *experiment.features.copies))
    if any(copy.source.made_with != reader.source.made_with for copy in copies):
        raise UserError(
            "the clips' features and those of their copies were made with different weights of the encoder; extract "
            "them again together, after removing the old stores"
        )
    check_labels([*train, *validation], reader.labels)
    if experiment.training.with_validation:
        train, validation = experiment.trained_clips, []
    experiment.features.front_end.to(device)
    start = None
    if fresh:
        experiment.model.init_weights()
        if experiment.training.start:
            start = read_start(experiment.training.start, protocol)
            start_from(experiment.model, start)
        fit_input_norm(experiment, reader, train)
    model = experiment.model.to(device)
    counts = reader.targets(train).sum(0)
    weights = class_weights(counts, experiment.loss.class_weights).to(device)
    seconds, decay = experiment.training.crop_seconds, experiment.training.average
    return Setup(
        experiment,
        train,
        validation,
        reader,
        copies,
        model,
        experiment.optimizer.build(model, model.lr_scales()),
        EMA(model, decay) if decay else None,
        weights,
        (counts / counts.sum()).to(device),
        None if seconds is None else round(seconds * experiment.features.input_rate),
        None if start is None else start.facts,
        EmbeddingMemory(train) if by_embedding else None,
        protocol.sound(),
    )


def check_parts(experiment: Experiment) -> None:
    """Raise a UserError where a process would get single clips, of which there are no batch statistics."""
    training, parts = experiment.training, experiment.training.accumulate * dist.world_size()
    if experiment.model.batch_statistics and training.batch_size < 2 * parts:
        raise UserError(
            f"train/batch_size is {training.batch_size} for {dist.world_size()} processes with train/accumulate = "
            f"{training.accumulate}, but {type(experiment.model).__name__} takes statistics over the clips of each "
            f"part; set 'train/batch_size = {2 * parts}' or more"
        )


def check_statements(experiment: Experiment) -> None:
    """Raise a UserError where a scheme keeps the test part's statements from training, and validation would teach them.

    A corpus of two or three statements leaves none for validation alone.
    """
    said = {part: {c.statement for c in clips if c.statement} for part, clips in experiment.protocol.parts.items()}
    if experiment.trains_on_validation and not said["train"] & said["test"] and (taught := said["val"] & said["test"]):
        setting = "stats/refit" if experiment.model.refit else "train/with_validation"
        raise UserError(
            f"{experiment.protocol.describe()}: training never hears the statements of the test part, but validation "
            f"does ({some(sorted(taught))}), and is to be trained on, too; set '{setting} = False'"
        )


def open_reader(experiment: Experiment, features: Features) -> ClipReader:
    """Return the reader of what features are made from: the feature store, or sound."""
    protocol = experiment.protocol
    sources = {corpus: open_source(features, table) for corpus, table in protocol.tables.items()}
    source = Joined(sources) if protocol.extra else sources[protocol.corpus]
    enrolled = None
    if normalised_by_speaker(experiment.model) == "inputs":
        enrolled = [*protocol.members["train"], *protocol.members["val"]]
    skip = experiment.training.unreadable == "skip"
    return ClipReader(source, experiment.model.labels, protocol.soft_target, enrolled, skip=skip)


def fit_input_norm(experiment: Experiment, reader: ClipReader, clips: Sequence[Clip]) -> None:
    """Give the model's corpus normalisation the statistics of the training part."""
    features, device = experiment.features, dist.device()

    def frames() -> Iterator[Tensor]:
        for clip in reader.readable(clips):
            value = reader.read(clip).float()
            if not features.cached:
                lengths = torch.tensor([len(value)], device=device)
                value = features.frames(value[None].to(device), lengths)[0][0].cpu()
            yield value if features.front_end.kind == "statistics" else value.movedim(-2, 0)

    for module in experiment.model.modules():
        if isinstance(module, InputNorm) and module.fitted:
            module.fit(frames())


def describe(setup: Setup, steps: int) -> str:
    """Say in a few lines what is about to be trained on what."""
    experiment = setup.experiment
    model, protocol, train, validation = setup.model, experiment.protocol, setup.train, setup.validation
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tags = "".join(f"[{tag}] " for tag in protocol.tags)
    effort = f"at most {steps} steps"
    if model.solves:
        effort = f"solved for C of {', '.join(map(str, model.strengths))}"
    copies = f" and {len(setup.copies)} copies of each" if setup.copies else ""
    missing = missing_text(protocol.table.missing)
    encoder = f", encoder {model.encoder.name}" if model.encoder is not None else ""
    encoder += f", begun with {experiment.training.start}" if experiment.training.start else ""
    judges = f"{len(validation)} of {len({c.speaker for c in validation})} validate" if validation else "none validates"
    return (
        f"{type(model).__name__}: {trained:,} parameters trained of {total:,}{encoder}, on {dist.device()}\n"
        f"{protocol.describe()}: {len(train)} clips of {len({c.speaker for c in train})} speakers{copies} train, "
        f"{judges}{missing}\n"
        f"{tags}split {protocol.split.sha256[:12]}, labels {protocol.label_source}, {effort}"
    )
