"""Checkpoints: self-describing, written whole or not at all, read without running any code of theirs."""

import io
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ser.errors import UserError, first_line, some
from ser.files import write_bytes
from ser.optim import kept

__all__ = ["BEST", "FORMAT", "LAST", "check", "identity", "is_finished", "is_of", "load", "restore", "same", "save"]

BEST, LAST = "checkpoints/best.pt", "checkpoints/last.pt"  # in a run's folder

FORMAT = 2  # 1: without the learning-rate scales and the list of random numbers that resuming needs


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, text, lists and dicts of them) so that the old file survives any failure.

    Raises:
        UserError: the disk is full.
    """
    # Into memory first: torch's own file writer ends the process when the disk is full.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_bytes(path, buffer.getbuffer())


def load(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``; with ``mmap`` its tensors when they are looked at.

    Raises:
        UserError: missing, cut short, not a checkpoint, or of a newer format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; {way_back(path)}") from error
    except Exception as error:  # torch raises many kinds: zip, pickle, runtime, key and end-of-file errors
        reason = first_line(error)
        reason = f" ({reason})" if " " in reason else ""  # torch may say no more than a number
        raise UserError(f"{path}: not a whole checkpoint{reason}; {way_back(path)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path}: not a checkpoint of ser")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: format {content['format']} is newer than this ser knows ({FORMAT}); update ser")
    return content


def way_back(path: Path) -> str:
    """Say what to do where a checkpoint is missing or damaged."""
    run = path.parents[1]
    if not (run / "run.gin").is_file():
        return "train first: just train EXP"
    if path == run / LAST:
        return f"remove it and begin the run again: just resume {run.name}"
    with suppress(UserError):
        if is_finished(run / LAST):
            return f"remove {run} and train again"
    return f"remove it, if it is there, and go on with: just resume {run.name}"


def identity(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a checkpoint's weights from others: epoch, step, and a CRC of every tensor."""
    crc = 0
    for name, tensor in sorted(checkpoint["model"].items()):
        content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return {"epoch": checkpoint["state"]["epoch"], "step": checkpoint["state"]["step"], "crc32": crc}


def is_of(made: Any, checkpoint: Mapping[str, Any]) -> bool:
    """Say whether a recorded ``identity`` is that of this checkpoint; earlier versions recorded less."""
    return same(made, identity(checkpoint))


def same(one: Any, other: Any) -> bool:
    """Say whether two recorded identities are of the same weights; earlier versions recorded less."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping) and {"epoch", "step"} <= one.keys() & other.keys()):
        return False
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def is_finished(last: Path) -> bool:
    """Say whether a run is finished, from its newest checkpoint."""
    return last.is_file() and load(last, mmap=True)["state"]["finished"]


def restore(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights strictly: every tensor that the model learns in its place, none too many.

    Raises:
        UserError: the weights belong to another model.
    """
    check(kept(model), weights, path)
    model.load_state_dict(weights, strict=False)  # frozen weights are the encoder's own


def check(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raise a UserError where names or shapes are not those of ``own``."""
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    resized = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or foreign or resized:
        parts = [
            f"{what} {some(names, 3)}"
            for what, names in (("lacks", missing), ("has foreign", foreign), ("differs in shape at", sorted(resized)))
            if names
        ]
        raise UserError(f"{path}: weights of another model: {'; '.join(parts)}")
