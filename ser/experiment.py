"""The frozen dataclass whose fields are the slots of a run, and the run's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser import dist
from ser.augment import Augmentation
from ser.checkpoints import BEST, LAST
from ser.errors import UserError, nearest
from ser.features import Features
from ser.interfaces import Classifier, normalised_by_speaker
from ser.losses import Loss
from ser.metadata import Clip
from ser.optim import AdamW, WarmupCosine
from ser.protocol import Protocol
from ser.tracking import Tracking

__all__ = ["Experiment", "Run", "Training"]

UNREADABLE = ("stop", "skip")
KEEP = ("best", "last")


@dataclass(frozen=True)
class Training:
    """How the loop runs.

    Attributes:
        epochs: at most.
        batch_size: clips a step.
        crop_seconds: length of the training crops; shorter clips are repeated. None for whole clips, padded.
        patience: epochs without a better validation UAR before stopping.
        clip_norm: largest gradient norm; larger ones are scaled down to it.
        average: decay a step of the moving average of the weights, which validates and is kept; 0 for none.
        precision: ``float32``, or ``bf16`` or ``fp16`` for autocast; fp16 scales the loss and needs a GPU.
        balanced: draw clips so that all classes come equally often.
        accumulate: parts that a batch is computed in, one after the other, where memory is short.
        unreadable: what to do with a clip that cannot be read in mid-epoch: ``stop`` or ``skip``.
        keep: ``best``: the weights of the best validation UAR; ``last``: those of the last epoch, after a fixed
            number of epochs, with no choice on validation speakers at all.
        smoothing: weight of the epochs before in the validation UAR that chooses, in [0, 1): how noisy a few
            validation speakers are.
        with_validation: train on the validation speakers, too, who then say nothing: once settings and epochs are
            fixed, with ``keep`` ``last``.
        start: name of a finished run of the same network whose weights training begins with, see ``initial_weights``.

    Raises:
        UserError: a value out of range, or an unknown word.
    """

    epochs: int
    batch_size: int
    crop_seconds: float | None
    patience: int
    clip_norm: float = 5.0
    average: float = 0.0
    precision: str = "float32"
    balanced: bool = False
    accumulate: int = 1
    unreadable: str = "stop"
    keep: str = "best"
    smoothing: float = 0.0
    with_validation: bool = False
    start: str = ""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "patience": 1, "crop_seconds": 0.1, "clip_norm": 1e-6, "accumulate": 1}
        for name, value in least.items():
            if getattr(self, name) is not None and not getattr(self, name) >= value:
                shown = "Training.clip_norm" if name == "clip_norm" else f"train/{name}"
                raise UserError(f"{shown} is {getattr(self, name)}; expected {value} or more")
        if not 0 <= self.average < 1:
            raise UserError(f"train/average is {self.average}; expected a decay in [0, 1), such as 0.99")
        known = {"precision": dist.PRECISIONS, "unreadable": UNREADABLE, "keep": KEEP}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"train/{name} is '{getattr(self, name)}'{nearest(getattr(self, name), values)}")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"train/smoothing is {self.smoothing}; expected a share in [0, 1)")
        if self.with_validation and self.keep != "last":
            raise UserError(
                "train/with_validation = True leaves nobody to choose the epoch on; set 'train/keep = \"last\"', and "
                "train/epochs to what was best before"
            )
        if self.smoothing and self.keep == "last":
            raise UserError(f"train/smoothing is {self.smoothing}, but train/keep = 'last' chooses no epoch; drop one")
        if self.accumulate > self.batch_size:
            raise UserError(f"train/accumulate is {self.accumulate}, above the {self.batch_size} clips of a batch")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of; gin fills the slots, then ``training.fit`` runs on plain Python.

    Raises:
        UserError: parts that do not fit each other.
    """

    augment: Augmentation
    features: Features
    loss: Loss
    model: Classifier
    optimizer: AdamW
    protocol: Protocol
    schedule: WarmupCosine
    seed: int
    tracking: Tracking
    training: Training

    def __post_init__(self) -> None:
        for slot, kind in SLOTS.items():
            if not isinstance(getattr(self, slot), kind):
                given, name = getattr(self, slot), kind.__name__
                raise UserError(
                    f"Experiment.{slot} is {given!r:.80}; expected a {name}, as in @{name}(), with brackets"
                )
        model, features = type(self.model).__name__, self.features
        if features.front_end.kind != self.model.takes:
            raise UserError(
                f"{model} takes {self.model.takes}, but features '{features.store}' are {features.front_end.kind}; "
                "include the model's file after the features' file, choose others in gin/features/, "
                "or what an encoder keeps: encoder/keep and encoder/layers"
            )
        shape, wanted = list(features.front_end.shape), list(self.model.input_shape)
        if shape != wanted:
            raise UserError(
                f"features '{features.store}' are {shape} a clip or frame, but {model} was built for {wanted}; "
                f"give it what gin/features/{features.name}.gin says"
            )
        if tuple(self.model.labels) != self.protocol.labels:
            raise UserError(
                f"{model} tells {', '.join(self.model.labels)} apart, but the protocol is of "
                f"{', '.join(self.protocol.labels)}; set both by labels/classes"
            )
        inside = self.model.encoder
        if inside is not None and features.front_end.spec != inside.hears:
            raise UserError(
                f"{model}: its encoder {inside.name} hears {inside.hears}, but features '{features.store}' are "
                f"{features.front_end.spec}; set 'encoder/hears' as gin/features/{features.name}.gin does"
            )
        at_inputs = normalised_by_speaker(self.model) == "inputs"
        if at_inputs and not features.cached:
            raise UserError(f"{model}: normalisation by speaker reads stored features; set 'Features.cached = True'")
        if features.copies and not self.model.solves:
            raise UserError(
                f"encoder/copies are heard by a solver alone, but {model} is trained by steps; leave them out"
            )
        masks = [type(op).__name__ for _, op in self.augment.of_kind("features")]
        if masks and self.model.takes != "frames":
            one = "keep one layer, such as 'encoder/layers = [4]', or " if self.model.takes == "layers" else ""
            raise UserError(
                f"augment: {' and '.join(masks)} change frames, but {model} takes {self.model.takes}; {one}include "
                "gin/augment/none.gin"
            )
        self.check_loss()
        sound = [type(op).__name__ for kind in ("sound", "mix_sound") for _, op in self.augment.of_kind(kind)]
        if self.features.cached and sound:
            raise UserError(
                f"augment: {' and '.join(sound)} change sound, but Features.cached is True: stored features "
                "are read; set 'Features.cached = False' or leave them out"
            )

    @property
    def tags(self) -> list[str]:
        """What a reader must know of every figure of this experiment."""
        protocol = self.protocol
        normalised = ["speaker-normalised"] if normalised_by_speaker(self.model) else []
        dropped = ["clips-dropped"] if protocol.drop else []
        return [*protocol.tags, *(f"extra-{corpus}" for corpus in protocol.extra), *normalised, *dropped]

    @property
    def trains_on_validation(self) -> bool:
        """Whether the validation part is trained on, too; its figures then say nothing about new speakers."""
        return self.training.with_validation or self.model.refit

    @property
    def trained_clips(self) -> list[Clip]:
        """The clips whose labels the weights are learned from."""
        parts = ("train", "val") if self.trains_on_validation else ("train",)
        return [clip for part in parts for clip in self.protocol.part(part)]

    def check_loss(self) -> None:
        """Raise a UserError for what corrects the same thing twice, or has no meaning together."""
        if self.model.solves:
            self.check_solver()
        loss, mixed = self.loss, [type(op).__name__ for op in self.augment.mixing]
        padded = [type(op).__name__ for _, op in self.augment.of_kind("mix_features")]
        corrections = {
            "train/balanced = True": self.training.balanced,
            f"train/class_weights = '{loss.class_weights}'": loss.class_weights != "none",
            f"train/logit_adjustment = {loss.logit_adjustment}": loss.logit_adjustment > 0,
        }
        if len(named := [name for name, used in corrections.items() if used]) > 1:
            raise UserError(f"{' and '.join(named)} correct the balance of classes more than once; keep one of them")
        if padded and self.training.crop_seconds is None:
            raise UserError(
                f"augment: {' and '.join(padded)} needs clips of one length; set 'train/crop_seconds = 3.0', or drop it"
            )
        if self.model.batch_statistics and self.training.crop_seconds is None:
            raise UserError(
                f"train/crop_seconds is None, but {type(self.model).__name__} takes statistics over the frames of a "
                "batch, which padding would spoil; set 'train/crop_seconds = 3.0'"
            )
        if loss.kind != "aam":
            return
        if mixed or self.protocol.label_source == "voice_soft":
            soft = " and ".join(mixed) or "labels/source = 'voice_soft'"
            raise UserError(f"train/loss = 'aam' needs hard labels, and {soft} makes soft ones; leave one of them out")
        if getattr(self.model, "cosine_scale", None) != loss.scale:
            raise UserError(
                f"train/loss = 'aam' needs a model with a cosine head of scale {loss.scale}, as "
                f"gin/exp/ravdess_ecapa_aam.gin has; {type(self.model).__name__} has none of it"
            )

    def check_solver(self) -> None:
        """Raise a UserError for settings of a loop where a solver finds the weights at once."""
        idle = {
            f"train/average = {self.training.average}": self.training.average > 0,
            "train/balanced = True": self.training.balanced,
            f"train/start = '{self.training.start}'": self.training.start != "",
            "train/with_validation = True": self.training.with_validation,
            f"train/loss = '{self.loss.kind}'": self.loss.kind != "cross_entropy",
            f"train/logit_adjustment = {self.loss.logit_adjustment}": self.loss.logit_adjustment > 0,
            f"train/accumulate = {self.training.accumulate}": self.training.accumulate > 1,
            f"train/keep = '{self.training.keep}'": self.training.keep != "best",
            f"train/smoothing = {self.training.smoothing}": self.training.smoothing > 0,
            f"train/precision = '{self.training.precision}'": self.training.precision != "float32",
            "augment": bool(self.augment.operations),
            "Features.cached = False": not self.features.cached,
        }
        if named := [name for name, used in idle.items() if used]:
            raise UserError(f"{' and '.join(named)}: means nothing to a solver, which makes no steps; leave it out")


SLOTS: dict[str, type] = {
    "augment": Augmentation, "features": Features, "loss": Loss, "model": Classifier, "optimizer": AdamW,
    "protocol": Protocol, "schedule": WarmupCosine, "tracking": Tracking, "training": Training,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where a run lives and what made it.

    Attributes:
        folder: ``outputs/<exp>[-fold<k>]-s<seed>-<hash6>``.
        config: text of ``run.gin``: the resolved bindings.
        settings: the same as typed values.
        group: name that it shares with the runs that differ in seed and fold alone.
    """

    folder: Path
    config: str
    settings: dict[str, Any]
    group: str

    @property
    def best(self) -> Path:
        """The checkpoint that answers; ``train/keep`` says which epoch's it is."""
        return self.folder / BEST

    @property
    def last(self) -> Path:
        """The newest checkpoint, from which the run resumes."""
        return self.folder / LAST
