"""What a model hears of a clip, and the store that it is read from; ``extraction`` fills the store.

``data/<corpus>/feats/<store>/`` holds one file a clip and ``index.json``, which says how they were made.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import audio
from ser.copies import Altered
from ser.errors import UserError
from ser.files import PROJECT, corpus_folder, mark_of, read_json
from ser.interfaces import FrontEnd
from ser.metadata import Clip, Table

__all__ = ["FeatureStore", "Features", "check_spec", "made_with", "store_folder"]

DTYPES = ("float16", "float32")


class Features:
    """What a model hears of a clip: a front end, computed once and stored, or anew at every reading.

    Args:
        name: of the file in ``gin/features/``.
        front_end: sound to values.
        cached: read from the store. Operations on sound (noise, gain) need False.
        dtype: of the stored values, float16 or float32.
        copies: alterations of sound that training hears beside each clip, each from a store of its own, such as
            ``speed 0.9``; see ``copies.Altered``.

    Raises:
        UserError: an unknown type, a name that is no folder's, or sound that is to be stored.
    """

    def __init__(
        self,
        name: str,
        front_end: FrontEnd,
        cached: bool = True,
        dtype: str = "float16",
        copies: Sequence[str] = (),
    ):
        if not name or Path(name).name != name:
            raise UserError(f"Features.name is '{name}'; expected the plain name of a folder")
        if dtype not in DTYPES:
            raise UserError(f"Features.dtype is '{dtype}'; expected float16 or float32")
        if cached and front_end.kind == "sound":
            raise UserError(f"features '{name}' are sound itself, which is not stored; set 'Features.cached = False'")
        self.name = name
        self.front_end = front_end
        self.cached = cached
        self.dtype = dtype
        if copies and not cached:
            raise UserError("encoder/copies are of stored features; features from sound are altered by gin/augment/")
        if len(set(copies)) != len(copies):
            raise UserError(f"encoder/copies are {', '.join(copies)}; expected each once")
        self.copies = [Features(name, Altered(front_end, how), True, dtype) for how in copies]

    @property
    def store(self) -> str:
        """Name of the store: the features' and what is kept of them."""
        return self.name + self.front_end.suffix

    @property
    def spec(self) -> dict[str, Any]:
        """What must agree between two stores for their files to mean the same."""
        return {"name": self.store, "front_end": self.front_end.spec, "dtype": self.dtype}

    @property
    def input_rate(self) -> float:
        """Samples or frames a second of what is read from disk."""
        return self.front_end.rate if self.cached else audio.SAMPLE_RATE

    @property
    def time_axis(self) -> int | None:
        """Dimension of time in what is read of a clip, counted from the end; None for statistics."""
        if not self.cached:
            return -1
        return None if self.front_end.kind == "statistics" else -2

    def frames(self, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring a batch as it was read, stored values or sound, to values and their frames [B]."""
        return (inputs, lengths) if self.cached else self.front_end(inputs, lengths)

    def command(self, corpus: str) -> str:
        """Return the command that extracts these features of a corpus, and its copies if it has or is one."""
        if not (PROJECT / f"gin/features/{self.name}.gin").is_file():
            return f"just extract {corpus} EXP, with the experiment EXP and the overrides that it is trained with"
        fronts = [self.front_end, *(copy.front_end for copy in self.copies)]
        hows = [f'"{front.how}"' for front in fronts if isinstance(front, Altered)]
        copies = f" 'encoder/copies = [{', '.join(hows)}]'" if hows else ""
        dtype = "" if self.dtype == DTYPES[0] else f" 'Features.dtype = \"{self.dtype}\"'"
        return f"just extract {corpus} {self.name}{self.front_end.options}{dtype}{copies}"


class FeatureStore:
    """The files of one kind of features of one corpus.

    Raises:
        UserError: no store, an unfinished one, or one that was made otherwise than ``features`` says.
    """

    def __init__(self, corpus: str, features: Features):
        self.folder = store_folder(corpus, features)
        self.ending = features.front_end.ending
        self.time_axis: int | None = features.time_axis
        self.shape = features.front_end.shape
        self.command = features.command(corpus)
        if not (self.folder / "index.json").is_file():
            raise UserError(f"{self.folder}: these features are not extracted yet; run: {self.command}")
        index = read_json(self.folder / "index.json")
        check_spec(self.folder, index, features)
        if not index["complete"]:
            raise UserError(f"{self.folder}: extraction was interrupted; go on with: {self.command}")
        self.made_with: dict[str, Any] = index.get("made_with") or {}
        self.files: dict[str, dict[str, Any]] = index["files"]

    def length(self, clip: Clip) -> int:
        """Return a clip's number of frames without reading it.

        Raises:
            UserError: the clip is not in the store.
        """
        if clip.clip not in self.files:
            raise UserError(f"{self.folder}: no features of clip '{clip.clip}'; run again: {self.command}")
        return self.files[clip.clip]["frames"]

    def check_sources(self, table: Table) -> None:
        """Raise a UserError where a clip's sound is not what its features were made from; sound may be elsewhere."""
        for clip in table.clips:
            entry, path = self.files.get(clip.clip), table.sound_path(clip)
            if entry is None or (mark := mark_of(path)) is None or mark == entry.get("source"):
                continue
            try:
                same = zlib.crc32(path.read_bytes()) == entry.get("source_crc32")  # a copy has another date
            except OSError:  # as good as not there
                continue
            if not same:
                raise UserError(f"{path}: has changed since its features were extracted; run again: {self.command}")

    def read(self, clip: Clip) -> torch.Tensor:
        """Return a clip's features as they are stored: [T, D], [L, T, D] or [L, 2D].

        Raises:
            UserError: the file is missing or damaged.
        """
        frames = self.length(clip)
        path = self.folder / f"{clip.clip}{self.ending}"
        try:
            values = load(path)
            wanted = list(self.shape)
            if self.time_axis is not None:
                wanted.insert(len(wanted) + 1 + self.time_axis, frames)
            if list(values.shape) != wanted:
                raise ValueError(f"it holds {list(values.shape)}, expected {wanted}")
        except Exception as error:  # whatever the readers raise for bytes that are not theirs
            known = isinstance(error, OSError | ValueError) and "pickle" not in str(error)
            reason = str(error).partition("\n")[0] if known else "not a file of features"  # torch advises to run it
            raise UserError(f"{path}: damaged or gone ({reason}); make it again: {self.command}") from error
        return values


def load(path: Path) -> torch.Tensor:
    """Read a file that holds one tensor and nothing that runs."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # torch would warn, and advise to run what is in it
            raise ValueError("not a file of features")
        file.seek(0)
        values = torch.load(file, weights_only=True)
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"it holds a {type(values).__name__}, expected a tensor")
    return values


def store_folder(corpus: str, features: Features) -> Path:
    """Return ``data/<corpus>/feats/<store>``."""
    return corpus_folder(corpus) / "feats" / features.store


def made_with(corpus: str, features: Features) -> dict[str, Any]:
    """Return the fingerprint of the weights that made a store; empty where there is no store, or none made it."""
    path = store_folder(corpus, features) / "index.json"
    index = read_json(path) if features.cached and path.is_file() else {}
    return (index.get("made_with") or {}) if isinstance(index, dict) else {}


def check_spec(folder: Path, index: dict, features: Features) -> None:
    """Raise a UserError where a store was made otherwise than ``features`` says."""
    index = index if isinstance(index, dict) else {}
    made, asked = index.get("spec"), features.spec
    wanted = asked | {"front_end": asked["front_end"] | decided(index, features)}
    if made != wanted:
        raise UserError(
            f"{folder}: made otherwise ({differing(made, wanted)}); give the new kind a name of its own, "
            "'Features.name = \"NAME\"', or remove the folder if it is out of date"
        )


def differing(made: Any, wanted: Mapping[str, Any]) -> str:
    """Say where two specifications of features differ, as ``width: 64, now 128``."""
    known = made if isinstance(made, dict) and isinstance(made.get("front_end"), dict) else {}
    flat = [{**spec, **spec.get("front_end", {})} for spec in (known, wanted)]
    names = [name for name in dict.fromkeys([*flat[1], *flat[0]]) if name != "front_end"]
    then, now = ({name: json.dumps(spec.get(name)) for name in names} for spec in flat)
    return ", ".join(f"{name}: {then[name]}, now {now[name]}" for name in names if then[name] != now[name])


def decided(index: dict, features: Features) -> dict[str, Any]:
    """Return the precision that a store was begun in, where the features leave it to the device."""
    if features.front_end.spec.get("precision") != "auto":
        return {}
    made = index.get("spec", {}).get("front_end", {})
    return {"precision": made["precision"]} if "precision" in made else {}
