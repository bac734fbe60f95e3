"""Beginning with the weights of another run: which of them are taken, and what that run must not have heard."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser import checkpoints
from ser.errors import UserError
from ser.files import run_folder
from ser.interfaces import Classifier
from ser.layers import InputNorm
from ser.metadata import clips_at_hand
from ser.optim import kept
from ser.protocol import Protocol
from ser.splits import check_same_sound

__all__ = ["Start", "read_start", "start_from", "start_tags"]


@dataclass(frozen=True)
class Start:
    """A trained run to begin with.

    Attributes:
        path: of its checkpoint.
        facts: what a checkpoint keeps of it: ``run``, other ``corpora`` that it was trained on (those of its own start
            among them), and ``weights``, the identity of its checkpoint.
        weights: what it learned.
        labels: of its outputs.
        encoder: facts of the pretrained encoder inside, or None.
    """

    path: Path
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    labels: tuple[str, ...]
    encoder: dict[str, Any] | None


def read_start(name: str, protocol: Protocol) -> Start:
    """Read a run's best weights for another to begin with; they know none of its validation or test speakers.

    Args:
        name: of the run, or its path.
        protocol: of the run that begins.

    Raises:
        UserError: no such run, it is not finished, or it was trained on the corpus by another split, or on recordings
            of it by other names.
    """
    if name == "last":
        raise UserError("train/start is 'last', which means another run tomorrow; name the run")
    folder = run_folder(name)
    path = folder / checkpoints.BEST
    if not checkpoints.is_finished(folder / checkpoints.LAST):
        raise UserError(f"train/start: {folder.name} is not finished; go on with: just resume {folder.name}")
    content = checkpoints.load(path)
    own = content["protocol"]
    speakers = {speaker for speaker in content["train_speakers"] if speaker}
    others = set(own.get("extra", [speaker.partition(":")[0] for speaker in speakers if ":" in speaker]))
    others |= set((content["state"].get("start") or {}).get("corpora", []))
    same = own["corpus"] == protocol.corpus and (own["scheme"], own["fold"], own["split_sha256"]) == (
        protocol.scheme, protocol.fold, protocol.split.sha256
    )  # fmt: skip
    judges = {clip.speaker for part in ("val", "test") for clip in protocol.members[part]}
    heard = same and (
        content.get("hears_validation", False) or (protocol.split.speaker_independent and bool(speakers & judges))
    )
    if protocol.corpus in others or heard or (own["corpus"] == protocol.corpus and not same):
        raise UserError(
            f"train/start: {folder.name} was trained on {protocol.corpus}, too, and may know speakers that "
            f"{protocol.describe()} validates or tests on; begin with a run on another corpus, or on the same split "
            "and fold"
        )
    corpora = sorted({own["corpus"], *others} - {protocol.corpus})
    judged = {part: protocol.members[part] for part in ("val", "test")}
    heard = {f"what {folder.name} was trained on": clips_at_hand(corpora)}
    check_same_sound(heard | judged, f"train/start on {protocol.describe()}", "begin with another run")
    facts = {
        "run": folder.name,
        "corpora": corpora,
        "weights": checkpoints.identity(content),
    }
    return Start(path, facts, content["model"], tuple(content["labels"]), content.get("encoder"))


def start_tags(start: Mapping[str, Any] | None) -> list[str]:
    """Return a tag for each other corpus that the run which a training began with has heard."""
    return [f"begun-on-{corpus}" for corpus in (start or {}).get("corpora", [])]


@torch.no_grad()
def start_from(model: Classifier, start: Start) -> None:
    """Give a model what a run of the same network has learned.

    The statistics of ``InputNorm`` are left as they are: they belong to a corpus. So is the last layer where the labels
    differ, and what of an encoder the run had left frozen.

    Raises:
        UserError: another network, other weights of the encoder, or parts learned there that are frozen here.
    """
    run, inside = start.facts["run"], model.encoder
    if (facts := None if inside is None else inside.facts) != start.encoder:
        raise UserError(f"train/start: {run} has the encoder {start.encoder}, this run {facts}; take the same")
    own = kept(model)
    left = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, InputNorm)
        for buffer, _ in module.named_buffers()
    }
    if start.labels != model.labels:
        sizes = (len(start.labels), len(model.labels))
        both = {**start.weights, **own}
        left |= {n for n, value in both.items() if n.startswith("head.") and value.dim() and value.shape[0] in sizes}
    weights = {name: value for name, value in start.weights.items() if name not in left}
    if frozen := sorted((weights.keys() & model.state_dict().keys()) - own.keys()):
        raise UserError(
            f"train/start: {run} has trained parts of the encoder that this run keeps frozen ({frozen[0]}, "
            f"{len(frozen)} in all); train as many layers: tune/layers"
        )
    pretrained = {name for name in own if name.startswith("encoder.encoder.") and not name.endswith((".down", ".up"))}
    needed = {name: value for name, value in own.items() if name not in left}
    lacking = pretrained - weights.keys()
    checkpoints.check({n: v for n, v in needed.items() if n not in lacking}, weights, start.path)
    model.load_state_dict(weights, strict=False)
