"""The feature store: extract once, resume after any interruption, verify, read.

``data/<corpus>/feats/<name>/`` holds one ``.npy`` a clip and ``index.json``, which says how they were made.
"""

import io
import json
import zlib
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ser import audio
from ser.errors import UserError
from ser.files import append_line, corpus_folder, read_json, write_atomically, write_json
from ser.mel import LogMel
from ser.metadata import Clip, Table
from ser.progress import cores
from ser.progress import progress as progress_bar

__all__ = ["FeatureStore", "Features", "extract"]

DTYPES = ("float16", "float32")


class Features:
    """What a model hears of a clip: a front end, computed once and stored, or anew at every reading.

    Args:
        name: of the store, and of the file in ``gin/features/``.
        front_end: sound to frames.
        cached: read from the store. Operations on sound (noise, gain) need False.
        dtype: of the stored values, float16 or float32.
    """

    def __init__(self, name: str, front_end: LogMel, cached: bool = True, dtype: str = "float16"):
        if not name or Path(name).name != name:
            raise UserError(f"Features.name is '{name}'; expected the plain name of a folder")
        if dtype not in DTYPES:
            raise UserError(f"Features.dtype is '{dtype}'; expected float16 or float32")
        self.name = name
        self.front_end = front_end
        self.cached = cached
        self.dtype = dtype

    @property
    def spec(self) -> dict[str, object]:
        """What must agree between two stores for their files to mean the same."""
        return {"name": self.name, "front_end": self.front_end.spec, "dtype": self.dtype}

    @property
    def input_rate(self) -> float:
        """Samples or frames a second of what is read from disk."""
        return self.front_end.rate if self.cached else audio.SAMPLE_RATE

    def frames(self, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring a batch as it was read, stored frames or sound, to frames [B, T, D] and their lengths [B]."""
        return (inputs, lengths) if self.cached else self.front_end(inputs, lengths)


class FeatureStore:
    """The files of one kind of features of one corpus.

    Raises:
        UserError: no store, an unfinished one, or one that was made otherwise than ``features`` says.
    """

    def __init__(self, corpus: str, features: Features):
        self.folder = store_folder(corpus, features)
        command = f"just extract {corpus} {features.name}"
        if not (self.folder / "index.json").is_file():
            raise UserError(f"{self.folder}: these features are not extracted yet; run: {command}")
        index = read_json(self.folder / "index.json")
        check_spec(self.folder, index, features)
        if not index["complete"]:
            raise UserError(f"{self.folder}: extraction was interrupted; go on with: {command}")
        self.command = command
        self.frames: dict[str, int] = {clip: entry["frames"] for clip, entry in index["files"].items()}

    def length(self, clip: Clip) -> int:
        """Return a clip's number of frames without reading it."""
        if clip.clip not in self.frames:
            raise UserError(f"{self.folder}: no features of clip '{clip.clip}'; run again: {self.command}")
        return self.frames[clip.clip]

    def read(self, clip: Clip) -> torch.Tensor:
        """Return a clip's features [T, D] as they are stored.

        Raises:
            UserError: the file is missing or damaged.
        """
        frames = self.length(clip)
        path = self.folder / f"{clip.clip}.npy"
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: damaged or gone ({error}); make it again: {self.command}") from error
        if values.ndim != 2 or len(values) != frames:
            raise UserError(f"{path}: holds {values.shape}, expected {frames} frames; make it again: {self.command}")
        return torch.from_numpy(values)


def store_folder(corpus: str, features: Features) -> Path:
    """Return ``data/<corpus>/feats/<name>``."""
    return corpus_folder(corpus) / "feats" / features.name


def check_spec(folder: Path, index: dict, features: Features) -> None:
    """Raise a UserError where a store was made otherwise than ``features`` says."""
    if index.get("spec") != features.spec:
        made, asked = json.dumps(index.get("spec")), json.dumps(features.spec)
        raise UserError(
            f"{folder}: made otherwise: {made}; asked for: {asked}; "
            "remove the folder, or give the new kind another name"
        )


class Work(torch.utils.data.Dataset):
    """Clip -> finished file content, computed in loader workers."""

    def __init__(self, table: Table, features: Features, clips: Sequence[Clip]):
        self.table, self.features, self.clips = table, features, clips

    def __len__(self) -> int:
        return len(self.clips)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> tuple[str, int, bytes, int] | UserError:
        clip = self.clips[index]
        path = self.table.sound(clip)
        try:
            sound = torch.from_numpy(audio.read(path))
        except UserError as error:  # returned, since a loader would bury its message in a traceback
            return error
        values, frames = self.features.front_end(sound[None], torch.tensor([len(sound)]))
        buffer = io.BytesIO()
        np.save(buffer, values[0].numpy().astype(self.features.dtype))
        return clip.clip, int(frames), buffer.getvalue(), zlib.crc32(path.read_bytes())


def extract(table: Table, features: Features, progress: bool = True) -> dict[str, int]:
    """Make the features of every clip of ``table`` that the store lacks, and see that the others are whole.

    Killed at any moment and started again, it ends with the same files as an uninterrupted run.

    Returns:
        ``{"made": ..., "kept": ..., "remade": ...}``; remade files were damaged, foreign, or of changed sound.

    Raises:
        UserError: unreadable sound, or a store made otherwise.
    """
    folder = store_folder(table.corpus, features)
    folder.mkdir(parents=True, exist_ok=True)
    known = open_store(folder, features)
    whole = {
        clip.clip: known[clip.clip]
        for clip in progress_bar(table.clips, "check", len(table.clips), shown=progress)
        if is_whole(folder, table, clip, known.get(clip.clip))
    }
    todo = [clip for clip in table.clips if clip.clip not in whole]
    remade = sum(clip.clip in known or (folder / f"{clip.clip}.npy").exists() for clip in todo)
    write_index(folder, table, features, whole, complete=not todo)
    if todo:
        loader = torch.utils.data.DataLoader(
            Work(table, features, todo), batch_size=None, num_workers=min(len(todo), cores())
        )
        for result in progress_bar(loader, f"extract {table.corpus} {features.name}", len(todo), shown=progress):
            if isinstance(result, UserError):
                raise result
            name, frames, content, source = result
            put(folder / f"{name}.npy", content)
            whole[name] = {"frames": frames, "crc32": zlib.crc32(content), "source_crc32": source}
            append_line(folder / "journal.jsonl", json.dumps({"clip": name, **whole[name]}))
        write_index(folder, table, features, whole, complete=True)
    (folder / "journal.jsonl").unlink(missing_ok=True)
    for left in folder.glob(".*.tmp"):
        left.unlink()
    return {"made": len(todo) - remade, "remade": remade, "kept": len(table.clips) - len(todo)}


def open_store(folder: Path, features: Features) -> dict[str, dict]:
    """Return what index and journal say about each file; a store made otherwise is refused."""
    known: dict[str, dict] = {}
    if (folder / "index.json").is_file():
        index = read_json(folder / "index.json")
        check_spec(folder, index, features)
        known = index["files"]
    journal = folder / "journal.jsonl"
    if journal.is_file():
        for line in journal.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                known[entry.pop("clip")] = entry
            except (ValueError, KeyError, AttributeError, TypeError):  # the line that the kill cut short
                continue
    return known


def is_whole(folder: Path, table: Table, clip: Clip, entry: dict | None) -> bool:
    """Say whether a clip's file is the one that the store wrote, from the sound that is there now."""
    if entry is None:
        return False
    source = table.sound(clip)
    try:
        if source.is_file() and zlib.crc32(source.read_bytes()) != entry["source_crc32"]:
            return False
        return zlib.crc32((folder / f"{clip.clip}.npy").read_bytes()) == entry["crc32"]
    except (OSError, KeyError, TypeError):  # gone, or an entry that is not of this store
        return False


def put(path: Path, content: bytes) -> None:
    """Write a file whole, without waiting for the disk: the checksum tells whether it arrived."""
    write_atomically(path, lambda file: file.write(content), wait=False)


def write_index(folder: Path, table: Table, features: Features, files: dict[str, dict], complete: bool) -> None:
    """Write ``index.json``: how the store was made, of which clips, and each file's checksum."""
    names = sorted(clip.clip for clip in table.clips)
    write_json(
        folder / "index.json",
        {
            "spec": features.spec,
            "complete": complete,
            "corpus": table.corpus,
            "versions": {package: version(package) for package in ("torch", "torchaudio", "soundfile")},
            "clips": len(names),
            "clips_sha256": sha256("".join(f"{name}\n" for name in names).encode()).hexdigest(),
            "files": {name: files[name] for name in sorted(files)},
        },
    )
