"""Speakers that an exported model knows: statistics of clips that were heard without any label, one file a speaker.

They belong to one model, told by its identity, and lie in a folder of the user's, not in the model's.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.errors import UserError
from ser.files import locked, write_atomically

__all__ = ["Enrolment", "Speaker", "speakers_folder"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class Speaker:
    """What is known of one speaker; F is a clip's features without time.

    Attributes:
        clips: that were heard.
        items: of them, frames or clips.
        mean, squares: float64 [*F]: mean of all items, and the sum of the squares of their distances to it.
    """

    clips: int = 0
    items: float = 0.0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, items: float, mean: np.ndarray, squares: np.ndarray) -> None:
        """Take one clip in, as ``pipeline.Pipeline.moments`` tells of it.

        Sums of squares are about the running mean (Chan et al. 1983), so that many clips cost no precision.
        """
        total = self.items + items
        away = mean.astype(np.float64) - self.mean
        self.squares = self.squares + squares.astype(np.float64) + away**2 * (self.items * items / total)
        self.mean = self.mean + away * (items / total)
        self.clips, self.items = self.clips + 1, total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the items, float64 [*F]."""
        return np.sqrt(self.squares / self.items)


def speakers_folder() -> Path:
    """Return where speakers are kept: ``$XDG_DATA_HOME/ser/speakers``, by default in ``~/.local/share``."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ser/speakers"


class Enrolment:
    """The speakers of one model.

    Args:
        identity: SHA-256 of the model's weights.
        folder: with one sub-folder a model.
    """

    def __init__(self, identity: str, folder: Path | None = None):
        self.identity = identity
        self.folder = (folder or speakers_folder()) / identity[:16]

    @property
    def names(self) -> list[str]:
        """Names of the speakers, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    def read(self, name: str) -> Speaker:
        """Return what is known of a speaker; of a new name, nothing yet.

        Raises:
            UserError: no name for a file, or a damaged one.
        """
        path = self.path(name)
        if not path.is_file():
            return Speaker()
        try:
            with np.load(path, allow_pickle=False) as stored:
                values: dict[str, Any] = {key: stored[key] for key in ("identity", "clips", "items", "mean", "squares")}
        except Exception as error:  # whatever numpy and zipfile raise for bytes that are not theirs
            raise UserError(f"{path}: damaged; remove it and enrol '{name}' again") from error
        if str(values["identity"]) != self.identity:
            raise UserError(f"{path}: belongs to another model; remove it and enrol '{name}' again")
        return Speaker(int(values["clips"]), float(values["items"]), values["mean"], values["squares"])

    def add(self, name: str, moments: list[tuple[float, np.ndarray, np.ndarray]]) -> Speaker:
        """Take clips into a speaker's statistics and keep them; two processes that do so lose none.

        Raises:
            UserError: as ``read``; or the folder cannot be written.
        """
        path = self.path(name)
        with locked(self.folder / f".{name}.lock"):
            speaker = self.read(name)
            for clip in moments:
                speaker.add(*clip)
            write_atomically(path, lambda file: np.savez(file, identity=np.array(self.identity), **vars(speaker)))
        return speaker

    def path(self, name: str) -> Path:
        """Return the file of a speaker.

        Raises:
            UserError: a name that cannot be one of a file.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"speaker '{name}': expected letters, digits, '.', '_' and '-', at most 64 of them")
        return self.folder / f"{name}.npz"
