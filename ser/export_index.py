"""What an export consists of, and how it is seen to be whole before anything in it runs.

``export.json`` is written last and holds the size and SHA-256 of every other file.
"""

from pathlib import Path
from typing import Any

from ser.audio import SAMPLE_RATE, SHORTEST
from ser.errors import UserError, nearest
from ser.files import read_json, sha256_of

__all__ = ["FEWEST_SAMPLES", "FORMAT", "INDEX", "MOST_SAMPLES", "check_index", "checked_file", "read_index"]

FORMAT = 1  # of the folder; a reader refuses a higher one
INDEX = "export.json"
FEWEST_SAMPLES = round(SHORTEST * SAMPLE_RATE)  # of a clip
MOST_SAMPLES = 30 * SAMPLE_RATE
WANTED = (
    "format",
    "labels",
    "sample_rate",
    "shortest",
    "longest",
    "by_speaker",
    "identity",
    "files",
    "model",
    "run",
    "ser",
)


def read_index(folder: Path) -> dict[str, Any]:
    """Return an export's index.

    Raises:
        UserError: none, of a newer version, or not an index.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{folder}: no export (it holds no {INDEX}); make one: just export RUN")
    return check_index(str(path), read_json(path))


def check_index(where: str, index: Any) -> dict[str, Any]:
    """Return an index that can be relied on.

    Raises:
        UserError: of a newer version, or not an index.
    """
    if not isinstance(index, dict) or not isinstance(index.get("format"), int):
        raise UserError(f"{where}: not the index of an export; export again: just export RUN")
    if index["format"] > FORMAT:
        raise UserError(
            f"{where}: is of format {index['format']}, made by ser {index.get('ser')}; this ser reads up to "
            f"{FORMAT}: update ser"
        )
    missing = [name for name in WANTED if name not in index]
    files = index.get("files")
    named = isinstance(files, dict) and all(
        Path(name).name == name and isinstance(facts, dict) and {"sha256", "bytes"} <= facts.keys()
        for name, facts in files.items()
    )
    if missing or not named:
        raise UserError(f"{where}: damaged (lacks {', '.join(missing) or 'its files'}); export again: just export RUN")
    return index


def checked_file(folder: Path, index: dict[str, Any], name: str) -> Path:
    """Return one file of an export, whose size and checksum are those of the index.

    Raises:
        UserError: not part of the export, gone, cut short, or changed.
    """
    if name not in index["files"]:
        raise UserError(f"{folder}: holds no {name}{nearest(name, index['files'])}")
    path, facts = folder / name, index["files"][name]
    if not path.is_file():
        raise UserError(f"{path}: gone, though the index names it; export or fetch it again")
    if path.stat().st_size != facts["bytes"]:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes, expected {facts['bytes']}: cut short or changed; "
            "export or fetch it again"
        )
    if sha256_of(path) != facts["sha256"]:
        raise UserError(f"{path}: its SHA-256 is not that of the index: changed; export or fetch it again")
    return path
