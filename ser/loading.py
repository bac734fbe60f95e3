"""Open a trained model: ``load(MODEL).predict("speech.wav")``.

MODEL is an export (``just export RUN``), a published one (``s3://``, ``hf://``, ``https://`` ...), or a run. Of an
export nothing is opened before its checksum was seen to be right, and nothing is unpickled.
"""

from pathlib import Path
from typing import Any

import torch

from ser import dist
from ser.errors import UserError, first_line, nearest
from ser.export_index import INDEX, checked_file, read_index
from ser.files import sha256_of
from ser.inference import Predictor

__all__ = ["VARIANTS", "load"]

VARIANTS = {"exact": "model.ts", "half": "model_half.ts", "int8": "model_int8.ts"}


def load(
    source: str | Path,
    *,
    variant: str = "exact",
    device: str = "cpu",
    sha256: str = "",
    revision: str = "",
    speakers: Path | None = None,
) -> Predictor:
    """Load a model.

    Args:
        source: folder of an export, a run (its folder, its name in ``outputs/``, or ``last``), or a URL that
            ``just publish`` wrote.
        variant: ``exact``, ``half`` (for GPUs) or ``int8`` (small, on CPUs); a run as it is has only the first.
        device: ``cpu``, ``cuda`` ...
        sha256: of ``export.json``, as ``ser info`` prints it: another version is refused.
        revision: branch, tag or commit of a model on the Hugging Face Hub.
        speakers: folder of enrolled speakers; by default one of the user's.

    Raises:
        UserError: no such model, one that is damaged, changed, or of a newer version of ser.
    """
    if variant not in VARIANTS:
        raise UserError(f"variant '{variant}' is unknown{nearest(variant, VARIANTS)}")
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises many kinds for a name it does not know and a device that is not there
        raise UserError(f"device '{device}' is not at hand ({first_line(error)}); choose cpu") from error
    dist.settle_cuda()
    folder = find(source, VARIANTS[variant], sha256, revision)
    if folder is None:
        if variant != "exact" or sha256:
            raise UserError(f"{source}: is a run; a variant or a checksum is of an export: just export {source}")
        from ser import exporting, runs
        from ser.encoders import fingerprint

        trained = runs.load_trained(str(source))
        pipeline = exporting.pipeline_of(trained)
        identity = fingerprint(pipeline)  # before the weights are laid out anew
        pipeline = pipeline.pack() if device == "cpu" else pipeline.to(device)
        facts = {"labels": list(pipeline.model.labels), "by_speaker": pipeline.by_speaker}
        return Predictor(pipeline, facts, identity, device, speakers=speakers)
    index = read_index(folder)
    path = checked_file(folder, index, VARIANTS[variant])
    dist.choose_int8_engine()
    model, pin = script(path, device), sha256_of(folder / INDEX)
    return Predictor(model, index, index["identity"], device, variant == "int8", speakers, pin)


def find(source: str | Path, file: str, sha256: str, revision: str) -> Path | None:
    """Return the folder of an export, with ``file`` fetched if it is a URL; None for a run, which has none.

    Raises:
        UserError: not the version that ``sha256`` pins.
    """
    if "://" in str(source):
        from ser.publishing import fetch

        return fetch(str(source), [file], sha256, revision)
    folder = Path(source)
    if str(source) == "last":
        return None
    if folder.is_file():
        raise UserError(f"{folder}: is a file; expected the folder of an export, a run, or a URL")
    if not (folder / INDEX).is_file():
        if (folder / "export" / INDEX).is_file() and not (folder / "run.gin").is_file():
            folder = folder / "export"
        elif folder.is_dir() and any((folder / name).is_file() for name in VARIANTS.values()):
            raise UserError(f"{folder}: lacks {INDEX}, without which nothing in it can be trusted; export it again")
        else:
            return None
    found = sha256_of(folder / INDEX)
    if sha256 and sha256 != found:
        raise UserError(f"{folder / INDEX}: its SHA-256 is {found}, expected {sha256}: another version")
    return folder


def script(path: Path, device: str) -> Any:
    """Load TorchScript, whose reader knows no Python and runs none.

    Raises:
        UserError: anything else, a pickle among it.
    """
    try:
        return torch.jit.load(str(path), map_location=device)
    except (
        Exception
    ) as error:  # whatever torch raises for bytes that are not TorchScript, or a device that is not there
        raise UserError(f"{path}: not TorchScript that can be loaded on {device} ({first_line(error)})") from error
